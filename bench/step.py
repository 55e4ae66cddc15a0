r"""Compares a train step on CPU with transformers' ViTMAE in PyTorch.

    python -m bench.step [--models=CIFAR] [--dtypes=float32] [--cores=2,1]

It writes `bench/results/step.md` and `bench/results/step.svg`. A step is
forward, backward and AdamW of the same network on the same batch, at 224 and at
32 pixels. Each program is a process that waits while another one steps. They
take turns for several rounds, and the first step of each turn does not count.
Times are medians, and ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from bench.lib import flags, machine, plots, timed_steps, worker
from mae_jax.utils import tables

OUT = flags.RESULTS / "step.md"
PEER = "PyTorch"
DTYPES = ("float32", "bfloat16")
HEADINGS = (
  "network",
  "dtype",
  "cores",
  "program",
  "ms a step",
  "images/s",
  "against PyTorch",
  "CPU ms a step",
  "against PyTorch, CPU",
)
# The same programs with huge pages for the memory of the C library.
HUGE = ", huge pages"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
ABOUT = """\

- "PyTorch" is transformers' ViTMAE with fused attention and fused AdamW, with
  autocast for bfloat16, on images that are float32 already. "Compiled" uses
  torch.compile.
- "mae_jax" is `task=pretrain` on uint8 images, with its checks and counters.
  "Split" has one device for each core (`mesh.cpu_devices`).
- "ViT-B/16" has 16 images of 224 pixels. "CIFAR" has 128 images of 32 pixels,
  patches of 4 pixels, a width of 192, 12 blocks, and a decoder of 4 blocks.
- "Huge pages" sets GLIBC_TUNABLES=glibc.malloc.hugetlb=1.
- "Against PyTorch" is the time of the row "PyTorch" divided by the program's
  time: above 1 is faster.
"""

FOUND = """\
The rest of this page was measured separately, and is not updated with the
table.

The first step of a turn is slower than the steps of a run. Memory that a step
frees is taken by the virtual machine before the next turn. Programs that
allocate memory anew in each step lose most: with first steps counted, mae_jax's
ViT-B in float32 took 6191 ms instead of 3515 on two cores, and 14497 instead of
6445 on one. PyTorch's first steps took 6022 ms on two cores and 9991 on one.

On another day, the same processor gave 1.47x and 1.48x for ViT-B in float32
(two cores and one), where this table has 1.41x and 1.42x. PyTorch with huge
pages took 5577 ms on that day, in three steps with a large spread.

The goal was 1.00x of PyTorch in float32, and the minimum 0.80x. The goal is
reached here, and missed on a processor with only AVX2 (below).

XLA for CPUs has no bfloat16 products. It converts to float32 and back, and
reaches 0.52x to 0.62x of PyTorch, whose ViT-B is more than twice as fast in
bfloat16 as in float32. Use float32 on CPU.

## On another processor

A processor with only AVX2 (2 cores, AMD EPYC, the same versions, load 0.9),
float32, 3 rounds for ViT-B and 4 for CIFAR. The first steps of turns are
counted, so ViT-B's are slower than those of a run:

| network | cores | PyTorch | compiled | mae_jax | against PyTorch |
|---|---|---|---|---|---|
| ViT-B/16 | 2 | 9566 ms | 9841 ms | 12145 ms | 0.79x |
| ViT-B/16, both with huge pages | 2 | 9348 ms | | 11200 ms | 0.83x |
| ViT-B/16 | 1 | 15092 ms | 15392 ms | 23766 ms | 0.64x |
| CIFAR | 2 | 1618 ms | 1613 ms | 2192 ms | 0.74x |
| CIFAR, both with huge pages | 2 | 1559 ms | | 1720 ms | 0.91x |
| CIFAR | 1 | 2323 ms | 2262 ms | 3045 ms | 0.76x |

## Where the time goes

Profiles on two AVX2 cores, whose clock varies by a fifth:

