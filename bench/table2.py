r"""Reproduces the paper's table 2: the speed without mask tokens.

  python -m bench.table2 [--slices=v3:8x8,v5e:16x16] [--rounds=25]

It compares the published wall-clock times with three estimates: counted flops;
rooflines of the same steps compiled for slices of TPUs (which needs libtpu, but
no TPU); and timed steps of networks with a quarter of the width on this
machine. It writes `bench/results/table2.md` and `bench/results/table2.svg`, and
takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pathlib
import textwrap
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from bench import plan
from bench.lib import flags, machine, plots, timed_steps
from mae_jax.config import Config, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.models import architecture, factory, flops
from mae_jax.tools.plan import compile_step, format, planned_step, topology
from mae_jax.tools.plan import roofline as estimate
from mae_jax.train import step as step_lib
from mae_jax.utils import hardware, tables

OUT = flags.RESULTS / "table2.md"
SLICES = ("v3:8x8", "v5e:16x16")
PAPER_SLICE = "v3:8x8"  # the slice of the paper's times, 128 cores
EPOCHS = 800
# `model.remat` where the entry with mask tokens does not fit otherwise. All
# entries of that size use it; all others use the recipe's setting.
REMAT = {("v3:8x8", "H"): "full"}
SHRINK = 4  # timed networks have a quarter of the width


@dataclasses.dataclass(frozen=True)
class Entry:
  """A row of the paper's table 2.

  Attributes:
    model: "L" or "H".
    mask_tokens: whether the encoder sees a mask token for each masked patch.
    decoder_depth: number of decoder blocks.
    hours: published hours of 800 epochs on 128 TPU v3 cores.
  """

  model: str
  mask_tokens: bool
  decoder_depth: int
  hours: float

  @property
  def base(self) -> Entry:
    """The entry of the same model with mask tokens."""
    return next(each for each in ENTRIES if each.model == self.model)

  @property
  def cells(self) -> list[str]:
    """The first cells of a row."""
    seen = "all, with mask tokens" if self.mask_tokens else "visible"
    return [f"ViT-{self.model}", seen, str(self.decoder_depth)]


NAMED = ("model", "encoder sees", "decoder blocks")
ENTRIES = (
  Entry("L", True, 8, 42.4),
  Entry("L", False, 8, 15.4),
  Entry("L", False, 1, 11.6),
  Entry("H", True, 8, 119.6),
  Entry("H", False, 8, 34.5),
  Entry("H", False, 1, 29.3),
)
FASTER = [each for each in ENTRIES if each != each.base]


def encoders_share(config: Config) -> float:
  """Returns the share of the encoder's blocks in the counted flops."""
  model = factory.masked_autoencoder(config)
  encoder, grid = model.encoder, model.decoder.grid
  tokens = 1 + model.num_encoder_tokens(grid[0] * grid[1])
  blocks = flops.stack(tokens, encoder.config)
  return 3 * blocks / flops_per_image(config)


def configured(entry: Entry) -> Config:
  """Returns the recipe of the entry's model with its decoder."""
  config = plan.configured(entry.model, fsdp=1)
  model = dataclasses.replace(config.model, decoder_depth=entry.decoder_depth)
  objective = dataclasses.replace(
    config.objective,
    masked_input="mask_tokens" if entry.mask_tokens else "dropped",
  )
  return dataclasses.replace(config, model=model, objective=objective)


def reduced(entry: Entry, batch_size: int) -> Config:
  """Returns the recipe with a quarter of the widths and heads, in float32.

  Tokens, depths and widths of heads do not change, so encoder and decoder
  nearly keep their shares of the flops. Attention's share grows.
  """
  config = configured(entry)
  dims, _ = architecture.parse(config.model.variant)
  model = dataclasses.replace(
    config.model,
    width=dims.width // SHRINK,
    heads=dims.heads // SHRINK,
    mlp_dim=dims.mlp_dim // SHRINK,
    decoder_width=config.model.decoder_width // SHRINK,
    decoder_heads=config.model.decoder_heads // SHRINK,
    dtype="float32",
  )
  data = dataclasses.replace(config.data, batch_size=batch_size)
  return dataclasses.replace(config, model=model, data=data)


