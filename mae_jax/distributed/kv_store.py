"""What processes tell each other, through JAX's coordination service."""

from __future__ import annotations

import json
import time
from typing import Any

_STATUS_PREFIX = "mae/watch/"
_GATHER_PREFIX = "mae/say/"
_BARRIER_TIMEOUT_MS = (
  24 * 3600 * 1000
)  # milliseconds; the watch ends the process before


class KeyValueStore:
  """Notes of all processes, which process 0 keeps."""

  def __init__(self, process_id: int, num_processes: int):
    """After `jax.distributed.initialize`."""
    # Not public, and what Orbax talks through too.
    from jax._src import distributed

    self._client: Any = distributed.global_state.client
    self._me, self._count = process_id, num_processes
    self._round = 0

  def put(self, kind: str, value: Any) -> None:
    """Writes this process's note of a kind, JSON, over its last one."""
    self._client.key_value_set(
      f"{_STATUS_PREFIX}{kind}/{self._me}",
      json.dumps(value),
      allow_overwrite=True,
    )

  def notes(self) -> dict[str, dict[int, Any]]:
    """All notes, by kind and process."""
    found: dict[str, dict[int, Any]] = {}
    for key, value in self._client.key_value_dir_get(_STATUS_PREFIX):
      kind, _, number = key.removeprefix(_STATUS_PREFIX).rpartition("/")
      found.setdefault(kind, {})[int(number)] = json.loads(value)
    return found

  def post(self, where: str, value: Any) -> None:
    """Writes a note that only those see who `read` it."""
    key = f"mae/{where}/{self._me}"
    self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)

  def read(self, where: str) -> dict[int, Any]:
    """The notes at a place, by process."""
    return {
      int(key.rpartition("/")[2]): json.loads(value)
      for key, value in self._client.key_value_dir_get(f"mae/{where}/")
    }

  def meet(self, where: str, seconds: float, unless: str) -> None:
    """Waits for the others at a place; a note at `unless` is an OSError."""
    self.post(where, True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if len(self.read(where)) == self._count:
        return
      for number, text in sorted(self.read(unless).items()):
        raise OSError(f"process {number}: {text}")
      time.sleep(0.05)
    raise TimeoutError(f"not all processes came within {seconds:.0f} s")

  def gather(self, text: str) -> list[str]:
    """What each process says at this point, in order; all must come to it."""
    self._round += 1
    where = f"{_GATHER_PREFIX}{self._round}"
    self._client.key_value_set(f"{where}/{self._me}", json.dumps(text))
    self._client.wait_at_barrier(where, _BARRIER_TIMEOUT_MS)
    found = {
      int(key.rpartition("/")[2]): json.loads(value)
      for key, value in self._client.key_value_dir_get(f"{where}/")
    }
    if self._me == 0 and self._round > 1:  # which all have read
      self._client.key_value_delete(f"{_GATHER_PREFIX}{self._round - 1}/")
    return [found[number] for number in range(self._count)]
