"""Logs of runs that never ran, to test reports."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from mae_jax.config import Config
from mae_jax.train import metrics, run_info
from tests.helpers import runs

STEPS, EVALUATED = 6, (3, 6)


def write(
  workdir: pathlib.Path, config: Config, evaluated: Sequence[int]
) -> None:
  """Writes a training log of STEPS steps with meaningless values."""
  random = np.random.default_rng(zlib.crc32(workdir.name.encode()))
  workdir.mkdir(parents=True)
  writer = metrics.Writer(workdir, start_step=0, total_steps=STEPS)
  for step in range(1, STEPS + 1):
    values = {
      "loss": 1 / step + random.random() / 9,
      "lr": config.optim.lr,
      "grad_norm": random.random(),
      "skipped": 0.0,
      "unreadable": 2.0,
      "images_per_second": 100 * random.random(),
    }
    if step in evaluated:
      picture = random.integers(0, 256, (112, 448, 3), np.uint8)
      writer.image(step, "reconstructions", picture)
      values |= {
        "eval_loss": 1 / step,
        "eval_linear_2/MAE": 0.5 + random.random() / 3,
        "eval_linear_2/raw pixels": 0.5,
        "eval_linear_2_std/MAE": 0.02,
        "eval_linear_2_std/raw pixels": 0.01,
        "eval_seconds": 1.5,
      }
    writer.scalars(step, values)
  writer.close()
  run_info.write_run_info(
    workdir, config, runs.devices_mesh(1), STEPS, 2_500_000
  )
