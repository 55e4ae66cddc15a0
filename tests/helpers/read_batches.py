"""A program in which several processes read every kind of data together.

Its arguments are HOST:PORT COUNT NUMBER SETTINGS OUT. SETTINGS is JSON: for
each name, a section `data`. Process 0 writes OUT.npz with the global batches.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import jax
import numpy as np

from mae_jax import distributed
from mae_jax.config import DataConfig, MeshConfig
from mae_jax.data import pipeline, sources
from mae_jax.distributed import sharding

STEPS = 6


def streams(data: DataConfig, rows: np.ndarray):
  """Reads the first steps of training, of a resumed run, and of evaluation."""
  train = sources.open_source(data, "train")
  steps = pipeline.train_batches(train, data, seed=3, rows=rows, start_step=2)
  held_out = sources.open_source(data, "eval")
  return {
    "train": itertools.islice(steps, STEPS),
    "eval": pipeline.eval_batches(
      held_out, data, batch_size=data.batch_size, rows=rows
    ),
  }


def data(settings: dict) -> DataConfig:
  """Converts the JSON settings to a config section."""
  lists = {k: tuple(v) for k, v in settings.items() if isinstance(v, list)}
  return DataConfig(**(settings | lists))


def main(args: Sequence[str]) -> None:
  """Reads, gathers and writes."""
  where, count, number, settings, out = args
  jax.config.update("jax_num_cpu_devices", 1)
  distributed.start(
    distributed.ProcessInfo(where, int(count), int(number)),
    start_seconds=120,
    heartbeat=30,
  )
  mesh = sharding.make_mesh(MeshConfig())
  gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  found = {}
  for name, section in json.loads(settings).items():
    each = data(section)
    rows = sharding.local_rows(mesh, each.batch_size)
    assert len(rows) == each.batch_size // int(count)
    for kind, batches in streams(each, rows).items():
      for step, batch in enumerate(batches):
        whole = gather(sharding.to_global(mesh, batch, each.batch_size))
        for key, value in whole.items():
          found[f"{name} {kind} {step} {key}"] = np.asarray(value)
  if int(number) == 0:
    np.savez(out, **found)
  distributed.finish(0)
