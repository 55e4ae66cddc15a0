r"""Estimates memory and time of recipes on slices of TPUs and GPUs.

  python -m bench.plan [--models=B,L] [--slices=v5e:16x16] \
      [--out=bench/results/plan.md]

Needs compilers, but no TPU or GPU:
pip install -c constraints.txt -e '.[tpu,cuda13]'. Each row is compiled as by
`python -m mae_jax plan`, and that command gives one row again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Iterator

import jax
import tqdm
from matplotlib.axes import Axes

from bench.lib import flags, machine, plots
from mae_jax.config import Config, overrides
from mae_jax.tools.plan import (
  compile_step,
  format,
  planned_step,
  roofline,
  topology,
)
from mae_jax.utils import tables

OUT = flags.RESULTS / "plan.md"
RECIPES = {
  "B": ("vit_b", "B/16"),
  "L": ("vit_l", "L/16"),
  "H": ("vit_h", "H/14"),
  "2B": ("vit_h", "2B/14"),
}
# Values of `mesh.fsdp`: data parallel, and sharded over a side or a host.
FSDP = {
  "v5e:16x16": (1, 16),
  "v5p:4x4x4": (1, 16),
  "v6e:16x16": (1, 16),
  "h100:8": (1, 8),
}
# Peak memory in GB of an earlier sketch of this program, with its settings.
SKETCH = (
  ("L", "v5e:16x16", 1, "none", 5.4),
  ("L", "v5e:16x16", 256, "none", 3.6),
  ("H", "v5e:16x16", 256, "none", 6.6),
  ("H", "v5e:16x16", 256, "dots", 1.6),
  ("2B", "v5p:4x4x4", 64, "none", 34.5),
  ("2B", "v5e:16x16", 256, "dots", 2.2),
)
HEADINGS = (
  "model",
  "slice",
  "fsdp",
  "images a chip",
  "parameters + optimizer",
  "HBM peak",
  "flops an image, compiled against paper",
  "HBM traffic",
  "sent",
  "compute / HBM / interconnect",
  "step, at least",
  "images/s, at most",
  "MFU, at most",
  "800 epochs, at least",
  "compiled in",
)

BOUNDS = "compute / HBM / interconnect"
SKETCHED = ("model", "slice", "fsdp", "remat", "sketch", "here")


def configured(model: str, fsdp: int, remat: str = "auto") -> Config:
  """Returns the recipe of a model, batch 4096, with fsdp and remat set."""
  name, variant = RECIPES[model]
  config = overrides.recipe(f"configs/{name}.py")
  return dataclasses.replace(
    config,
    mesh=dataclasses.replace(config.mesh, fsdp=fsdp),
    model=dataclasses.replace(config.model, variant=variant, remat=remat),
  )


def compiled(config: Config, slice_: str) -> compile_step.CompiledStep:
  """Compiles the train step for a slice."""
  where = topology.open_topology(slice_)
  return compile_step.measure(planned_step.on_slice(config, where), where.chip)


def peak(found: compile_step.CompiledStep) -> str:
  """Returns the peak of a chip's memory, and whether it fits."""
  text = format.gb(found.memory.peak)
  return text if found.fits else f"{text}: no fit"


def flops(found: compile_step.CompiledStep) -> tuple[float, float]:
  """Returns the program's flops per image, and their excess over the count.

  Raises:
    ValueError: if the program's text is not available.
  """
  if found.costs is None:
    raise ValueError("the compiler gives no text of this program to count")
  planned = found.planned
  share = planned.config.data.batch_size // planned.mesh.size
  count = found.costs.flops / share
  return count, count / planned.task.flops_per_image - 1


def parts(known: roofline.Estimate) -> str:
  """Returns the times of compute, HBM and interconnect of a roofline."""
  times = (known.compute, known.memory, known.interconnect)
  return f"{' / '.join(f'{1e3 * each:.1f}' for each in times)} ms"


def row(model: str, slice_: str, found: compile_step.CompiledStep) -> list[str]:
  """Returns the cells of a row, in the order of HEADINGS."""
  planned = found.planned
  share = planned.config.data.batch_size // planned.mesh.size
  cells = [
    model,
    slice_,
    str(planned.config.mesh.fsdp),
    str(share),
    format.gb(found.memory.params + found.memory.opt_state),
    peak(found),
  ]
  known = roofline.estimate(found) if found.fits else None
  if known is None or found.costs is None:
    return [*cells, *[""] * (len(HEADINGS) - len(cells))]
  count, change = flops(found)
  return [
    *cells,
    f"{count:.3g} ({change:+.1%})",
    format.gb(found.costs.hbm_bytes),
    format.gb(found.costs.sent),
    parts(known),
    f"{1e3 * known.step:.1f} ms",
    f"{known.images_per_second:,.0f}",
    f"{known.mfu:.0%}",
    f"{24 * known.days:.1f} h",
    f"{found.compile_seconds:.0f} s",
  ]


