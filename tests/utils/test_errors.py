"""Tests of one-line explanations of errors."""

from __future__ import annotations

import errno

import jax
import numpy as np
import pytest
import tensorflow as tf

from mae_jax.utils import errors
from mae_jax.utils.errors import ConfigError, TrainingError


def test_out_of_memory_on_a_device():
  too_much = jax.jit(lambda: jax.numpy.ones((10**9, 10**9)))
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    too_much().block_until_ready()
  line = errors.explain(caught.value)
  assert line.startswith("out of memory: Out of memory allocating 40000000000")
  assert line.endswith("more devices in mesh.fsdp")


@pytest.mark.parametrize(
  ("text", "clause"),
  [
    (
      "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.\n"
      "BufferAssignment OOM Debugging.\n",
      "out of memory: Out of memory while trying to allocate 7 bytes; in this",
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 21.95G of 15.48G hbm.\n\nTotal hbm usage",
      "out of memory: Ran out of memory in memory space hbm. Used 21.95G of "
      "15.48G hbm; in this order",
    ),
    ("RESOURCE_EXHAUSTED", "out of memory: RESOURCE_EXHAUSTED; in this"),
    ("RESOURCE_EXHAUSTED: ", "out of memory: an allocation failed; in this"),
  ],
)
def test_out_of_memory_messages_of_accelerators(text: str, clause: str):
  line = errors.explain(jax.errors.JaxRuntimeError(text))
  assert line.startswith(clause)
  assert "\n" not in line


@pytest.mark.parametrize(
  "error",
  [
    MemoryError(),
    tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
  ],
  ids=["python", "tensorflow"],
)
def test_out_of_memory_on_the_host(error: Exception):
  assert errors.explain(error).startswith("out of memory: ")


def test_out_of_memory_in_numpy():
  with pytest.raises(MemoryError) as caught:
    np.zeros(2**60, np.uint8)
  assert "Unable to allocate 1.00 EiB" in errors.explain(caught.value)


def test_files(tmp_path):
  full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
  assert errors.explain(full).startswith(
    "runs/a: No space left on device: check"
  )
  with pytest.raises(OSError, match="absent") as caught:
    (tmp_path / "absent").read_text()
  assert "absent: No such file or directory: check" in errors.explain(
    caught.value
  )


def test_settings_and_training():
  assert errors.explain(ConfigError("x=1 is not")) == "x=1 is not"
  assert errors.explain(TrainingError("lost")) == "lost"


@pytest.mark.parametrize(
  "error",
  [ValueError("x"), OSError("x"), jax.errors.JaxRuntimeError("INTERNAL: x")],
  ids=str,
)
def test_other_errors_keep_their_traceback(error: Exception):
  assert errors.explain(error) is None
