"""Runs the examples in the docstrings of the Python API."""

from __future__ import annotations

import doctest
import importlib
import pathlib

import pytest

import mae_jax.api
from mae_jax.config import schema

MODULES = [
  f"mae_jax.api.{path.stem}"
  for path in sorted(pathlib.Path(mae_jax.api.__path__[0]).glob("[!_]*.py"))
]


@pytest.mark.parametrize("name", [*MODULES, schema.__name__])
def test_examples(name):
  found = doctest.testmod(
    importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
  )
  assert found.failed == 0


def test_there_are_examples():
  finder = doctest.DocTestFinder(exclude_empty=True)
  found = [
    test
    for name in MODULES
    for test in finder.find(importlib.import_module(name))
    if test.examples
  ]
  assert len(found) >= 8
