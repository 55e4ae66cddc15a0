"""Which images could not be read, and why: said once each, kept for errors."""

from __future__ import annotations

import threading

from mae_jax.utils import console


class BadImages:
  """Collects names of images, from any thread.

  Attributes:
    shown: so many are named on stderr as they are met; 0 for a silent one.
  """

  def __init__(self, shown: int = 20):
    self.shown = shown
    self._reasons: dict[str, str] = {}
    self._lock = threading.Lock()

  def report(self, name: str, reason: str) -> None:
    """Takes down an image, and warns if it is new."""
    with self._lock:
      if name in self._reasons:
        return
      self._reasons[name] = reason
      number = len(self._reasons)
    if number <= self.shown:
      console.warn(f"{name} cannot be read: {reason}")
    elif self.shown and number == self.shown + 1:
      console.warn(
        f"more than {self.shown} images cannot be read; from here on they are "
        "counted, and named only if their number stops the run"
      )

  @property
  def names(self) -> tuple[str, ...]:
    """All of them, in the order they were met."""
    with self._lock:
      return tuple(self._reasons)

  def listing(self, limit: int = 20) -> str:
    """A line for each of the first `limit`, for an error message."""
    with self._lock:
      reasons = list(self._reasons.items())
    lines = [f"  {name}: {reason}" for name, reason in reasons[:limit]]
    if len(reasons) > limit:
      lines.append(f"  and {len(reasons) - limit} more")
    return "\n".join(lines)
