"""Figures beside the tables of pages."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from matplotlib import rc_context
from matplotlib.figure import Figure


@contextlib.contextmanager
def figure(page: pathlib.Path, width: float, height: float) -> Iterator[Figure]:
  """One that is written beside a page when all is drawn, as SVG.

  Its text is text, and the same figures give the same file.

  Args:
    page: `bench/results/x.md`, to which `bench/results/x.svg` belongs.
    width: in inches.
    height: in inches.
  """
  with rc_context({"svg.fonttype": "none", "svg.hashsalt": page.stem}):
    result = Figure(figsize=(width, height), layout="constrained")
    yield result
    for axes in result.axes:
      axes.spines[["top", "right"]].set_visible(False)
    result.savefig(page.with_suffix(".svg"), metadata={"Date": None})
