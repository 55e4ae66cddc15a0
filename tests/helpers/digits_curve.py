"""Writes the loss curves of the digits recipe for `test_curve`, and a figure.

    python -m tests.helpers.digits_curve

With a seed as argument, it prints that seed's curve instead; with "figure", it
draws the stored curves. Run it when a change moves the curve on purpose, and
say so in the changelog.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import jax

from bench.lib import plots
from configs import digits
from mae_jax.config import Config, from_config_dict
from mae_jax.distributed import sharding
from mae_jax.train import loop
from tests.helpers import runs

FILE = pathlib.Path(__file__).with_name("digits_curve.json")
FIGURE = pathlib.Path(__file__).parents[2] / "docs/images/digits_curve.svg"
SEEDS = (0, 1, 2)


def recipe(seed: int) -> Config:
  """Returns the digits recipe without probes and pictures."""
  config = digits.get_config()
  config.train.seed = seed
  config.train.log_every = "50 steps"
  config.eval.images = 0
  config.data.eval_split = ""
  return from_config_dict(config)


def losses(seed: int) -> dict[str, float]:
  """Trains the whole recipe; returns the training loss at each logged step."""
  config = recipe(seed)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as workdir:
    task, data = runs.open_task(config, mesh)
    loop.run(task, data, config, mesh, workdir)
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return {
    str(each["step"]): round(each["loss"], 5)
    for each in records
    if "loss" in each  # the last line holds the evaluation
  }


def draw() -> None:
  """Draws the stored curves for the documentation."""
  with plots.figure(FIGURE, 6.4, 3.2) as figure:
    axes = figure.subplots()
    for number, curve in enumerate(json.loads(FILE.read_text()).values()):
      axes.plot(
        [int(step) for step in curve], curve.values(), f"C{number}", lw=1.2,
        label=f"seed {number}",
      )  # fmt: skip
    axes.axhline(1, color="gray", ls=":", lw=1)
    axes.text(2500, 1.01, "predicting the mean color", ha="right", va="bottom",
              color="gray")  # fmt: skip
    axes.set(
      xlabel="step of 64 images", ylabel="training loss", xlim=(0, 2500),
      ylim=(0.2, 1.1),
    )  # fmt: skip
    axes.legend(frameon=False, loc="center right")


if __name__ == "__main__":
  if sys.argv[1:] == ["figure"]:
    draw()
  elif sys.argv[1:]:
    print(json.dumps(losses(int(sys.argv[1]))))
  else:
    curves = {str(seed): losses(seed) for seed in SEEDS}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")
    draw()
