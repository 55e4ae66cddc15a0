"""Tests of messages: control characters, and closed or full streams."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from mae_jax.utils import console


def test_control_characters_are_escaped(capsys):
  name = "a\x1b[2Jb\rc\x07.png"
  console.info(f"{name} is read")
  console.warn(f"{name} cannot be read")
  out, err = capsys.readouterr()
  assert out == "a\\x1b[2Jb\\rc\\x07.png is read\n"
  assert err == "warning: a\\x1b[2Jb\\rc\\x07.png cannot be read\n"


def test_newlines_and_letters_stay(capsys):
  console.info("one\ttwo\nthree: Grün")
  assert capsys.readouterr().out == "one\ttwo\nthree: Grün\n"


_PROGRAM = """
import os
from mae_jax.utils import console
console.open_streams()
with open("data", "wb") as file:
  for number in range(3):
    console.info(f"info ± {number}")
    console.warn("beware")
    console.final_message("the end")
  file.write(b"x")
console.info("all is done")
os.mkdir("done")
"""


@pytest.mark.parametrize(
  "streams",
  [
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "| head -c 0",
  ],
)
def test_no_stream_ends_a_program(streams: str, tmp_path):
  """Messages must not land in files that get the number of a closed stream."""
  (tmp_path / "program.py").write_text(_PROGRAM)
  command = f"set -o pipefail; {sys.executable} program.py {streams}"
  env = {"PYTHONPATH": str(pathlib.Path.cwd()), "PATH": os.environ["PATH"]}
  subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, check=True)
  assert (tmp_path / "data").read_bytes() == b"x"
  assert (tmp_path / "done").is_dir()


def test_characters_that_a_stream_cannot_encode_are_escaped(tmp_path):
  (tmp_path / "program.py").write_text(_PROGRAM)
  env = {"PYTHONPATH": str(pathlib.Path.cwd()), "PYTHONIOENCODING": "ascii"}
  found = subprocess.run(
    [sys.executable, "program.py"],
    cwd=tmp_path,
    env=env,
    check=True,
    capture_output=True,
  )
  assert found.stdout.startswith(b"info \\xb1 0\n")
  assert found.stdout.endswith(b"all is done\n")