- Matrix products run at 70 to 145 GFLOP/s in mae_jax and in PyTorch, and
  neither is faster at all shapes. They take 6.2 of 10.2 s of a ViT-B step, at
  83 to 130 GFLOP/s.
- A step allocates its temporary memory anew (3.2 GB for ViT-B, 1.1 GB for
  CIFAR), and Linux provides it page by page. A ViT-B step has 790,000 page
  faults (PyTorch 243,000), which take 3.0 of its 20 s of CPU time. A CIFAR step
  has 279,000 (PyTorch 88,000), 0.8 of 3.6 s. Pure copies lose most: slices of
  stacked kernels take 0.4 s. With huge pages, there are 2,200 faults and 0.9 s
  (ViT-B), and 1,300 and 0.2 s (CIFAR). All programs get huge pages if
  /sys/kernel/mm/transparent_hugepage/enabled is "always".
- The rest is work between products: transposed copies of gradients and of
  attention's heads (0.18 s of a CIFAR step), GELU, norms and sums.

## Tried, and not adopted

- An allocator that reuses its memory (MALLOC_MMAP_MAX_=0, one arena): no page
  faults after the first step, but no step faster than with huge pages.
- Products by Eigen instead of YNNPACK, XNNPACK or oneDNN (XLA flags): no
  change.
- XLA's older fusions (`--xla_cpu_use_fusion_emitters=false`): a CIFAR step
  takes 9 % longer, in two runs of 3 rounds.
- A custom gradient that computes kernel gradients with examples and tokens as
  one axis: it removes all 65 transposed copies, and is 5 % to 15 % faster for
  CIFAR in two runs and 3 % for ViT-B. But `jax.checkpoint` does not see
  products inside a custom gradient, so model.remat=dots would recompute all of
  them. One axis in the forward pass instead gains 3 %.
- A device for each core (the rows "split", `mesh.cpu_devices=2`): slower for
  ViT-B, and no faster for CIFAR.
- Attention's logits in chunks of 3 or 12 MB: 3.59 and 4.04 s instead of 3.60
  (ViT-B, on a processor with AVX-512). A handwritten gradient there: no gain.
- Not tried: skipping predictions of visible patches, and their rows in the last
  decoder block except for keys and values. This would save 1.6 % of the counted
  flops of a ViT-B step and 2 % of a CIFAR step, and needs a gather whose
  gradient is a scatter.
