r"""Measures how time and memory of a train step grow with its size.

    python -m bench.growth [--rounds=7]

It writes `bench/results/growth.md` and `bench/results/growth.svg`. On CPU, it
times steps of a small network and changes image size, depth, width or batch,
one at a time. For TPU v5e, it compiles steps of ViT-B and reports peak memory
and rooflines. For large images, it also varies the size of attention chunks
(`model.attention_chunk_mb`).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from bench import plan
from bench.lib import flags, machine, plots, timed_steps
from mae_jax.config import Config, overrides
from mae_jax.tools.plan import compile_step, roofline
from mae_jax.utils import tables

OUT = flags.RESULTS / "growth.md"
BASE = timed_steps.Model(64, 8, 32, 192, 6, 3, 128, 2, 4)
# For each change: the fields, and factors of their values in BASE.
CPU = {
  "image size": (("image",), (0.5, 1, 1.5, 2, 3, 4)),
  "depth": (("depth",), (0.5, 1, 2, 4)),
  "width": (
    ("width", "heads", "decoder_width", "decoder_heads"),
    (1, 2, 3, 4),
  ),
  "batch": (("batch",), (0.25, 0.5, 1, 2, 4)),
}
SLICE, CHIPS = "v5e:2x2", 4
# Changes of ViT-B, one at a time.
TPU: dict[str, tuple[int, ...]] = {
  "depth": (6, 12, 24, 48),
  "width": (384, 768, 1536),
  "images a chip": (8, 32, 64, 128),
}
TPU_IMAGES = 32  # per chip, unless this number changes
SIZES = (224, 512, 1024, 1536, 2048)  # pixels, one image a chip
MEASURED = (
  "what changes",
  "value",
  "tokens",
  "flops",
  "ms a step",
  "time",
  "memory",
)
COMPILED = ("what changes", "value", "flops", "HBM peak", "step, at least")
# Values of `model.attention_chunk_mb`, which limits the logits of attention.
LOGITS: dict[str, float | None] = {
  "whole": 0.0,
  "parts of 2 GB": None,  # the default
  "parts of 128 MB": 128.0,
}
LARGE = (
  "pixels",
  "tokens",
  *(
    heading
    for name in LOGITS
    for heading in (f"HBM peak, {name}", "step, at least")
  ),
)


@dataclasses.dataclass(frozen=True)
class Point:
  """A measured step.

  Attributes:
    value: the value of the changed field.
    tokens: number of tokens in the decoder.
    flops: counted flops of the matrix products of a step.
    memory: bytes of state, batch and temporary memory.
    seconds: seconds of a step.
  """

  value: int
  tokens: int
  flops: float
  memory: int
  seconds: float


def changed(fields: Sequence[str], times: float) -> timed_steps.Model:
  """Returns BASE with some fields multiplied by a factor."""
  values = {name: round(times * getattr(BASE, name)) for name in fields}
  return dataclasses.replace(BASE, **values)


def on_cpu(what: str, rounds: int) -> list[Point]:
  """Times steps for each factor of one change; the sizes take turns."""
  fields, times = CPU[what]
  models = [changed(fields, each) for each in times]
  runs = [timed_steps.run(model, "float32") for model in models]
  memory = []
  for run in tqdm.tqdm(runs, f"{what}: compile", leave=False):
    found = run.compile().memory_analysis()
    memory.append(found.argument_size_in_bytes + found.temp_size_in_bytes)
    run.take()
  seconds: list[list[float]] = [[] for _ in runs]
  for _ in tqdm.trange(rounds, desc=f"{what}: steps", leave=False):
    for run, some in zip(runs, seconds, strict=True):
      some.append(timed_steps.timed_in_turn(run.take)[0])
  return [
    Point(
      getattr(model, fields[0]),
      1 + (model.image // model.patch) ** 2,
      run.flops,
      need,
      float(np.median(some)),
    )
    for model, run, need, some in zip(
      models, runs, memory, seconds, strict=True
    )
  ]


def recipe(batch: int, pixels: int = 224, **model: Any) -> Config:
  """Returns the ViT-B recipe for a batch on all chips."""
  config = overrides.recipe("configs/vit_b.py")
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, batch_size=batch, image_size=(pixels, pixels)
    ),
    model=dataclasses.replace(config.model, **model),
  )


def on_tpu(what: str) -> dict[int, compile_step.CompiledStep]:
  """Compiles the steps of one change, by its value."""
  found = {}
  for value in tqdm.tqdm(TPU[what], what, leave=False):
    if what == "images a chip":
      config = recipe(CHIPS * value)
    elif what == "width":
      config = recipe(
        CHIPS * TPU_IMAGES, width=value, heads=value // 64, mlp_dim=4 * value
      )
    else:
      config = recipe(CHIPS * TPU_IMAGES, **{what: value})
    found[value] = plan.compiled(config, SLICE)
  return found


# Compiled steps by pixels of an image and by the names in LOGITS.
Large = dict[int, dict[str, compile_step.CompiledStep]]


def large() -> Large:
  """Compiles the steps for large images."""
  return {
    pixels: {
      name: plan.compiled(
        recipe(CHIPS, pixels, attention_chunk_mb=limit), SLICE
      )
      for name, limit in tqdm.tqdm(LOGITS.items(), f"{pixels}", leave=False)
    }
    for pixels in tqdm.tqdm(SIZES, "large images", leave=False)
  }


def step(found: compile_step.CompiledStep) -> str:
  """Returns the lower bound of a step, or "" if the program does not fit."""
  known = roofline.estimate(found) if found.fits else None
  return f"{1e3 * known.step:.1f} ms" if known else ""


def measured_rows(points: Mapping[str, list[Point]]) -> Iterator[list[str]]:
  """Yields rows under MEASURED, with ratios to the first row of each kind."""
  for what, some in points.items():
    for point in some:
      yield [
        what,
        str(point.value),
        str(point.tokens),
        f"{point.flops / some[0].flops:.1f}x",
        f"{1e3 * point.seconds:.0f}",
        f"{point.seconds / some[0].seconds:.1f}x",
        f"{point.memory / 1e6:.0f} MB ({point.memory / some[0].memory:.1f}x)",
      ]


def compiled_rows(
  found: Mapping[str, Mapping[int, compile_step.CompiledStep]],
) -> Iterator[list[str]]:
  """Yields rows under COMPILED."""
  for what, some in found.items():
    smallest = next(iter(some.values()))
    for value, one in some.items():
      share = total_flops(one) / total_flops(smallest)
      yield [what, str(value), f"{share:.1f}x", plan.peak(one), step(one)]


def total_flops(found: compile_step.CompiledStep) -> float:
  """Returns the counted flops of a step on all chips."""
  planned = found.planned
  return planned.task.flops_per_image * planned.config.data.batch_size


def large_rows(found: Large) -> Iterator[list[str]]:
  """Yields rows under LARGE."""
  for pixels, by_limit in found.items():
    tokens = by_limit["whole"].planned.tokens[-1]
    cells = [
      text for x in by_limit.values() for text in (plan.peak(x), step(x))
    ]
    yield [str(pixels), str(tokens), *cells]


def draw(
  points: Mapping[str, list[Point]], found: Large, page: pathlib.Path
) -> None:
  """Plots time on CPU against flops, and memory on a TPU against tokens."""
  with plots.figure(page, 10, 4) as figure:
    left, right = figure.subplots(1, 2)
    for what, some in points.items():
      left.loglog(
        [point.flops / 1e9 for point in some],
        [1e3 * point.seconds for point in some],
        "o-",
        label=what,
      )
    left.set_xlabel("GFLOP a step, on paper")
    left.set_ylabel("ms a step on CPU")
    tokens = [x["whole"].planned.tokens[-1] for x in found.values()]
    for name in LOGITS:
      peaks = [x[name].memory.peak / 1e9 for x in found.values()]
      right.loglog(tokens, peaks, "o-", label=f"logits {name}", alpha=0.8)
    limit = next(iter(found.values()))["whole"].chip.hbm_bytes / 1e9
    right.axhline(limit, color="black", linewidth=0.8)
    right.annotate(
      "HBM of a chip",
      (tokens[0], limit),
      xytext=(0, 3),
      textcoords="offset points",
    )
    right.set_yticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    right.set_xticks(tokens, [str(each) for each in tokens])
    right.minorticks_off()
    right.set_xlabel("tokens in the decoder")
    right.set_ylabel(f"GB at the peak, {SLICE}, one image a chip")
    for axes in (left, right):
      axes.legend()
      axes.grid(alpha=0.3)


def report(
  points: Mapping[str, list[Point]],
  grown: Mapping[str, Mapping[int, compile_step.CompiledStep]],
  big: Large,
  rounds: int,
  page: pathlib.Path,
) -> str:
  """Returns the page."""
  packages = ("jax", "jaxlib", "flax", "libtpu")
  return f"""\
