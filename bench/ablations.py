"""Trains changed recipes with several seeds, and compares their results.

  python -m bench.ablations [--data=digits] [--seeds=3] [CHANGE ...]

Each CHANGE is an argument of `configs/ablations.py`, such as decoder_depth=8 or
"mask=block50,loss=l1". The default is the list DEFAULT. The unchanged recipe is
always the first row, and trainable=decoder starts from it. Each seed of each
change is a run of `mae_jax.main` in --workdir; --jobs of them run at a time.
Interrupted runs resume, and finished runs are only read. It writes
`bench/results/ablations.md`, a plot (`ablations.svg`), and pictures of
reconstructions (`ablations.png`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from concurrent import futures

import jax
import numpy as np
import tqdm

from bench.lib import figures, flags, machine, plots
from bench.lib.fork_server import ForkServer
from mae_jax.config import overrides, to_dict
from mae_jax.distributed import sharding
from mae_jax.train import tasks
from mae_jax.train.tasks import base
from mae_jax.utils import tables
from mae_jax.utils.errors import ConfigError

OUT = flags.RESULTS / "ablations.md"
RECIPE = "the recipe"
# Two baselines of the probes: random features, and pixels.
UNTRAINED, RAW = "not trained", "raw pixels"
DEFAULT = (
  "decoder_depth=4",
  "decoder_width=96",
  "masked_input=mask_tokens",
  "masked_input=noise",
  "masked_input=pixel_noise",
  "target=norm_pix",
  "target=pca",
  "crop=none",
  "crop=fixed",
  "crop=jitter",
  "mask=random75",
  "mask=block50",
  "mask=block75",
  "mask=grid75",
  "mask=middle",
  "ratios=50/75,mask_schedule=random",
  "ratios=50/75,mask_schedule=sequential",
  "mask_strategies=random/block,mask_schedule=random",
  "loss=l1",
  "loss=smooth_l1",
  "loss=log_cosh",
  "loss_on=all",
  "contrast=image",
  "contrast=batch",
  "discriminator=patch",
  "discriminator=image",
  "trainable=decoder",
  "trainable=decoder,discriminator=patch",
)
# Headings of the table, and names of metrics.
PROBES = {
  "linear probe, 5 a class": "eval_linear_5",
  "linear probe, all": "eval_linear_all",
  "kNN, all": "eval_knn_all",
}
_ONE_DAY = 24 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Run:
  """A run with one change and one seed.

  Attributes:
    change: RECIPE, UNTRAINED, or an argument of `configs/ablations.py`.
    data: "digits", "photos" or "imagenet".
    length: duration of the run; "" for the recipe's.
    seed: random seed.
    root: directory of all runs.
    first: duration of the run that a second stage starts from.
  """

  change: str
  data: str
  length: str
  seed: int
  root: pathlib.Path
  first: str = ""

  @property
  def workdir(self) -> pathlib.Path:
    """The workdir of the run."""
    length = self.length or "whole"
    if is_second_stage(self.change):
      length = f"{self.first or 'whole'} and {length}"
    parts = [self.data, length, self.change, str(self.seed)]
    return self.root.joinpath(*(part.replace(" ", "_") for part in parts))

  @property
  def recipe(self) -> str:
    """The recipe with its arguments."""
    change = f"{self.change}," if self.change not in (RECIPE, UNTRAINED) else ""
    length = f",length={self.length}" if self.length else ""
    return f"configs/ablations.py:{change}data={self.data}{length}"

  @property
  def args(self) -> list[str]:
    """The arguments of `mae_jax.main`."""
    more = ["--config.eval.raw_pixels=false"]
    if self.change == UNTRAINED:
      more = ["--config.optim.lr=0", "--config.train.length=3 steps"]
      more += ["--config.optim.warmup=1 steps", "--config.eval.raw_pixels=true"]
    if is_second_stage(self.change):
      first = dataclasses.replace(self, change=RECIPE, length=self.first)
      more.append(f"--config.init_from={first.workdir}")
    return [
      f"--config={self.recipe}",
      f"--workdir={self.workdir}",
      f"--config.train.seed={self.seed}",
      "--config.model.unroll=1",  # such runs are mostly compiling
      *more,
    ]

  def check(self) -> None:
    """Builds the network and the train step.

    Raises:
      ConfigError: if the run cannot be trained.
    """
    config = overrides.recipe(self.recipe)
    task = tasks.load("pretrain")(config, sharding.make_mesh(config.mesh))
    task.prepare(base.DataInfo(num_examples=10**6))

  def train(self, fork_server: ForkServer) -> None:
    """Starts or resumes the run, and waits for its end.

    Raises:
      ConfigError: if the run fails, with its output, or if a finished run had
        other settings.
    """
    done = self.workdir / "done"
    config = to_dict(overrides.recipe(self.recipe))
    settings = json.dumps([self.args, config])
    if done.exists():
      if done.read_text() != settings:
        raise ConfigError(
          f"{self.workdir} was trained with other settings than those of "
          f"{self.recipe}: remove this directory to train again"
        )
      return
    process = fork_server.start(self.args)
    if process.wait(timeout=_ONE_DAY):
      raise ConfigError(
        f"mae_jax.main {' '.join(self.args)} failed:\n"
        f"{process.log.read_text()[-2000:]}"
      )
    done.write_text(settings)

  def probe_accuracies(self, features: str = "MAE") -> dict[str, float]:
    """Returns accuracies in per cent of probes of "MAE" or RAW features."""
    lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
    last: dict[str, float] = {}
    for line in map(json.loads, lines):
      last |= line
    return {
      heading: 100 * last[f"{name}/{features}"]
      for heading, name in PROBES.items()
      if f"{name}/{features}" in last
    }


def is_second_stage(change: str) -> bool:
  """Checks whether the change starts from the trained recipe."""
  return "trainable=decoder" in change.split(",")


Results = Mapping[str, list[dict[str, float]]]  # by change, one per seed


def table(found: Results) -> str:
  """Returns a table of mean and standard deviation, one row per change."""
  headings = list(found[RECIPE][0])
  rows = []
  for change, seeds in found.items():
    cells = []
    for heading in headings:
      values = np.array([each[heading] for each in seeds if heading in each])
      if not len(values):
        cells.append("")
        continue
      digits = 2 if heading == figures.SHARPNESS else 1
      cell = f"{values.mean():.{digits}f}"
      if len(values) > 1:
        cell += f" ± {values.std(ddof=1):.{digits}f}"
      cells.append(cell)
    rows.append([change, *cells])
  return tables.markdown(rows, ["change", *headings])


def draw(found: Results, page: pathlib.Path) -> None:
  """Plots each seed as a point: one row per change, one column per result."""
  headings, changes = list(found[RECIPE][0]), list(found)
  size = 3 * len(headings), 1 + 0.28 * len(changes)
  with plots.figure(page, *size) as figure:
    columns = figure.subplots(1, len(headings), sharey=True, squeeze=False)[0]
    for axes, heading in zip(columns, headings, strict=True):
      base = np.mean([each[heading] for each in found[RECIPE]])
      axes.axvline(base, color="0.8", zorder=0)
      for row, change in enumerate(changes):
        values = [x[heading] for x in found[change] if heading in x]
        if not values:
          continue
        axes.plot(values, [row] * len(values), "o", ms=4, alpha=0.6, c="C0")
        axes.plot(np.mean(values), row, "|", ms=12, c="black")
      axes.margins(x=0.1)
      axes.set_xlabel(heading if heading not in PROBES else f"{heading}, %")
    columns[0].set_yticks(range(len(changes)), changes)
    columns[0].invert_yaxis()


def text(found: Results, seeds: int, args: argparse.Namespace) -> str:
  """Returns the page."""
  length = f"{args.length} each" if args.length else "each at its full length"
  recipe = f",length={args.length}" if args.length else ""
  over = "one seed" if seeds == 1 else f"{seeds} seeds; mean ± deviation"
  about = [
    f"The recipe `configs/{args.data}.py` with one change, {length}, {over}. "
    "Each row is a run of the command below; the first has no CHANGE."
  ]
  if any(map(is_second_stage, found)):
    second = args.second or "the same length"
    about.append(
      "Runs with `trainable=decoder` start from the recipe's run of the same "
      f"seed (`--config.init_from=WORKDIR`), for {second}."
    )
  if UNTRAINED in found:
    about.append(
      "Accuracies are in per cent, of probes of frozen features on held-out "
      f"images. `{UNTRAINED}` is the recipe after three steps at learning rate "
      f"0, and `{RAW}` uses pixels as features. A change that is no better "
      "than these has learned nothing that the probes can see."
    )
  about.append(
    f"PSNR and sharpness are measured on masked patches of {figures.IMAGES} "
    "held-out images. Masks are random, with each run's own mask ratio, so "
    "rows with different ratios cannot be compared. `pixel_noise` never saw a "
    "fully masked patch. For `norm_pix`, mean and deviation are estimated from "
    "visible patches. Sharpness is the mean difference of neighboring pixels "
    "of a patch, divided by that of the images; noise is sharp too. These are "
    "small networks on little data: they do not predict results at the paper's "
    "scale. The paper's table is in `configs/ablations.py`."
  )
  return f"""# Recipes with one change

