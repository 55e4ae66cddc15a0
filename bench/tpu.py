r"""Compiles the train step for TPUs with each design choice undone.

    python -m bench.tpu [--slices=v5e:16x16] [--out=bench/results/tpu.md]

Needs the TPU compiler: pip install -c constraints.txt -e '.[tpu]'. The train
step of ViT-L with batch 4096 is compiled as by `python -m mae_jax plan`, and
once more with each choice undone, one at a time. The table compares memory
traffic and time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import einops
import jax
import tqdm

from bench import plan
from bench.lib import flags, machine, plots, tiny_config
from mae_jax.models import attention, patchify, transformer
from mae_jax.tools.plan import compile_step, format, roofline
from mae_jax.utils import tables

OUT = flags.RESULTS / "tpu.md"
SLICES = ("v5e:16x16", "v5p:4x4x4")
HEADINGS = (
  "slice",
  "program",
  "HBM traffic",
  "of it padding",
  "HBM peak",
  "flops against paper",
  "sent",
  "of it while computing",
  "compute / HBM / interconnect",
)


def _six_axes(images: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
  p, q = patch_size
  return einops.rearrange(
    images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=q
  )


def _token_first(qkv: jax.Array, heads: int, part_bytes: int = 0) -> jax.Array:
  del part_bytes
  shape = (*qkv.shape[:2], heads, -1)
  q, k, v = (x.reshape(shape) for x in jax.numpy.split(qkv, 3, axis=-1))
  logits = jax.numpy.einsum(
    "bnhd,bmhd->bhnm",
    q * q.shape[-1] ** -0.5,
    k,
    preferred_element_type=jax.numpy.float32,
  )
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  out = jax.numpy.einsum("bhnm,bmhd->bnhd", weights, v)
  return out.reshape(*qkv.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Undone:
  """Undoes one design choice.

  Attributes:
    predicted: the effect of the choice on v5e:16x16, predicted before it was
      compiled.
    patch: makes a context in which the code is as before the choice.
    settings: changed settings of the config by section.
  """

  predicted: str
  patch: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  )
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _patched(where: Any, name: str, value: Any) -> Any:
  return functools.partial(mock.patch.object, where, name, value)


UNDONE = {
  "everything kept for the backward pass": Undone(
    "products alone kept: half of the traffic",
    settings={"model": {"remat": "none"}},
  ),
  "gradients stacked in float32": Undone(
    "stacked in bfloat16, they are written and read in half of the bytes: "
    "3 to 4 GB less",
    _patched(transformer, "_cast_dense", lambda variables, dtype: variables),
  ),
  "heads behind tokens": Undone(
    "heads before tokens, products need no copies: 0.5 GB less",
    _patched(attention, "attend", _token_first),
  ),
  "rows divided after the product with v": Undone(
    "dividing late saves the gradient's sum over N: 0.3 GB less late",
    _patched(attention, "_all_at_once", attention._chunk_of_examples),
  ),
  "GELU by erfc": Undone(
    "by erf: nothing, it is fused",
    _patched(
      transformer,
      "ACTIVATION_FUNCTIONS",
      transformer.ACTIVATION_FUNCTIONS
      | {"gelu": functools.partial(jax.nn.gelu, approximate=False)},
    ),
  ),
  "patches cut along six axes": Undone(
    "with a pixel's channels and the pixels of a row as one axis, no copy is "
    "padded from 14 to 128: 0.42 GB less",
    _patched(patchify, "patchify", _six_axes),
  ),
  "gradients of a block summed at once": Undone(
    "summed apart, three of four kernels' sums go on while the next gradient "
    "is computed; traffic as before",
    settings={"mesh": {"overlap": False}},
  ),
}


def compiled(slice_: str, undone: Undone) -> compile_step.CompiledStep:
  """Compiles the train step for a slice, data parallel."""
  config = tiny_config.with_changes(plan.configured("L", 1), **undone.settings)
  with undone.patch():
    jax.clear_caches()  # traces of the unpatched code
    return plan.compiled(config, slice_)


def row(slice_: str, name: str, found: compile_step.CompiledStep) -> list[str]:
  """Returns the cells of a row, in the order of HEADINGS."""
  costs, known = found.costs, roofline.estimate(found)
  if costs is None or known is None:
    return [slice_, name, "", "", plan.peak(found), *[""] * 4]
  _, change = plan.flops(found)
  return [
    slice_,
    name,
    format.gb(costs.hbm_bytes),
    f"{costs.padding / costs.hbm_bytes:.1%}",
    plan.peak(found),
    f"{change:+.1%}",
    format.gb(costs.sent),
    f"{costs.overlapped / costs.sent:.0%}" if costs.sent else "-",
    plan.parts(known),
  ]


def rows(slices: list[str]) -> Iterator[list[str]]:
  """Yields rows: each slice's program as it is, and with each choice undone."""
  programs = {"as it is": Undone("")} | UNDONE
  cases = [(slice_, name) for slice_ in slices for name in programs]
  for slice_, name in tqdm.tqdm(cases):
    yield row(slice_, name, compiled(slice_, programs[name]))


