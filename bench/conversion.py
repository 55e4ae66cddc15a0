r"""Measures time and memory of converting checkpoints between formats.

  python -m bench.conversion [--sizes=L/16,H/14] \
      [--out=bench/results/conversion.md]

Each conversion runs in its own process, as a user starts it. Weights are
random. Each result is converted back, and all arrays are compared bit for bit.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.lib import flags, machine
from mae_jax import checkpoints
from mae_jax.conversion import model_info, run_config

OUT = flags.RESULTS / "conversion.md"
SUFFIX = {
  "jax": "",
  "facebook": ".pth",
  "transformers": "",
  "timm": ".safetensors",
}
# A timm file has the encoder alone: timm has no decoder.
PAIRS = [
  (first, second) for first in SUFFIX for second in SUFFIX if first != second
]
RECIPES = {"B/16": "vit_b", "L/16": "vit_l", "H/14": "vit_h"}


def write_checkpoint(variant: str, path: pathlib.Path) -> None:
  """Writes a checkpoint of the recipe's network with random weights."""
  from mae_jax.config import overrides

  config = overrides.recipe(f"configs/{RECIPES[variant]}.py")
  run = checkpoints.CheckpointMetadata(config, {})
  random = np.random.default_rng(0)
  shapes = run_config.shapes(run, model_info.MAE)

  def sample(name: str) -> np.ndarray:
    values = random.standard_normal(shapes[name], np.float32)
    return values * np.float32(0.02)

  checkpoints.ArrayWriter(sample).write(path, shapes, run)


def run_apart(function: Callable[..., Any], *args: Any) -> Any:
  """Calls in a new process, so that this one's memory stays small.

  A forked child would count the memory of its parent as its own.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(function, *args).result()


def convert(
  source: pathlib.Path, to: str, out: pathlib.Path
) -> tuple[float, float]:
  """Converts in a new process; returns seconds and peak memory in bytes."""
  command = [sys.executable, "-m", "mae_jax", "convert", f"--to={to}"]
  began = time.monotonic()
  process = subprocess.Popen(
    [*command, str(source), str(out)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  assert process.stderr is not None
  text = process.stderr.read().decode()
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(text)
  unit = 1 if platform.system() == "Darwin" else 1024
  return time.monotonic() - began, usage.ru_maxrss * unit


def size(path: pathlib.Path) -> int:
  """Returns the bytes of a file, or of all files in a directory."""
  if path.is_file():
    return path.stat().st_size
  return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def same(path: pathlib.Path, other: pathlib.Path) -> bool:
  """Checks whether all arrays of `path` are in `other`, bit for bit."""
  found, wanted = checkpoints.ArrayReader(path), checkpoints.ArrayReader(other)
  return all(
    np.array_equal(found.read(name), wanted.read(name)) for name in found.shapes
  )


def rows(variant: str) -> Iterator[str]:
  """Measures all pairs of formats, and yields a table row for each."""
  with tempfile.TemporaryDirectory(dir=".") as directory:
    root = pathlib.Path(directory)
    first = root / "jax"
    run_apart(write_checkpoint, variant, first)
    files = {"jax": first}
    for to in ("facebook", "transformers", "timm"):
      files[to] = root / f"{to}{SUFFIX[to]}"
      convert(first, to, files[to])
    for source, to in PAIRS:
      out = root / f"out{SUFFIX[to]}"
      seconds, peak = convert(files[source], to, out)
      smaller = min(size(files[source]), size(out))
      back = out
      if to != "jax":
        back = root / "back"
        convert(out, "jax", back)
      exact = "yes" if run_apart(same, back, first) else "NO"
      yield (
        f"| ViT-{variant} | {source} -> {to} | {smaller / 1e9:.2f} GB | "
        f"{seconds:.1f} s | {peak / 1e9:.2f} GB | {peak / smaller:.2f} | "
        f"{exact} |"
      )
      for each in {out, back}:
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def main() -> None:
  """Measures and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--sizes", type=flags.among(RECIPES), default="L/16,H/14")
  parser.add_argument("--out", type=flags.page, default=OUT)
  settings = parser.parse_args()
  lines = [
    "# Converting large networks",
    "",
    "Written by `python -m bench.conversion`. Time and memory are of whole "
    "processes. About 3 to 6 s and 0.4 to 0.7 GB",
    "of each row are the start of Python and the import of JAX (and of PyTorch "
    "for facebook). Weights are of encoder",
    "and decoder; timm has the encoder alone. "
    f"{machine.about(('jax', 'torch'))}.",
    "",
    "| network | pair | checkpoint | time | peak memory | peak / checkpoint | "
    "equal bits |",
    "|---|---|---|---|---|---|---|",
  ]
  for variant in settings.sizes:
    for row in rows(variant):
      print(row, flush=True)
      lines.append(row)
  settings.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
  main()
