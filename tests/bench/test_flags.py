"""Tests of the flags of benchmarks, and of where benchmarks write."""

from __future__ import annotations

import argparse
import importlib
import pathlib

import pytest

from bench.lib import flags


@pytest.mark.parametrize(
  ("kind", "text", "message"),
  [
    (flags.among(("B", "L")), "B,X", "'X' is not known: known are B, L"),
    (flags.whole(), "0", "0 is below 1"),
    (flags.whole(), "two", "'two' is not a whole number"),
    (flags.wholes(1, 2), "1,3", "3 is above 2"),
    (flags.slices, "v9:2x2", "v9:2x2 is not a slice"),
    (flags.slices, "v5e:4x6", "v5e:4x6 has 24 devices, which do not divide"),
    (flags.multiple(64), "100", "100 is not a multiple of 64: write 64"),
    (flags.page, "none/x.md", "'none/x.md' cannot be written: there is no"),
  ],
)
def test_wrong_values_are_refused(kind, text, message, capsys):
  parser = argparse.ArgumentParser()
  parser.add_argument("--flag", type=kind)
  with pytest.raises(SystemExit) as stop:
    parser.parse_args([f"--flag={text}"])
  assert stop.value.code == 2
  assert f"error: argument --flag: {message}" in capsys.readouterr().err


def test_right_values_are_parsed(tmp_path):
  assert flags.among(("B", "L"))("L,B") == ["L", "B"]
  assert flags.whole(2)("2") == 2
  assert flags.wholes(1, 2)("2,1") == [2, 1]
  assert flags.multiple(64)("128") == 128
  assert flags.page(str(tmp_path / "x.md")) == tmp_path / "x.md"


def test_every_benchmark_writes_to_results():
  folder = pathlib.Path(flags.__file__).parents[1]
  names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
  assert names
  for name in names:
    out = importlib.import_module(f"bench.{name}").OUT
    assert out == folder / "results" / f"{name}.md"
    assert out.exists()