def flops_per_image(config: Config) -> int:
  """Counts the flops per image of a train step."""
  return flops.train_step(
    factory.masked_autoencoder(config), config.data.channels
  )


class Compiled(NamedTuple):
  """An entry's train step, compiled for a slice.

  Attributes:
    found: the compiled program and its costs on one device.
    roofline: the estimated times, or None if the program does not fit.
  """

  found: compile_step.CompiledStep
  roofline: estimate.Estimate | None


def compiled(entry: Entry, where: topology.Topology) -> Compiled:
  """Compiles a step of batch 4096, bfloat16, data parallel."""
  config = configured(entry)
  remat = REMAT.get((where.name, entry.model), config.model.remat)
  model = dataclasses.replace(config.model, remat=remat)
  config = dataclasses.replace(config, model=model)
  found = compile_step.measure(planned_step.on_slice(config, where), where.chip)
  return Compiled(found, estimate.estimate(found) if found.fits else None)


TIMES = {"wall": "wall time", "cpu": "CPU time"}


class Timed(NamedTuple):
  """Timed steps of a network on this machine.

  Attributes:
    wall: [rounds] wall seconds.
    cpu: [rounds] CPU seconds of all threads, which other work disturbs less.
  """

  wall: np.ndarray
  cpu: np.ndarray


def _run(entry: Entry, batch_size: int) -> timed_steps.Run:
  """Builds a run of the entry's small network."""
  config = reduced(entry, batch_size)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  planned = planned_step.planned(
    config, mesh, planned_step.IMAGENET, planned_step.CLASSES
  )
  state = step_lib.abstract_state(planned.task)
  step = compile_step.lower(planned, state).compile()
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  with jax.set_mesh(mesh):
    state = jax.jit(planned.task.init, out_shardings=shardings)()
  random = np.random.default_rng(0)
  batch = {
    name: jax.device_put(
      random.integers(0, 2, leaf.shape).astype(leaf.dtype), leaf.sharding
    )
    for name, leaf in planned.batch().items()
  }
  return timed_steps.Run(step, state, batch, mesh)


def timed(rounds: int, batch_size: int) -> dict[Entry, Timed]:
  """Times all entries in turn, so that other work slows all of them."""
  runs = {
    each: _run(each, batch_size) for each in tqdm.tqdm(ENTRIES, "compiling")
  }
  for _ in range(2):  # to warm up
    for run in runs.values():
      run.take()
  taken: dict[Entry, list[tuple[float, float]]] = {each: [] for each in runs}
  for _ in tqdm.trange(rounds, desc="timing"):
    for entry, run in runs.items():
      taken[entry].append(timed_steps.timed_in_turn(run.take))
  return {entry: Timed(*np.array(pairs).T) for entry, pairs in taken.items()}


def speedups(values: Mapping[Entry, float]) -> dict[Entry, float]:
  """Divides the value of the entry with mask tokens by each value."""
  return {
    each: values[each.base] / values[each]
    for each in FASTER
    if each in values and each.base in values
  }


Ratios = dict[str, dict[Entry, float]]  # by name of the column


def ratios(
  slices: Mapping[str, Mapping[Entry, Compiled]],
  times: Mapping[Entry, Timed],
) -> Ratios:
  """Returns all columns of speed-ups; the published one is first."""

  def on_paper(narrow: bool) -> dict[Entry, float]:
    return {
      each: flops_per_image(reduced(each, 1) if narrow else configured(each))
      for each in ENTRIES
    }

  found = {
    "published": speedups({each: each.hours for each in ENTRIES}),
    "flops on paper": speedups(on_paper(narrow=False)),
  }
  for name, entries in slices.items():
    rooflines = {
      entry: each.roofline.step
      for entry, each in entries.items()
      if each.roofline
    }
    found[f"roofline, {name}"] = speedups(rooflines)
  found["small: flops"] = speedups(on_paper(narrow=True))
  for name in TIMES:
    medians = {e: float(np.median(getattr(t, name))) for e, t in times.items()}
    found[f"small: {TIMES[name]}"] = speedups(medians)
  return found


