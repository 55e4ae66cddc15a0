"""Conversion reads array by array: memory does not grow with the file."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from mae_jax import checkpoints
from mae_jax.conversion import model_info, run_config
from tests.helpers import commands, tiny

# The peak of resident memory is in VmHWM; that of a child that was forked off a
# large process would be its parent's.
PROGRAM = """
import sys
import torch
from mae_jax.tools import convert
def peak():
  with open("/proc/self/status") as file:
    (line,) = [line for line in file if line.startswith("VmHWM")]
  return int(line.split()[1]) * 1024
before = peak()
convert.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
print(before, peak())
"""


def convert(source: pathlib.Path, out: pathlib.Path, to: str) -> int:
  """Returns the peak growth of memory in bytes."""
  done = commands.python("-c", PROGRAM, source, out, to)
  assert done.returncode == 0, done.stderr
  before, after = map(int, done.stdout.splitlines()[-1].split())
  return after - before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peaks(tmp_path: pathlib.Path):
  config = tiny.big("B/16")
  run = checkpoints.CheckpointMetadata(config, {})
  shapes = run_config.shapes(run, model_info.MAE)
  size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  random = np.random.default_rng(0)
  writer = checkpoints.ArrayWriter(
    lambda name: random.standard_normal(shapes[name], np.float32)
  )
  start = tmp_path / "jax"
  writer.write(start, shapes, run)
  theirs = {"facebook": tmp_path / "x.pth", "transformers": tmp_path / "hf"}
  grown = {}
  for to, path in theirs.items():
    grown[f"jax -> {to}"] = convert(start, path, to)
    out = tmp_path / f"back_{to}"
    grown[f"{to} -> jax"] = convert(path, out, "jax")
  grown["across"] = convert(
    theirs["facebook"], tmp_path / "across", "transformers"
  )
  shares = {name: round(peak / size, 2) for name, peak in grown.items()}
  print(f"grown by, as a share of {size / 1e6:.0f} MB: {shares}")
  # torch.save wants all tensors at once, beside the array that is read.
  limits = dict.fromkeys(shares, 1.5) | {"jax -> facebook": 2}
  assert {name for name, x in shares.items() if x > limits[name]} == set()
