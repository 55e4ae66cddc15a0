r"""A train step on CPU beside transformers' ViTMAE in PyTorch.

    python -m bench.step [--models=CIFAR] [--dtypes=float32] [--cores=2,1]

It writes `bench/step.md` and `bench/step.svg`. A step is forward, backward and
AdamW, of the same network on the same batch, at 224 pixels and at 32. Each
contestant is a process of its own that waits while another one steps; they take
turns, several rounds. Figures are medians, ratios those of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import tqdm

from bench import machine, stepping, worker
from mae_jax.plan import report as report_lib

OUT = pathlib.Path(__file__).with_suffix(".md")
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
# Contestants once more, whose memory the C library asks for in huge pages.
HUGE = ", huge pages"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
ABOUT = """\
PyTorch has transformers' ViTMAE with fused attention, its fused AdamW, for
bfloat16 autocast, and images that are normalised already; compiled, by
torch.compile. mae_jax has `task=pretrain`, from uint8, with its checks and
counters; split, with a device for each core (`mesh.cpu_devices`). "Huge pages"
is with GLIBC_TUNABLES=glibc.malloc.hugetlb=1. "Against PyTorch" is the time of
PyTorch's first line by the program's: above 1 is faster.
"""

Case = tuple[str, str, int]  # network, dtype, cores
Times = dict[str, np.ndarray]  # by contestant: [steps, 2], clock and CPU


def contestants(cores: int) -> list[str]:
  """Those of so many cores: one has no use for a device each."""
  names = [
    name
    for name in stepping.CONTESTANTS
    if cores > 1 or not name.endswith("split")
  ]
  return [*names, PEER + HUGE, "mae_jax" + HUGE]


def race(case: Case, names: Sequence[str], rounds: int) -> Times:
  """Lets all take steps in turn."""
  # A round of small steps is as long as one of a large step.
  steps = {"CIFAR": 4}.get(case[0], 1)
  with contextlib.ExitStack() as stack:
    running = {}
    for name in tqdm.tqdm(names, f"{case}: start", leave=False):
      program = name.removesuffix(HUGE)
      command = [sys.executable, stepping.__file__, program, *map(str, case)]
      variables = HUGE_PAGES if program != name else {}
      running[name] = worker.Worker(command, **variables)
      stack.callback(running[name].close)
    times: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _ in tqdm.trange(rounds, desc=f"{case}: rounds", leave=False):
      for name, one in running.items():
        lines = one.ask(f"{steps}", steps)
        times[name].append(np.array([line.split() for line in lines], float))
  return {name: np.concatenate(some) for name, some in times.items()}


def medians(times: Times) -> dict[str, np.ndarray]:
  """By contestant, [2]: seconds of the clock and of CPU."""
  return {name: np.median(some, axis=0) for name, some in times.items()}


def rows(case: Case, times: Times) -> Iterator[list[str]]:
  """Those of the table."""
  found = medians(times)
  batch = stepping.MODELS[case[0]].batch
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


def draw(results: dict[Case, Times], path: pathlib.Path) -> None:
  """Images a second against PyTorch, a group of bars for each case."""
  mpl.use("svg")
  mpl.rcParams["svg.hashsalt"] = "step"  # the same file for the same figures
  from matplotlib import pyplot as plt

  names = [name for name in contestants(cores=2) if name != PEER]
  figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
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
  figure.savefig(path, metadata={"Date": None})


def report(results: dict[Case, Times], rounds: int) -> str:
  """The whole of `bench/step.md`."""
  lines = [
    "# A train step on CPU, beside PyTorch",
    "",
    "Written by `python -m bench.step` (`make step`).",
    *__doc__.split("`bench/step.svg`. ")[1].strip().splitlines(),
    *ABOUT.splitlines(),
    "",
    f"{rounds} rounds on {machine.about(PACKAGES)}.",
    "",
    "![images a second against PyTorch](step.svg)",
    "",
    report_lib.table(
      [row for case, times in results.items() for row in rows(case, times)],
      HEADINGS,
    ),
  ]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs every case and writes the report."""
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("--models", default=",".join(stepping.MODELS))
  flags.add_argument("--dtypes", default=",".join(DTYPES))
  flags.add_argument("--cores", default="2,1")
  flags.add_argument("--programs", default="", help="all, if empty")
  flags.add_argument("--rounds", type=int, default=7)
  flags.add_argument("--out", type=pathlib.Path, default=OUT)
  given = flags.parse_args()
  results = {}
  for model in given.models.split(","):
    for dtype in given.dtypes.split(","):
      for cores in map(int, given.cores.split(",")):
        case = model, dtype, cores
        names = given.programs.split(",") if given.programs else []
        results[case] = race(case, names or contestants(cores), given.rounds)
        for row in rows(case, results[case]):
          tqdm.tqdm.write(" ".join(row))
  draw(results, given.out.with_suffix(".svg"))
  given.out.write_text(report(results, given.rounds))
  print(f"wrote {given.out}")


if __name__ == "__main__":
  main()