Written by

    {args.command}

{textwrap.fill(" ".join(about), 80, break_on_hyphens=False)}

    python -m mae_jax.main \\
      --config="configs/ablations.py:CHANGE,data={args.data}{recipe}" \\
      --config.train.seed=SEED --config.model.unroll=1 --workdir=...

{machine.about(("jax", "flax"))}.

{table(found)}

![each seed as a point]({args.out.with_suffix(".svg").name})

Each point is a seed, and each tick the mean of the seeds. The gray line is the
recipe's mean. The pictures below are reconstructions of one seed. They show the
recipe's visible patches; a change may mask other patches.

![reconstructions of each network]({args.out.with_suffix(".png").name})
"""


def main(argv: Sequence[str] | None = None) -> None:
  """Trains all runs that are not finished, and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("changes", nargs="*", default=DEFAULT, metavar="CHANGE")
  parser.add_argument("--data", default="digits")
  parser.add_argument("--seeds", type=flags.whole(), default=3)
  parser.add_argument(
    "--length",
    default="",
    help="for instance 500 steps; default: the recipe's length",
  )
  parser.add_argument(
    "--second", help="length of runs with trainable=decoder; default: --length"
  )
  parser.add_argument(
    "--jobs", type=flags.whole(), default=2, help="number of runs at a time"
  )
  parser.add_argument("--workdir", type=pathlib.Path, default="runs/ablations")
  parser.add_argument("--out", type=flags.page, default=OUT)
  args = parser.parse_args(argv)
  args.command = machine.command("ablations", argv)
  try:
    _run(args)
  except ConfigError as error:
    raise SystemExit(f"error: {error}") from None


