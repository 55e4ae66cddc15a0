"""Saves parts of a long evaluation, so that an interrupted one resumes.

The parts are in one JSON file beside the final result. Parts of another
evaluation (other parameters, images or settings) are ignored.
"""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from mae_jax import distributed
from mae_jax.utils import storage


class PartialResults:
  """Results by name.

  Attributes:
    done: the results so far.
  """

  def __init__(
    self, path: epath.Path, check: Callable[[], None], *, owner: bool
  ):
    """Stores the path; reads nothing yet.

    Args:
      path: path of the file.
      check: called before each write; raises if writing is not allowed.
      owner: whether this process writes; all processes read.
    """
    self._path, self._check, self._owner = path, check, owner
    self._about: Any = None
    self.done: dict[str, Any] = {}

  def resume(self, about: Any) -> None:
    """Loads the results of an interrupted run of the same evaluation.

    `about` is JSON content that identifies the evaluation.
    """
    self._about = json.loads(json.dumps(about))
    try:
      with storage.os_errors(self._path):
        content = json.loads(self._path.read_text())
      if content["about"] == self._about:
        self.done = dict(content["done"])
    except (OSError, ValueError, KeyError, TypeError):
      pass  # no file, or a damaged one: start from the beginning
    self.done = distributed.from_first(self.done)

  def add(self, name: str, result: Any) -> None:
    """Saves the result of a part, which is JSON content."""
    self.done[name] = result
    if self._owner:
      content = {"about": self._about, "done": self.done}
      self._check()
      storage.write_atomic(self._path, json.dumps(content).encode())

  def delete(self) -> None:
    """Deletes the file, after the final result was written."""
    if self._owner and self.done:
      with storage.os_errors(self._path):
        self._path.unlink(missing_ok=True)
