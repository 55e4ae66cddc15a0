"""Tests that importing the package imports nothing large."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import mae_jax

large = {"jax", "flax", "numpy", "tensorflow", "torch", "matplotlib"}
print(sorted(large & sys.modules.keys()))
mae_jax.list_models
print("tensorflow" in sys.modules)
import mae_jax.train.step
mae_jax.train.step
print(callable(mae_jax.train))
"""


def test_names_are_imported_when_they_are_used():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines() == ["[]", "False", "True"]
