"""A record of unreadable images: each is reported once, with its reason."""

import threading

from mae_jax.utils import console


class BadImages:
  """Unreadable images by name, collected from any thread.

  Attributes:
    max_warnings: the number of images to warn about on stderr; 0 for none.
  """

  def __init__(self, max_warnings: int = 20):
    self.max_warnings = max_warnings
    self._reasons: dict[str, str] = {}
    self._lock = threading.Lock()

  @staticmethod
  def allowed(num_examples: int, share: float) -> float:
    """Returns how many unreadable images an epoch may have.

    A single one stops no run, however few images there are, unless `share`
    (data.max_unreadable) is 0.
    """
    return max(share * num_examples, 1) if share else 0

  def report(self, name: str, reason: str) -> None:
    """Records an image, and warns if it is new."""
    with self._lock:
      if name in self._reasons:
        return
      self._reasons[name] = reason
      number = len(self._reasons)
    if number <= self.max_warnings:
      console.warn(f"{name} cannot be read: {reason}")
    elif self.max_warnings and number == self.max_warnings + 1:
      console.warn(
        f"more than {self.max_warnings} images cannot be read; from here on "
        "they are only counted, and named if their number stops the run"
      )

  @property
  def names(self) -> tuple[str, ...]:
    """Names of all unreadable images, in the order they were reported."""
    with self._lock:
      return tuple(self._reasons)

  def listing(self, limit: int = 20) -> str:
    """Lists the first `limit` images, one a line, for an error message."""
    with self._lock:
      reasons = list(self._reasons.items())
    lines = [f"  {name}: {reason}" for name, reason in reasons[:limit]]
    if len(reasons) > limit:
      lines.append(f"  and {len(reasons) - limit} more")
    return "\n".join(lines)