def draw(found: list[list[str]], page: pathlib.Path) -> None:
  """Plots the memory traffic of each program, with one panel per slice."""
  slices = list(dict.fromkeys(row[0] for row in found))
  with plots.figure(page, 10, 3) as figure:
    every = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
    for axes, slice_ in zip(every, slices, strict=True):
      some = [dict(zip(HEADINGS, x, strict=True)) for x in found]
      some = [x for x in some if x["slice"] == slice_ and x["HBM traffic"]]
      total = [float(x["HBM traffic"].split()[0]) for x in some]
      padding = [
        traffic * float(x["of it padding"].rstrip("%")) / 100
        for traffic, x in zip(total, some, strict=True)
      ]
      names = [x["program"] for x in some]
      bars = axes.barh(names, total, color="C0", label="HBM traffic")
      axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
      axes.barh(names, padding, color="C1", label="of it padding")
      axes.set_xlabel("GB a step and chip")
      axes.set_title(slice_, fontsize=9)
    every[0].invert_yaxis()
    handles = every[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)


TEXT = """# The train step's program on TPUs

Written by `python -m bench.tpu` (`make tpu`). Nothing here ran on a TPU. The
compiler of these chips compiles the step of ViT-L (batch 4096, data parallel,
bfloat16) as it is, and with each choice undone. Numbers are for one chip and
one step. Traffic is HBM traffic, without memory on the chip. "Paper" is the
counted flops of the model's products, without recomputation. Times are at
documented speeds.

{about}

![traffic with memory]({picture})

{table}

## What was predicted

These predictions were made for v5e:16x16 before each change was compiled:

{predicted}

The compiler chooses which arrays stay on the chip, and that changes traffic by
about half a gigabyte either way. For example, patches and erf gain 0.0 and 0.1
GB on v5e separately, but gained 0.8 GB together (16.8 to 16.0), with gradients
summed at once. These predictions were wrong:

- Saving only products was to halve the traffic; it saves a third.
- Gradients in bfloat16 were to save 3 to 4 GB; they save 2.1 GB.
- Patches were to save 0.4 GB; they save 0.04 GB.
- Dividing late costs 0.9 GB, so `attention._all_at_once` uses a softmax.
- GELU by erf is fused with the arrays saved for the backward pass, and saves
  3.2 GB on v5p.
- Heads before tokens gained 0.3 GB at first. Since gradients are summed apart
  it costs 0.3 GB, which is within that half gigabyte (1.0 GB on v5p). It stays
  for the CPU, where it saves 13 % of attention, and avoids a second
  implementation.

Summing gradients apart costs 0.6 GB, at most 0.7 ms of HBM time. It overlaps
4.3 of the 6.6 ms of communication with products.

An earlier series of changes of the same program on v5e:16x16:

| change | HBM traffic | predicted |
| --- | --- | --- |
| everything kept for the backward pass | 37.6 GB | |
| products alone kept | 26.2 GB | |
| gradients stacked in bfloat16 | 21.7 GB | |
| AdamW in one pass over parameters and moments | 17.6 GB | 9.2 of it; is 8.9 |
| heads before tokens in attention | 16.8 GB (17.0 just before) | |

## Padding

The compiler pads the last two axes of an array to tiles of 8 x 128, for
bfloat16 often to 16 x 128. Before the last three of these changes, v5e padded
the following arrays, largest first:

- Patches of pixels with a last axis of 14, to nine times their size (0.42 GB;
  now 0.24 GB).
- 50 tokens to 56 rows, in arrays that the encoder saves or its products read
  (0.1 GB).
- 197 tokens to 200 rows (0.01 GB).

With 16 images per chip, the compiler joins the rows of several images, so 50
tokens cost 2 % instead of the 28 % of 64 rows. With 64 images per chip, as on
v5p:4x4x4, attention's arrays do not fit into the 64 MB on the chip. There,
heads of 64 and 32 values and 50 and 197 logits are padded to 128 and 256.

Fewer images per chip reduce the padding. With 16 images per chip, v5p has 32.9
GB of traffic with 11.9 % padding
(`--topology=v5p:4x4x4 --config.data.batch_size=1024`). With 64, v5e has 43.8 GB
with 11.6 % padding (`--topology=v5e:8x8`).

## Tried, and not adopted

- Four parts of 16 images on v5p (`optim.accum_steps=4`), so that activations
  stay on the chip: 35 to 45 GB were predicted, but the result is 112.6 GB, and
  91.8 GB in two parts. Each part reads kernels and adds gradients once more.
- Another limit of v5p's on-chip memory for single operations
  (`xla_tpu_scoped_vmem_limit_kib`): 77.5 GB with 8 MB instead of 79.3, and 84.3
  with 32 MB; 64 MB does not compile. Two per cent of a bound are not worth an
  option without a promise of support.
- Attention in chunks whose logits fit on the chip (v5p, 42 MB): 78.75 GB
  instead of 78.68, when gradients were summed at once.
- Communication of one block during the products of the next
  (`xla_tpu_collective_fusion_pipeliner_all_reduce`): the same program. Without
  a bound on what is summed together, none of the compiler's options for
  asynchronous sums has an effect. With two blocks per turn of the loop neither
  has, and traffic grows by half (ViT-B, 6.65 to 10.18 GB).
- Most of the remaining traffic is that of parameters: 8.7 GB for AdamW in one
  pass, 1.8 GB to cast kernels once, 0.6 GB for the norm of the gradient, and
  0.6 GB to clear the memory of stacked gradients, which `jax.lax.scan` does.
- mesh.fsdp=16 overlaps its gathers with products without further options. On
  v5e's roofline, it has a sixth of the traffic and three times the time to
  send.
"""


def main() -> None:
  """Compiles all programs and writes the page."""
  parser = argparse.ArgumentParser(
    description=(__doc__ or "").partition("\n")[0]
  )
  parser.add_argument("--slices", type=flags.slices, default=",".join(SLICES))
  parser.add_argument("--out", type=flags.page, default=OUT)
  given = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  found = list(rows(given.slices))
  predicted = "\n".join(
    f"- {name}: {each.predicted}." for name, each in UNDONE.items()
  )
  text = TEXT.format(
    about=f"{machine.about(('jax', 'libtpu'))}.",
    picture=given.out.with_suffix(".svg").name,
    table=tables.markdown(found, HEADINGS),
    predicted=predicted,
  )
  draw(found, given.out)
  given.out.write_text(text)
  print(text)


if __name__ == "__main__":
  main()
