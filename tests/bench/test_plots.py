"""Figures of pages say what their tables say."""

from __future__ import annotations

import pathlib

from bench import plan, tpu


def rows(module, **cells: str) -> list[list[str]]:
  """A table of one row, empty but for some cells."""
  return [[cells.get(name, "") for name in module.HEADINGS]]


def test_a_plan_that_fits_and_one_that_does_not(tmp_path: pathlib.Path):
  known = {"model": "B", "slice": "v5e:2x2", "fsdp": "4"}
  fits = rows(plan, **known, **{plan.BOUNDS: "1.0 / 20.5 / 0.3 ms"})
  plan.draw(fits, tmp_path / "fits.md")
  first = (tmp_path / "fits.svg").read_text()
  assert "v5e:2x2, fsdp 4" in first
  assert "no fit" not in first
  # Other figures are another picture, the same the same.
  for text, same in (("1.0 / 20.5 / 0.3 ms", True), ("1 / 2 / 3 ms", False)):
    plan.draw(rows(plan, **known, **{plan.BOUNDS: text}), tmp_path / "fits.md")
    assert ((tmp_path / "fits.svg").read_text() == first) is same
  # A panel a model: of two places, one stays empty.
  assert 'id="axes_1"' in first
  assert 'id="axes_2"' not in first
  plan.draw(fits + rows(plan, **known), tmp_path / "not.md")
  assert "no fit" in (tmp_path / "not.svg").read_text()


def test_traffic_without_what_was_not_counted(tmp_path: pathlib.Path):
  counted = rows(
    tpu,
    slice="v5e:2x2",
    program="counted",
    **{"HBM traffic": "12.34 GB", "of it padding": "10.0%"},
  )
  unknown = rows(tpu, slice="v5e:2x2", program="unknown")
  tpu.draw(counted + unknown, tmp_path / "tpu.md")
  text = (tmp_path / "tpu.svg").read_text()
  assert "12.3" in text
  assert "counted" in text
  assert "unknown" not in text