def summary(compared: Ratios) -> str:
  """Returns the table of all speed-ups."""
  rows = [
    [*each.cells, *(_times(found.get(each)) for found in compared.values())]
    for each in FASTER
  ]
  for deep, light in itertools.pairwise(FASTER):
    if deep.model == light.model:
      name, seen, depth = light.cells
      cells = (
        _times(found[light] / found[deep])
        if {deep, light} <= set(found)
        else ""
        for found in compared.values()
      )
      rows.append(
        [name, seen, f"{depth}, against {deep.decoder_depth}", *cells]
      )
  return tables.markdown(rows, [*NAMED, *compared])


def share_of_peak(entry: Entry) -> float:
  """Returns the published run's share of the peak flops."""
  peak = 128 * hardware.CHIPS[topology.TPUS["v3"]].flops
  work = flops_per_image(configured(entry))
  return work * EPOCHS * planned_step.IMAGENET / (3600 * entry.hours * peak)


def published() -> str:
  """Returns the table of the published times and counted flops."""
  headings = (
    *NAMED,
    "published",
    "speed-up",
    "flops an image",
    "ratio",
    "encoder's share",
    "of the peak of 128 cores",
  )
  found = {e: flops_per_image(configured(e)) for e in ENTRIES}
  rows = []
  for each in ENTRIES:
    rows.append(
      [
        *each.cells,
        f"{each.hours} h",
        f"{each.base.hours / each.hours:.1f}x",
        f"{found[each]:.3g}",
        f"{found[each.base] / found[each]:.2f}x",
        f"{encoders_share(configured(each)):.0%}",
        f"{share_of_peak(each):.0%}",
      ]
    )
  return tables.markdown(rows, headings)


def state_traffic(found: compile_step.CompiledStep) -> int:
  """Returns the bytes of reading and writing the state once per step."""
  return 2 * (found.memory.params + found.memory.opt_state)


def estimated(entries: Mapping[Entry, Compiled], hours: bool) -> str:
  """Returns the table of compiled steps.

  Args:
    entries: steps on one slice.
    hours: whether to add the published hours.
  """
  headings = (
    *NAMED,
    "remat",
    "HBM peak",
    "flops an image, against paper",
    "flops, ratio",
    "HBM traffic",
    "traffic, ratio",
    "of it, state",
    "compute / HBM / interconnect",
    "step, at least",
    "ratio",
    "800 epochs, at least",
    *(["published"] if hours else []),
    "compiled in",
  )
  costs = {e: c.found.costs for e, c in entries.items() if c.found.costs}
  work = speedups({e: c.flops for e, c in costs.items()})
  traffic = speedups({e: c.hbm_bytes for e, c in costs.items()})
  steps = speedups(
    {e: c.roofline.step for e, c in entries.items() if c.roofline}
  )
  rows = []
  for each, (found, roofline) in entries.items():
    planned = found.planned
    start = [
      *each.cells,
      planned.config.model.remat,
      plan.peak(found),
    ]
    if roofline is None or each not in costs:
      rows.append([*start, *[""] * (len(headings) - len(start))])
      continue
    count, change = plan.flops(found)
    rows.append(
      [
        *start,
        f"{count:.3g} ({change:+.1%})",
        _times(work.get(each)),
        format.gb(costs[each].hbm_bytes),
        _times(traffic.get(each)),
        f"{state_traffic(found) / costs[each].hbm_bytes:.0%}",
        plan.parts(roofline),
        f"{1e3 * roofline.step:.1f} ms",
        _times(steps.get(each)),
        f"{24 * roofline.days:.1f} h",
        *([f"{each.hours} h"] if hours else []),
        f"{found.compile_seconds:.0f} s",
      ]
    )
  return tables.markdown(rows, headings)


def _times(ratio: float | None) -> str:
  return "" if ratio is None else f"{ratio:.2f}x"


