"""Checkpoints whose writing has not ended, or has failed.

Threads of a failed attempt may go on writing for a while. So each attempt has a
directory of its own, and one that cannot be deleted yet does no harm.
"""

import contextlib
from typing import Any, Self

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.path import atomicity

from mae_jax.utils import storage


def temporary_path_class(
  root: epath.Path, attempt: int
) -> type[atomicity.AtomicRenameTemporaryPath] | None:
  """Returns where Orbax writes a checkpoint before it gets its name.

  Args:
    root: the directory of the checkpoints.
    attempt: a number that no earlier attempt of this process had.

  Returns:
    A class for Orbax. None for a bucket, where a file marks what is complete.
  """
  if storage.is_remote(root):
    return None

  class TemporaryPath(atomicity.AtomicRenameTemporaryPath):
    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> Self:
      name = f"{final_path.name}{atomicity.TMP_DIR_SUFFIX}-{attempt}"
      return cls(final_path.parent / name, final_path, **options)

  return TemporaryPath


def delete(root: epath.Path) -> None:
  """Deletes incomplete checkpoints, as far as that is possible now."""
  for path in root.iterdir():
    with contextlib.suppress(OSError), storage.os_errors(path):
      if ocp.utils.is_tmp_checkpoint(path):
        path.rmtree()