# How a train step grows

Written by `python -m bench.growth` (`make growth`), on
{machine.about(packages)}.

![time against flops, memory against tokens]({page.stem}.svg)

## Measured on CPU

The network has {BASE.depth} blocks of width {BASE.width} and a decoder of \
{BASE.decoder_depth} blocks of width {BASE.decoder_width}. It
sees {BASE.batch} images of {BASE.image} pixels in patches of {BASE.patch}, in \
float32. One thing changes at a time; a change of width changes the decoder's
too. Ratios are relative to the first row of each kind, and flops are those of
matrix products. Times are medians of {rounds} rounds in turn; each round has
two steps, and the second counts. The unchanged network is in all four groups:
the spread of its times is the error of all times.

{tables.markdown(list(measured_rows(points)), MEASURED)}

## Compiled for TPUs

Pre-training of ViT-B, bfloat16, 224 pixels, {TPU_IMAGES} images a chip of
{SLICE}, as `configs/vit_b.py` has it; nothing ran on a TPU.

{tables.markdown(list(compiled_rows(grown)), COMPILED)}

## Large images

The same network with one image per chip. Attention's logits are whole
(`model.attention_chunk_mb=0`), in chunks of at most 2 GB, the default, or in
chunks of at most 128 MB (`mae_jax/models/attention.py`). Whole logits grow with
the square of the number of tokens; with chunks, memory grows linearly. Chunks
of 128 MB are not slower: from 1536 pixels on, they have a lower bound than
those of 2 GB. Up to 512 pixels, the logits are smaller than a chunk, and the
program does not change.

{tables.markdown(list(large_rows(big)), LARGE)}
"""


def main() -> None:
  """Measures, compiles and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--rounds", type=flags.whole(), default=7)
  parser.add_argument("--out", type=flags.page, default=OUT)
  given = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  points = {what: on_cpu(what, given.rounds) for what in CPU}
  grown = {what: on_tpu(what) for what in TPU}
  big = large()
  draw(points, big, given.out)
  given.out.write_text(report(points, grown, big, given.rounds, given.out))
  print(f"wrote {given.out}")


if __name__ == "__main__":
  main()