def measured(times: Mapping[Entry, Timed]) -> str:
  """Returns the table of timed steps: medians, and ranges over rounds."""
  headings = (
    *NAMED,
    "flops an image",
    "ratio",
    "encoder's share",
    "step",
    "ratio",
    "of single rounds",
    "CPU time",
    "ratio",
    "of single rounds",
  )
  rows = []
  for each, taken in times.items():
    config = reduced(each, 1)
    count = flops_per_image(config)
    whole = flops_per_image(reduced(each.base, 1))
    cells = [f"{count:.3g}", _times(whole / count)]
    cells.append(f"{encoders_share(config):.0%}")
    for mine, base in zip(taken, times[each.base], strict=True):
      cells.append(f"{np.median(mine):.2f} s")
      if each == each.base:
        cells += ["", ""]
        continue
      turns = base / mine
      cells.append(_times(float(np.median(base) / np.median(mine))))
      cells.append(f"{turns.min():.2f} to {turns.max():.2f}")
    rows.append([*each.cells, *cells])
  return tables.markdown(rows, headings)


def draw(compared: Ratios, page: pathlib.Path) -> None:
  """Plots speed-ups as groups of bars."""
  with plots.figure(page, 9, 4.5) as figure:
    axes = figure.subplots()
    width = 0.86 / len(compared)
    for number, (name, values) in enumerate(compared.items()):
      found = {FASTER.index(each): ratio for each, ratio in values.items()}
      shift = (number - (len(compared) - 1) / 2) * width
      bars = axes.bar(
        [place + shift for place in found],
        list(found.values()),
        width,
        label=name,
        color="black" if number == 0 else f"C{number - 1}",
      )
      axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(
      range(len(FASTER)),
      [f"ViT-{each.model}, decoder of {each.decoder_depth}" for each in FASTER],
    )
    axes.set_ylabel("speed-up over mask tokens in the encoder")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)


def discussion(
  compared: Ratios, slices: Mapping[str, Mapping[Entry, Compiled]]
) -> str:
  """Returns the discussion of the results."""
  paper = compared["flops on paper"]
  reached = [share_of_peak(each) for each in ENTRIES]
  of_paper = [compared["published"][each] / paper[each] for each in FASTER]
  small = compared["small: CPU time"]
  first = (
    "**Published times are nearly proportional to flops.** In the order of the "
    "table, published speed-ups are "
    f"{', '.join(f'{each:.0%}' for each in of_paper)} of those in counted "
    "flops. The six runs used the cores about equally well, at "
    f"{min(reached):.0%} to {max(reached):.0%} of their peak."
  )
  second = [
    "**Lower bounds shrink less.** The programs' flops have the counted "
    "ratios. But parameters, moments, gradients and the decoder's activations "
    "pass through HBM, whether or not the encoder sees mask tokens."
  ]
  for name, entries in slices.items():
    fit = [(e.found, e.roofline) for e in entries.values() if e.roofline]
    ratio = compared[f"roofline, {name}"]
    if not fit or not ratio:
      continue
    bound = sum(roofline.bound == "HBM" for _, roofline in fit)
    state = [
      state_traffic(found) / found.costs.hbm_bytes
      for found, _ in fit
      if found.costs
    ]
    second.append(
      f"On {name}, HBM bounds {bound} of {len(fit)} steps. State alone is "
      f"{min(state):.0%} to {max(state):.0%} of the traffic. Rooflines give "
      f"speed-ups of {_range(ratio.values())}, which are "
      f"{_share(ratio, paper)} of the ratios in flops."
    )
    if name == PAPER_SLICE:
      slower = [
        entry.hours / (24 * each.roofline.days)
        for entry, each in entries.items()
        if each.roofline
      ]
      second.append(
        "The published times, of another program on this slice, are "
        f"{_range(slower)} these bounds."
      )
  second.append(
    "A data-parallel program close to its bound would be faster with and "
    "without mask tokens, and would gain less without them."
  )
  third = (
    f"**Small networks on a CPU** gain {_range(small.values())} in CPU time, "
    f"{_share(small, compared['small: flops'])} of their ratios in flops. "
    "Operations other than products have a larger share at small widths, and a "
    "CPU is not a TPU. This shows the order of the gain, not its size on an "
    "accelerator."
  )
  return "\n\n".join(
    textwrap.fill(each, 80) for each in (first, " ".join(second), third)
  )


