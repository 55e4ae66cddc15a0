"""What a change does to features and pictures: same budget, several seeds.

  python -m bench.ablations [--data=digits] [--seeds=3] [CHANGE ...]

Each CHANGE is an argument of `configs/ablations.py`, such as decoder_depth=8 or
"mask=block50,loss=l1"; without any, it is those of DEFAULT. The recipe itself
is always the first, and what trainable=decoder starts from. Every seed of every
change is a run of `mae_jax.main` in --workdir, --jobs at a time: what was cut
goes on there, and what is done is only read. It writes
`bench/results/ablations.md`, `bench/results/ablations.svg` and, of what
networks paint, `bench/results/ablations.png`.
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

from bench.lib import figures as painted
from bench.lib import flags, machine, plots
from bench.lib.fork_server import ForkServer
from mae_jax.config import overrides, to_dict
from mae_jax.distributed import sharding
from mae_jax.tools.plan import format
from mae_jax.train import tasks
from mae_jax.utils.errors import ConfigError

OUT = pathlib.Path(__file__).with_suffix(".md")
RECIPE = "the recipe"
# Beside the changes, where probes are made: what features are worth that were
# drawn, and none.
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
  "ratios=50/75,mask_schedule=drawn",
  "ratios=50/75,mask_schedule=sequential",
  "mask_strategies=random/block,mask_schedule=drawn",
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
# What is told of a run: headings, and names among its metrics.
PROBES = {
  "linear probe, 5 a class": "eval_linear_5",
  "linear probe, all": "eval_linear_all",
  "kNN, all": "eval_knn_all",
}
_A_DAY = 24 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed of one change.

  Attributes:
    change: RECIPE, or an argument of the config.
    data: the recipe's.
    length: of the run; "" is the recipe's.
    seed: of the run.
    root: where all of them are.
    first: the length of the recipe that a second stage starts from.
  """

  change: str
  data: str
  length: str
  seed: int
  root: pathlib.Path
  first: str = ""

  @property
  def workdir(self) -> pathlib.Path:
    """Where it is, or will be."""
    length = self.length or "whole"
    if second_stage(self.change):
      length = f"{self.first or 'whole'} and {length}"
    parts = [self.data, length, self.change, str(self.seed)]
    return self.root.joinpath(*(part.replace(" ", "_") for part in parts))

  @property
  def recipe(self) -> str:
    """The config that it has."""
    change = f"{self.change}," if self.change not in (RECIPE, UNTRAINED) else ""
    length = f",length={self.length}" if self.length else ""
    return f"configs/ablations.py:{change}data={self.data}{length}"

  @property
  def args(self) -> list[str]:
    """The command line."""
    more = ["--config.eval.raw_pixels=false"]
    if self.change == UNTRAINED:
      more = ["--config.optim.lr=0", "--config.train.length=3 steps"]
      more += ["--config.optim.warmup=1 steps", "--config.eval.raw_pixels=true"]
    if second_stage(self.change):
      first = dataclasses.replace(self, change=RECIPE, length=self.first)
      more.append(f"--config.init_from={first.workdir}")
    return [
      f"--config={self.recipe}",
      f"--workdir={self.workdir}",
      f"--config.train.seed={self.seed}",
      "--config.model.unroll=1",  # most of such a run is compiling
      *more,
    ]

  def check(self) -> None:
    """Builds its network and train step.

    Raises:
      ConfigError: if it could not be trained.
    """
    config = overrides.recipe(self.recipe)
    tasks.load("pretrain")(config, sharding.make_mesh(config.mesh))

  def train(self, fork_server: ForkServer) -> None:
    """Runs it to its end, or goes on.

    Raises:
      ConfigError: with what it said, if it fails; if what is done had other
        settings.
    """
    done = self.workdir / "done"
    config = to_dict(overrides.recipe(self.recipe))
    settings = json.dumps([self.args, config])
    if done.exists():
      if done.read_text() != settings:
        raise ConfigError(
          f"{self.workdir} was trained with other settings than {self.recipe} "
          "has by now: remove it"
        )
      return
    process = fork_server.start(self.args)
    if process.wait(timeout=_A_DAY):
      raise ConfigError(
        f"mae_jax.main {' '.join(self.args)} failed:\n"
        f"{process.log.read_text()[-2000:]}"
      )
    done.write_text(settings)

  def probed(self, features: str = "MAE") -> dict[str, float]:
    """What probes of its network's features, or of raw pixels, reach."""
    lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
    last: dict[str, float] = {}
    for line in map(json.loads, lines):
      last |= line
    return {
      heading: 100 * last[f"{name}/{features}"]
      for heading, name in PROBES.items()
      if f"{name}/{features}" in last
    }


def second_stage(change: str) -> bool:
  """Whether it goes on from the recipe."""
  return "trainable=decoder" in change.split(",")


Found = Mapping[str, list[dict[str, float]]]  # by change, of each seed


def table(found: Found) -> str:
  """Mean and standard deviation over seeds, a row a change."""
  headings = list(found[RECIPE][0])
  rows = []
  for change, seeds in found.items():
    cells = []
    for heading in headings:
      values = np.array([each[heading] for each in seeds if heading in each])
      if not len(values):
        cells.append("")
        continue
      digits = 2 if heading == painted.SHARPNESS else 1
      cell = f"{values.mean():.{digits}f}"
      if len(values) > 1:
        cell += f" ± {values.std(ddof=1):.{digits}f}"
      cells.append(cell)
    rows.append([change, *cells])
  return format.table(rows, ["change", *headings])