- Adopted: GELU with erf instead of erfc is 3.5 % to 5 % faster.
"""

Case = tuple[str, str, int]  # network, dtype, cores
Times = dict[str, np.ndarray]  # by program: [steps, 2], wall and CPU seconds


def programs(cores: int) -> list[str]:
  """Returns the programs to compare on a number of cores."""
  names = [
    name
    for name in timed_steps.PROGRAMS
    if cores > 1 or not name.endswith("split")
  ]
  return [*names, PEER + HUGE, "mae_jax" + HUGE]


def measure(case: Case, names: Sequence[str], rounds: int) -> Times:
  """Times steps of all programs in turn."""
  # Small steps are repeated, so that rounds take about as long.
  steps = {"CIFAR": 4}.get(case[0], 1)
  with contextlib.ExitStack() as stack:
    running = {}
    for name in tqdm.tqdm(names, f"{case}: start", leave=False):
      program = name.removesuffix(HUGE)
      command = [sys.executable, timed_steps.__file__, program, *map(str, case)]
      variables = HUGE_PAGES if program != name else {}
      running[name] = worker.Worker(command, **variables)
      stack.callback(running[name].close)
    times: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _ in tqdm.trange(rounds, desc=f"{case}: rounds", leave=False):
      for name, process in running.items():
        # Memory that a step freed was taken by the machine during other turns,
        # so the first step of a turn is slower than steps of a run.
        lines = process.ask(f"{steps + 1}", steps + 1)[1:]
        times[name].append(np.array([line.split() for line in lines], float))
  return {name: np.concatenate(some) for name, some in times.items()}


def medians(times: Times) -> dict[str, np.ndarray]:
  """Returns, by program, the medians of wall and CPU seconds, [2]."""
  return {name: np.median(some, axis=0) for name, some in times.items()}


def rows(case: Case, times: Times) -> Iterator[list[str]]:
  """Yields the rows of the table."""
  found = medians(times)
  batch = timed_steps.MODELS[case[0]].batch
  for name, (wall, cpu) in found.items():
    faster = found[PEER] / (wall, cpu)
    yield [
      *map(str, case),
      name,
      f"{1e3 * wall:.0f}",
      f"{batch / wall:.2f}" if batch / wall < 10 else f"{batch / wall:.0f}",
      f"{faster[0]:.2f}x",
      f"{1e3 * cpu:.0f}",
      f"{faster[1]:.2f}x",
    ]


def draw(results: dict[Case, Times], page: pathlib.Path) -> None:
  """Plots images/s relative to PyTorch, one group of bars per case."""
  names = [name for name in programs(cores=2) if name != PEER]
  with plots.figure(page, 9, 3.5) as figure:
    axes = figure.subplots()
    for k, name in enumerate(names):
      at, heights = [], []
      for i, times in enumerate(results.values()):
        found = medians(times)
        if name in found:
          at.append(i + 0.17 * (k - 2))
          heights.append(found[PEER][0] / found[name][0])
      axes.bar(at, heights, 0.16, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    labels = [
      f"{model}\n{dtype}\n{cores} core{'s' if cores > 1 else ''}"
      for model, dtype, cores in results
    ]
    axes.set_xticks(range(len(results)), labels, fontsize=8)
    axes.set_ylabel("images/s, PyTorch = 1")
    axes.legend(fontsize=8, ncols=3, loc="upper center")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])


def report(results: dict[Case, Times], given: argparse.Namespace) -> str:
  """Returns the page."""
  lines = [
    "# A train step on CPU, beside PyTorch",
    "",
    f"Written by `{machine.command('step')}` (`make step`).",
    *__doc__.split("`bench/results/step.svg`. ")[1].strip().splitlines(),
    *ABOUT.splitlines(),
    "",
    f"{given.rounds} rounds on {machine.about(PACKAGES)}.",
    "",
    f"![images a second against PyTorch]({given.out.stem}.svg)",
    "",
    tables.markdown(
      [row for case, times in results.items() for row in rows(case, times)],
      HEADINGS,
    ),
    "",
    FOUND,
  ]
  return "\n".join(lines)


def main() -> None:
  """Measures every case and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--models",
    type=flags.among(timed_steps.MODELS),
    default=",".join(timed_steps.MODELS),
  )
  parser.add_argument(
    "--dtypes", type=flags.among(DTYPES), default=",".join(DTYPES)
  )
  most = len(os.sched_getaffinity(0))
  parser.add_argument(
    "--cores", type=flags.wholes(1, most), default="2,1" if most > 1 else "1"
  )
  parser.add_argument(
    "--programs",
    nargs="+",
    choices=programs(most),
    default=[],
    help=f"programs to compare with {PEER}; default: all",
  )
  parser.add_argument("--rounds", type=flags.whole(), default=7)
  parser.add_argument("--out", type=flags.page, default=OUT)
  given = parser.parse_args()
  results = {}
  for model in given.models:
    for dtype in given.dtypes:
      for cores in given.cores:
        case = model, dtype, cores
        names = dict.fromkeys([PEER, *(given.programs or programs(cores))])
        results[case] = measure(case, list(names), given.rounds)
        for row in rows(case, results[case]):
          tqdm.tqdm.write(" ".join(row))
  draw(results, given.out)
  given.out.write_text(report(results, given))
  print(f"wrote {given.out}")


if __name__ == "__main__":
  main()