def _range(values: Iterable[float]) -> str:
  found = list(values)
  return f"{min(found):.1f}x to {max(found):.1f}x"


def _share(found: Mapping[Entry, float], of: Mapping[Entry, float]) -> str:
  shares = [ratio / of[each] for each, ratio in found.items()]
  return f"{min(shares):.0%} to {max(shares):.0%}"


def write(
  times: Mapping[Entry, Timed],
  slices: Mapping[str, Mapping[Entry, Compiled]],
  batch_size: int,
  loads: tuple[float, float],
) -> None:
  """Writes the page and its plot.

  Args:
    times: timed steps on this machine.
    slices: compiled steps by slice.
    batch_size: batch size of the timed steps.
    loads: load of the machine before and after the timed steps.
  """
  compared = ratios(slices, times)
  draw(compared, OUT)
  rounds = len(next(iter(times.values())).wall)
  tables = "\n\n".join(
    f"### {name}\n\n{estimated(entries, name == PAPER_SLICE)}"
    for name, entries in slices.items()
  )
  about = machine.about(("jax", "libtpu"))
  text = f"""# The paper's table 2, in flops and in time

Written by `python -m bench.table2` (`make table2`). He et al. 2021 report the
wall-clock time of 800 epochs on 128 TPU v3 cores with mask tokens in the
encoder, without them, and with a decoder of one block. This page compares the
published speed-ups with those in counted flops, in rooflines of compiled
programs, and in timed steps of small networks ("small", a quarter of the
width). Nothing ran on a TPU.

An encoder with mask tokens sees all patches: masked patches are one learned
vector plus their positions. The decoder then adds no mask tokens
(`WithMaskTokens` in `mae_jax/models/masked_input.py`).

{summary(compared)}

![each column of the table as bars]({OUT.stem}.svg)

{discussion(compared, slices)}

## Published times, and flops on paper

Flops are those of the matrix products of a train step on one image. The
encoder's share counts its blocks. The last column is the share of the
documented peak that {EPOCHS} epochs of {planned_step.IMAGENET:,} images reach
in the published time.

{published()}

## Compiled for slices of TPUs

Steps are compiled as by `python -m mae_jax plan`: batch 4096, bfloat16, data
parallel. Numbers are for one device (a core of v3). Times are rooflines: the
largest of compute, HBM and interconnect time at documented speeds. No step is
faster, and real steps are slower. "State" is the share of HBM traffic for
reading and writing parameters and moments once. `model.remat` is the recipe's
`auto`, which saves products, or `full` where mask tokens would not fit
otherwise. The program's flops include recomputation.

{tables}

## Measured, small

Whole train steps in float32, batch {batch_size}, on this machine's CPU
({about}; load {loads[0]:.1f} before the steps, {loads[1]:.1f} after). Widths,
heads and MLPs are divided by {SHRINK}. Depths, tokens and widths of heads are
not, so encoder and decoder keep their shares, except that attention's share
grows. After two warm-up steps, the six networks take turns for {rounds} rounds
of two steps, of which the second counts. Steps are medians, and ratios are
ratios of medians, with the lowest and highest ratio of single rounds. CPU time
is that of all threads; other work on the machine disturbs it less than wall
time.

{measured(times)}
"""
  OUT.write_text(text)
  print(text)


def main() -> None:
  """Measures, compiles and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--slices", type=flags.slices, default=",".join(SLICES))
  parser.add_argument(
    "--rounds", type=flags.whole(), default=25, help="rounds of timed steps"
  )
  parser.add_argument(
    "--batch_size",
    type=flags.whole(),
    default=8,
    help="batch size of timed steps",
  )
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  before = os.getloadavg()[0]
  times = timed(args.rounds, args.batch_size)
  loads = before, os.getloadavg()[0]
  slices: dict[str, dict[Entry, Compiled]] = {}
  for name in args.slices:
    where = topology.open_topology(name)
    slices[name] = {
      each: compiled(each, where) for each in tqdm.tqdm(ENTRIES, name)
    }
  write(times, slices, args.batch_size, loads)


if __name__ == "__main__":
  main()
