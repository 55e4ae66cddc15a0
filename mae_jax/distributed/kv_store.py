"""A key-value store shared by all processes: JAX's coordination service."""

import json
import time
from typing import Any

from mae_jax.utils import jax_private

_PREFIX = "mae/"
_STATUS = "watch/"
# A day: the heartbeats end a process that waits for a lost peer far earlier.
_BARRIER_TIMEOUT_MS = 24 * 3600 * 1000


class KeyValueStore:
  """JSON values of all processes, stored in process 0."""

  def __init__(self, process_id: int, num_processes: int):
    """Connects to the service that `jax.distributed.initialize` started."""
    self._client = jax_private.coordination_client()
    self._me, self._count = process_id, num_processes
    self._round = 0

  def set_status(self, kind: str, value: Any) -> None:
    """Sets this process's status of a kind, which all can see."""
    self.publish(f"{_STATUS}{kind}", value)

  def statuses(self) -> dict[str, dict[int, Any]]:
    """Returns all statuses, by kind and process."""
    found: dict[str, dict[int, Any]] = {}
    prefix = _PREFIX + _STATUS
    for key, value in self._client.key_value_dir_get(prefix):
      kind, _, number = key.removeprefix(prefix).rpartition("/")
      found.setdefault(kind, {})[int(number)] = json.loads(value)
    return found

  def publish(self, key: str, value: Any, *, replace: bool = True) -> None:
    """Publishes this process's value under `key`, which others may `read`."""
    path = f"{_PREFIX}{key}/{self._me}"
    self._client.key_value_set(path, json.dumps(value), allow_overwrite=replace)

  def read(self, key: str) -> dict[int, Any]:
    """Returns the values published under `key`, by process."""
    return {
      int(path.rpartition("/")[2]): json.loads(value)
      for path, value in self._client.key_value_dir_get(f"{_PREFIX}{key}/")
    }

  def barrier(self, key: str, seconds: float, error_key: str) -> None:
    """Waits until all processes call this with the same `key`.

    Raises:
      OSError: if a process published an error under `error_key`.
      TimeoutError: if some process does not call within `seconds`.
    """
    self.publish(key, True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if len(self.read(key)) == self._count:
        return
      for number, text in sorted(self.read(error_key).items()):
        raise OSError(f"process {number}: {text}")
      time.sleep(0.05)
    raise TimeoutError(f"not all processes arrived within {seconds:.0f} s")

  def gather(self, text: str) -> list[str]:
    """Collects one text from each process; all must call this."""
    self._round += 1
    key = f"say/{self._round}"
    self.publish(key, text, replace=False)
    self._client.wait_at_barrier(_PREFIX + key, _BARRIER_TIMEOUT_MS)
    found = self.read(key)
    if self._me == 0 and self._round > 1:  # all have read the last round
      self._client.key_value_delete(f"{_PREFIX}say/{self._round - 1}/")
    return [found[number] for number in range(self._count)]
