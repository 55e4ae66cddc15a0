"""Writes the SVG figures of result pages."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from matplotlib import rc_context
from matplotlib.figure import Figure


@contextlib.contextmanager
def figure(page: pathlib.Path, width: float, height: float) -> Iterator[Figure]:
  """Yields a figure, and saves it as SVG beside a page when the block ends.

  Text stays text in the file, and equal data give an equal file.

  Args:
    page: path of the page: for `bench/results/x.md`, the figure is saved as
      `bench/results/x.svg`.
    width: width in inches.
    height: height in inches.
  """
  with rc_context({"svg.fonttype": "none", "svg.hashsalt": page.stem}):
    result = Figure(figsize=(width, height), layout="constrained")
    yield result
    for axes in result.axes:
      axes.spines[["top", "right"]].set_visible(False)
    result.savefig(page.with_suffix(".svg"), metadata={"Date": None})