def _run(args: argparse.Namespace) -> None:
  changes = list(dict.fromkeys([RECIPE, UNTRAINED, *args.changes]))
  second = args.length if args.second is None else args.second
  if args.second is not None and not any(map(is_second_stage, changes)):
    raise ConfigError(
      f"--second={args.second} is the length of trainable=decoder, and no "
      "CHANGE has it: remove the flag"
    )
  todo = [
    Run(
      change,
      args.data,
      second if is_second_stage(change) else args.length,
      seed,
      args.workdir.absolute(),
      first=args.length,
    )
    for seed in range(args.seeds)
    for change in changes
  ]
  for each in todo[: len(changes)]:
    each.check()  # reports mistakes before any training
  try:
    args.workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f"--workdir={args.workdir} cannot be created ({error.strerror}): name "
      "another directory"
    ) from None
  jax.config.update("jax_platforms", "cpu")
  with (
    ForkServer(args.workdir) as fork_server,
    futures.ThreadPoolExecutor(args.jobs) as pool,
  ):

    def train(run: Run) -> Run:
      run.train(fork_server)
      return run

    try:
      # Second stages start from these runs.
      first = pool.map(train, (x for x in todo if x.change == RECIPE))
      for _ in tqdm.tqdm(first, RECIPE, total=args.seeds):
        pass
      found: dict[str, list[dict[str, float]]] = {}
      trained = pool.map(train, todo)
      pictures: dict[str, figures.Reconstructions] = {}
      for run in tqdm.tqdm(trained, "all", total=len(todo)):
        result = run.probe_accuracies()
        if run.change == UNTRAINED:
          if not result:
            continue  # the data has no labels
          found.setdefault(RAW, []).append(run.probe_accuracies(RAW))
        else:
          pictures[run.change] = figures.reconstruct(run.workdir)
          result |= pictures[run.change].figures()
        found.setdefault(run.change, []).append(result)
        if run.change == changes[-1]:
          # Writes after each seed, so that an interruption loses little.
          draw(found, args.out)
          figures.draw(pictures, args.out.with_suffix(".png"))
          args.out.write_text(text(found, run.seed + 1, args))
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  print(args.out.read_text())


if __name__ == "__main__":
  main()