def draw(rows: list[list[str]], page: pathlib.Path) -> None:
  """Plots the bounds of each row, with one panel per model."""
  models = list(dict.fromkeys(row[0] for row in rows))
  high = math.ceil(len(models) / 2)
  with plots.figure(page, 10, 0.5 + 2.3 * high) as figure:
    panels = figure.subplots(high, 2, sharex=True, squeeze=False).flat
    for model, axes in zip(models, panels, strict=False):
      some = [x for x in rows if x[0] == model]
      _panel(axes, [dict(zip(HEADINGS, x, strict=True)) for x in some])
      axes.set_title(f"ViT-{model}", fontsize=9)
    for axes in figure.axes[len(models) :]:
      axes.set_visible(False)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)


def _panel(axes: Axes, rows: list[dict[str, str]]) -> None:
  """Draws the rows of one model, each with a line from least to most."""
  found = {
    number: [float(x) for x in row[BOUNDS].removesuffix(" ms").split("/")]
    for number, row in enumerate(rows)
    if row[BOUNDS]
  }
  for number in set(range(len(rows))) - set(found):
    axes.annotate(
      "no fit",
      (0.02, number),
      xycoords=("axes fraction", "data"),
      va="center",
      fontsize=8,
    )
  for k, (name, marker) in enumerate(
    zip(BOUNDS.split(" / "), "so^", strict=True)
  ):
    times = [each[k] for each in found.values()]
    axes.semilogx(times, list(found), marker, label=name, alpha=0.8)
  least, most = map(min, found.values()), map(max, found.values())
  axes.hlines(list(found), list(least), list(most), color="0.8", zorder=0)
  labels = [f"{row['slice']}, fsdp {row['fsdp']}" for row in rows]
  axes.set_yticks(range(len(rows)), labels, fontsize=8)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.tick_params(labelbottom=True)
  axes.set_xlabel("ms a step")


def sketch(models: list[str], slices: list[str]) -> Iterator[list[str]]:
  """Yields the peaks for the settings of SKETCH."""
  for model, slice_, fsdp, remat, before in tqdm.tqdm(SKETCH):
    if model in models and slice_ in slices:
      found = compiled(configured(model, fsdp, remat), slice_)
      after = format.gb(found.memory.peak)
      yield [model, slice_, str(fsdp), remat, f"{before:.1f} GB", after]


def text(
  rows: list[list[str]], sketched: list[list[str]], page: pathlib.Path
) -> str:
  """Returns the page with the rows so far."""
  environment = machine.about(("jax", "libtpu", "jax-cuda13-plugin"))
  return f"""# Recipes on slices of chips

Written by `python -m bench.plan` (`make plan`). Nothing here ran on a TPU or
GPU. The compilers of these chips compile the train steps, and the costs of the
programs are compared with the chips' speeds in `mae_jax/utils/hardware.py`.
Batch 4096, bfloat16, `model.remat=auto`, which means `dots` here. A row is the
output of

    python -m mae_jax plan --config=configs/vit_l.py \\
      --topology=v5e:16x16 --config.mesh.fsdp=16

(2B: `--config=configs/vit_h.py --config.model.variant=2B/14`). Memory, traffic
and bytes sent are for one chip. Times are rooflines: the largest of compute,
HBM and interconnect time at documented speeds. No step is faster, and real
steps are slower. Compile times are from this machine, which may have been busy:
{environment}.
Where a program barely fits, as 2B on v6e:16x16 with fsdp 1, the compiler
recomputes more than `model.remat` asks for: 10.6 % of the counted flops.

![what bounds a step]({page.stem}.svg)

{tables.markdown(rows, HEADINGS)}

## Peak memory beside a sketch of the same program

Before this program was written, the same network was sketched in a few lines of
Flax and compiled with these settings, to learn what fits. The table compares
its peaks with this program's. `none` saves all activations for the backward
pass.

{tables.markdown(sketched, SKETCHED)}
"""


def _slices(text: str) -> list[str]:
  flags.among(FSDP)(text)
  return flags.slices(text)


def main() -> None:
  """Compiles all cases and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--models", type=flags.among(RECIPES), default=",".join(RECIPES)
  )
  parser.add_argument("--slices", type=_slices, default=",".join(FSDP))
  parser.add_argument("--out", type=flags.page, default=OUT)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  models, slices = args.models, args.slices
  cases = [
    (model, slice_, fsdp)
    for model in models
    for slice_ in slices
    for fsdp in FSDP[slice_]
  ]
  rows: list[list[str]] = []
  for model, slice_, fsdp in tqdm.tqdm(cases):
    found = compiled(configured(model, fsdp), slice_)
    rows.append(row(model, slice_, found))
    # Writes after each row: all rows together take hours.
    draw(rows, args.out)
    args.out.write_text(text(rows, [], args.out))
  args.out.write_text(text(rows, list(sketch(models, slices)), args.out))
  print(args.out.read_text())


if __name__ == "__main__":
  main()
