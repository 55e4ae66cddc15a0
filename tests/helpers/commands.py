"""Helpers to run the tools on images as commands."""

from __future__ import annotations

import atexit
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from bench.lib.fork_server import ForkServer
from mae_jax.config import DataConfig
from mae_jax.data import image_files, prepare
from mae_jax.data.image_headers import Reading

ROOT = pathlib.Path(__file__).parents[2]


def write_images(root: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
  """Writes colored images of different sizes."""
  for number, name in enumerate(names):
    random = np.random.default_rng(number)
    height, width = random.integers(9, 40, 2)
    coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize((int(width), int(height)))
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
  return root


def pixels(path: pathlib.Path, data: DataConfig) -> np.ndarray:
  """Decodes one image as in evaluation, uint8 [1, H, W, C]."""
  whole = image_files.read(path, Reading.of(data))
  return prepare.fit(whole, data)[None]


def normalized_pixels(path: pathlib.Path, data: DataConfig) -> np.ndarray:
  """Decodes and normalizes one image, float32."""
  scaled = pixels(path, data).astype(np.float32) / 255
  return (scaled - np.float32(data.mean)) / np.float32(data.std)


@functools.cache
def fork_server() -> ForkServer:
  """Returns this process's fork server, which lives until the process ends."""
  directory = pathlib.Path(tempfile.mkdtemp(dir=os.environ["XDG_CACHE_HOME"]))
  opened = ForkServer(directory)
  atexit.register(opened.close)
  return opened


def command(
  tool: str,
  *args: object,
  environ: Mapping[str, str] | None = None,
  timeout: float = 300,
) -> subprocess.CompletedProcess:
  """Runs a command in a forked process, which has imported it already."""
  words = [tool, *map(str, args)]
  process = fork_server().start(
    words, "mae_jax.__main__", environ=environ, split=True
  )
  code = process.wait(timeout)
  return subprocess.CompletedProcess(
    words, code, process.log.read_text(), process.errors.read_text()
  )


def python(
  *args: object,
  environ: Mapping[str, str] | None = None,
  timeout: float = 300,
) -> subprocess.CompletedProcess:
  """Runs Python in a separate process, in the root directory, on the CPU."""
  return subprocess.run(
    [sys.executable, *map(str, args)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environ or {}),
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )
