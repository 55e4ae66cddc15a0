"""Tests of the figures of pages, and of the variants that `bench.tpu` makes."""

from __future__ import annotations

import pathlib

import pytest

from bench import plan, tpu
from bench.lib import tiny_config


def rows(module, **cells: str) -> list[list[str]]:
  """Returns a table of one row that is empty except for `cells`."""
  return [[cells.get(name, "") for name in module.HEADINGS]]


def test_plot_of_plans_that_fit_and_do_not_fit(tmp_path: pathlib.Path):
  known = {"model": "B", "slice": "v5e:2x2", "fsdp": "4"}
  fits = rows(plan, **known, **{plan.BOUNDS: "1.0 / 20.5 / 0.3 ms"})
  plan.draw(fits, tmp_path / "fits.md")
  first = (tmp_path / "fits.svg").read_text()
  assert "v5e:2x2, fsdp 4" in first
  assert "no fit" not in first
  # The file changes if and only if a value changes.
  for text, same in (("1.0 / 20.5 / 0.3 ms", True), ("1 / 2 / 3 ms", False)):
    plan.draw(rows(plan, **known, **{plan.BOUNDS: text}), tmp_path / "fits.md")
    assert ((tmp_path / "fits.svg").read_text() == first) is same
  # Each model has a panel; the second of two panels is empty.
  assert 'id="axes_1"' in first
  assert 'id="axes_2"' not in first
  plan.draw(fits + rows(plan, **known), tmp_path / "not.md")
  assert "no fit" in (tmp_path / "not.svg").read_text()


def test_plot_of_traffic_skips_unknown_traffic(tmp_path: pathlib.Path):
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


@pytest.mark.parametrize("name", tpu.UNDONE)
def test_each_choice_can_be_undone(name: str):
  undone = tpu.UNDONE[name]
  config = plan.configured("L", 1)
  changed = tiny_config.with_changes(config, **undone.settings)
  assert bool(undone.settings) == (changed != config)
  with undone.patch():
    pass
