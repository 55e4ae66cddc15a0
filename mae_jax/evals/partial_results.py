"""Parts of a long evaluation, kept as they are done, so that a cut one goes on.

They lie in one JSON file beside what will be the result. What was found by
another evaluation (other parameters, images or settings) is not taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from mae_jax import distributed
from mae_jax.utils import storage


class PartialResults:
  """Results by name.

  Attributes:
    done: those that are there.
  """

  def __init__(
    self, path: epath.Path, check: Callable[[], None], *, owner: bool
  ):
    """Names the file.

    Args:
      path: of the file.
      check: is called before it is written, and raises if it may not be.
      owner: whether this process writes; all of them read.
    """
    self._path, self._check, self._owner = path, check, owner
    self._about: Any = None
    self.done: dict[str, Any] = {}

  def begin(self, about: Any) -> None:
    """Takes up what the same evaluation has left.

    Args:
      about: JSON that is equal for the same evaluation alone.
    """
    self._about = json.loads(json.dumps(about))
    try:
      with storage.os_errors(self._path):
        content = json.loads(self._path.read_text())
      if content["about"] == self._about:
        self.done = dict(content["done"])
    except (OSError, ValueError, KeyError, TypeError):
      pass  # there is none, or it is no such file: everything is done anew
    if not distributed.single_process():  # the owner's word, on all of them
      self.done = json.loads(distributed.gather(json.dumps(self.done))[0])

  def add(self, name: str, result: Any) -> None:
    """Keeps the result of a part, which is JSON."""
    self.done[name] = result
    if self._owner:
      content = {"about": self._about, "done": self.done}
      self._check()
      storage.write_atomic(self._path, json.dumps(content).encode())

  def forget(self) -> None:
    """Is called when the whole is written."""
    if self._owner and self.done:
      with storage.os_errors(self._path):
        self._path.unlink(missing_ok=True)
