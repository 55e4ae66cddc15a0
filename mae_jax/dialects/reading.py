"""Opens weights of any dialect."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from mae_jax.dialects import facts as facts_lib
from mae_jax.dialects import foreign, native, table
from mae_jax.dialects import weights as weights_lib

POSITIONS = ("keep", "sincos")


def open_weights(
  path: epath.PathLike,
  local: pathlib.Path | None = None,
  *,
  dialect: str | None = None,
  hints: facts_lib.Hints = facts_lib.NO_HINTS,
) -> weights_lib.Weights:
  """Opens weights.

  Args:
    path: a checkpoint of ours, a file, or a directory with a config.json.
    local: where `table.local` has put it; not needed for a checkpoint of ours.
    dialect: a name in `table.NAMES`; None to find it out.
    hints: what is known of the network besides.

  Raises:
    ConfigError: on anything that is not as it should be.
  """
  if dialect == table.JAX or (dialect is None and not table.is_foreign(path)):
    return native.open_checkpoint(path, hints)
  assert local is not None
  found = table.open_tensors(local)
  dialect = dialect or table.detect(local, found)
  return foreign.Foreign(local, found, dialect, hints).weights()


def describe(
  path: epath.PathLike,
  local: pathlib.Path,
  dialect: str | None,
  hints: facts_lib.Hints,
) -> tuple[str, facts_lib.Facts]:
  """The dialect and what is known of weights, whether or not that is enough.

  Raises:
    ConfigError: if they are of no dialect.
  """
  if dialect == table.JAX or (dialect is None and not table.is_foreign(path)):
    return table.JAX, native.open_checkpoint(path, hints).facts
  found = table.open_tensors(local)
  dialect = dialect or table.detect(local, found)
  return dialect, foreign.Foreign(local, found, dialect, hints).facts


def arrays(weights: weights_lib.Weights) -> Iterator[tuple[str, np.ndarray]]:
  """Each array by its path, of float32, one at a time; then checks them."""
  for path in weights.shapes:
    yield path, weights.read(path).astype(np.float32, copy=False)
  weights.finish()