def draw(found: Found, page: pathlib.Path) -> None:
  """Each seed as a point, a row a change and a column a figure."""
  headings, changes = list(found[RECIPE][0]), list(found)
  size = 3 * len(headings), 1 + 0.28 * len(changes)
  with plots.figure(page, *size) as figure:
    every = figure.subplots(1, len(headings), sharey=True, squeeze=False)[0]
    for axes, heading in zip(every, headings, strict=True):
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
    every[0].set_yticks(range(len(changes)), changes)
    every[0].invert_yaxis()


def text(found: Found, seeds: int, args: argparse.Namespace) -> str:
  """The page."""
  length = f"{args.length} each" if args.length else "each at its full length"
  recipe = f",length={args.length}" if args.length else ""
  over = "one seed" if seeds == 1 else f"{seeds} seeds; mean ± deviation"
  about = [
    f"The recipe `configs/{args.data}.py` with one thing changed, {length}, "
    f"{over}. A row is the command below; the recipe's has no CHANGE."
  ]
  if any(map(second_stage, found)):
    second = args.second or "as long once more"
    about.append(
      "Those with `trainable=decoder` go on from the recipe's of the same seed "
      f"(`--config.init_from=` its workdir), {second}."
    )
  if UNTRAINED in found:
    about.append(
      "Accuracies are in per cent, of frozen features of held-out images. "
      f"`{UNTRAINED}` is the recipe with three steps of rate 0, `{RAW}` are no "
      "features: where others are no better, the table says nothing of them."
    )
  about.append(
    f"PSNR and sharpness are of {painted.IMAGES} held-out images, painted "
    "where hidden, under random masks of the share that was trained with: rows "
    "with another share compare with nobody, `pixel_noise` never saw a patch "
    "hidden as a whole, and of `norm_pix` mean and deviation are estimated "
    "from visible patches. Sharpness is the mean difference of neighboring "
    "pixels of a patch, 1 for the images themselves; noise has it too. Small "
    "networks on little data tell what a setting does here, not what it would "
    "at the size of the paper, whose table stands in `configs/ablations.py`."
  )
  return f"""# One thing changed

Written by

    {args.command}

{textwrap.fill(" ".join(about), 80, break_on_hyphens=False)}

    python -m mae_jax.main \\
      --config="configs/ablations.py:CHANGE,data={args.data}{recipe}" \\
      --config.train.seed=SEED --config.model.unroll=1 --workdir=...

{machine.about(("jax", "flax"))}.

{table(found)}

![each seed as a point]({args.out.with_suffix(".svg").name})

Each seed is a point, their mean a tick; the gray line is the recipe's mean.
Below is what networks of one seed paint; where a change hides other patches
than the recipe, it sees others than shown here.

![what each network paints]({args.out.with_suffix(".png").name})
"""


def main(argv: Sequence[str] | None = None) -> None:
  """Runs what is not done, and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("changes", nargs="*", default=DEFAULT, metavar="CHANGE")
  parser.add_argument("--data", default="digits")
  parser.add_argument("--seeds", type=flags.whole(), default=3)
  parser.add_argument(
    "--length", default="", help='for instance "500 steps"; "": the recipe\'s'
  )
  parser.add_argument(
    "--second", help="length of trainable=decoder; --length if not given"
  )
  parser.add_argument(
    "--jobs", type=flags.whole(), default=2, help="runs at a time"
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
  if args.second is not None and not any(map(second_stage, changes)):
    raise ConfigError(
      f"--second={args.second} is the length of trainable=decoder, which no "
      "CHANGE has: leave it out"
    )
  todo = [
    Run(
      change,
      args.data,
      second if second_stage(change) else args.length,
      seed,
      args.workdir.absolute(),
      first=args.length,
    )
    for seed in range(args.seeds)
    for change in changes
  ]
  for each in todo[: len(changes)]:
    each.check()  # what is wrong is told before any work
  try:
    args.workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f"--workdir={args.workdir} cannot be made ({error.strerror}): name a "
      "directory"
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
      # Others start from it.
      first = pool.map(train, (x for x in todo if x.change == RECIPE))
      for _ in tqdm.tqdm(first, RECIPE, total=args.seeds):
        pass
      found: dict[str, list[dict[str, float]]] = {}
      trained = pool.map(train, todo)
      pictures: dict[str, painted.Painted] = {}
      for run in tqdm.tqdm(trained, "all", total=len(todo)):
        figures = run.probed()
        if run.change == UNTRAINED:
          if not figures:
            continue  # there are no labels
          found.setdefault(RAW, []).append(run.probed(RAW))
        else:
          pictures[run.change] = painted.paint(run.workdir)
          figures |= pictures[run.change].figures()
        found.setdefault(run.change, []).append(figures)
        if run.change == changes[-1]:
          # Whole seeds are told at once: what is cut short is not lost.
          draw(found, args.out)
          painted.draw(pictures, args.out.with_suffix(".png"))
          args.out.write_text(text(found, run.seed + 1, args))
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  print(args.out.read_text())


if __name__ == "__main__":
  main()
