"""Heartbeats, failure detection and a common end of all processes of a run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from mae_jax.distributed import rendezvous
from mae_jax.distributed.cluster import ProcessInfo
from mae_jax.distributed.kv_store import KeyValueStore
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

LOST_PEER_CODE = 76  # EX_PROTOCOL of sysexits.h: the other side broke off
_RESTART_HINT = (
  "start the same command again on all hosts to resume from the last checkpoint"
)
# Seconds:
_HEARTBEAT_INTERVAL = 1.0
# A failed collective means that a peer is lost or about to report an error. So
# from then on a shorter silence counts as lost.
_FAILED_COLLECTIVE_TIMEOUT = 10.0
# After a peer's error this process has so long to report an error of its own.
_OWN_ERROR_GRACE = 2.0
# Process 0 waits so long for the others to learn that it ends.
_EXIT_TIMEOUT = 10.0
# JAX's own heartbeat ends a process without a message. It is a fallback, and so
# it is slower than ours.
_JAX_TIMEOUT_MARGIN = 20

_group: ProcessGroup | None = None


def start(
  place: ProcessInfo, *, start_seconds: float, heartbeat: float
) -> None:
  """Joins the other processes; call it before anything uses a device.

  Args:
    place: the place of this process.
    start_seconds: seconds to wait for the other processes.
    heartbeat: seconds of silence after which a process counts as lost.

  Raises:
    ConfigError: if a process is missing.
  """
  global _group
  console.set_process(place.process_id)
  rendezvous.wait_for_all(place, start_seconds)
  # The preemption service would handle SIGTERM itself.
  jax.config.update("jax_enable_preemption_service", False)
  if jax.config.values["jax_cpu_collectives_implementation"] != "mpi":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.num_processes,
      place.process_id,
      local_device_ids=place.local_device_ids,
      cluster_detection_method="deactivate",
      initialization_timeout=max(30, round(start_seconds)),
      heartbeat_timeout_seconds=round(heartbeat) + _JAX_TIMEOUT_MARGIN,
      shutdown_timeout_seconds=30,
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f"the processes could not join at {place.coordinator} "
      f"({console.first_line(error)}): name another address of process 0"
    ) from error
  _group = ProcessGroup(place, heartbeat)
  _group.start_threads()
  jax.devices()  # exchanges the topologies now, and not in the first step
  _group.handle_abort()


def single_process() -> bool:
  """Checks whether this is the only process."""
  return _group is None


def gather(text: str = "") -> list[str]:
  """Collects one text from each process, in order; all must call this."""
  if _group is None:
    return [text]
  return _group.store.gather(text)


def from_first(value: Any) -> Any:
  """Returns process 0's value, JSON content, to all; all must call this."""
  if _group is None:
    return value
  return json.loads(_group.store.gather(json.dumps(value))[0])


def publish(key: str, value: Any) -> None:
  """Publishes a JSON value under `key`, such as a barrier's `error_key`."""
  if _group is not None:
    _group.store.publish(key, value)


def barrier(key: str, seconds: float, error_key: str) -> None:
  """Waits until all processes call this with the same `key`.

  Any thread may call it. Each barrier of a run needs its own `key`.

  Raises:
    OSError: if a process published an error under `error_key`.
    TimeoutError: if some process does not call within `seconds`.
  """
  if _group is not None:
    _group.store.barrier(key, seconds, error_key)


def fail(code: int, line: str) -> None:
  """Ends all processes for an error of this one; returns if it is alone."""
  if _group is not None:
    _group.fail(code, line)


def announce_exit(code: int, text: str) -> None:
  """Reports to the other processes that this one ends at once, and why."""
  if _group is not None:
    _group.announce_exit(code, text)


def exit_if_peer_lost(error: BaseException) -> None:
  """Ends the process if an error was caused by a lost peer, and names it."""
  if _group is not None and _is_peer_error(error):
    _group.wait_for_lost_peer(console.first_line(error))


def finish(code: int) -> None:
  """Ends this process when all are done; returns if it is alone."""
  if _group is not None:
    _group.finish(code)


_PEER_ERRORS = re.compile(
  "gloo|nccl|coordination|connection closed|connection reset|socket closed|"
  "unavailable|heartbeat|deadline_exceeded|barrier",
  re.IGNORECASE,
)


def _is_peer_error(error: BaseException) -> bool:
  text = f"{type(error).__name__} {error}"
  kinds = ValueError | RuntimeError | OSError
  return isinstance(error, kinds) and bool(_PEER_ERRORS.search(text))


class ProcessGroup:
  """The other processes of the run, as seen by this one.

  Attributes:
    store: the shared key-value store.
  """

  def __init__(self, place: ProcessInfo, heartbeat: float):
    self.store = KeyValueStore(place.process_id, place.num_processes)
    self._me, self._place, self._heartbeat = place.process_id, place, heartbeat
    self._exiting = threading.Lock()
    self._ended = threading.Event()
    self._collective_failed_at: float | None = None
    self._peer_failed_at: float | None = None
    self._code = LOST_PEER_CODE
    now = time.monotonic()
    self._store_answered_at = now
    # Last heartbeat of each process, and when it was seen.
    self._beats = dict.fromkeys(range(place.num_processes), (0, now))
    self._statuses: dict[str, dict[int, Any]] = {}

  def start_threads(self) -> None:
    """Starts to send heartbeats, and to watch those of the others."""
    self.store.set_status("host", socket.gethostname())
    for work in (self._send_heartbeats, self._watch_peers):
      threading.Thread(target=work, daemon=True, name=work.__name__).start()

  def _send_heartbeats(self) -> None:
    count = 0
    while not self._ended.is_set():
      count += 1
      # Without process 0 this fails; `_watch_peers` measures for how long.
      with contextlib.suppress(Exception):
        self.store.set_status("beat", count)
        found = self.store.statuses()
        now = time.monotonic()
        for number, beat in found.get("beat", {}).items():
          if beat != self._beats[number][0]:
            self._beats[number] = (beat, now)
        self._statuses, self._store_answered_at = found, now
      self._ended.wait(_HEARTBEAT_INTERVAL)

  def _watch_peers(self) -> None:
    last = time.monotonic()
    while not self._ended.wait(_HEARTBEAT_INTERVAL / 2):
      now = time.monotonic()
      if now - last > 5:  # this process was suspended, not the others
        self._store_answered_at = now
        self._beats = {n: (b, now) for n, (b, _) in self._beats.items()}
      last = now
      limit = self._heartbeat
      if self._collective_failed_at is not None:
        limit = min(limit, _FAILED_COLLECTIVE_TIMEOUT)
      silent = now - self._store_answered_at
      if self._me and silent > limit:
        self._exit_for_lost([0], f"has not answered for {silent:.0f} s")
      lost = [n for n in self._live_peers() if now - self._beats[n][1] > limit]
      if lost and silent < limit / 2:
        self._exit_for_lost(lost, f"has sent no heartbeat for {limit:g} s")
      failed = dict(self._statuses.get("failed", {}))
      failed.pop(self._me, None)  # `fail` reports that one
      if failed:
        self._peer_failed_at = self._peer_failed_at or now
        if now - self._peer_failed_at > _OWN_ERROR_GRACE:
          self._exit_like_peers(failed)

  def _live_peers(self) -> list[int]:
    ended = {
      n for kind in ("done", "failed") for n in self._statuses.get(kind, ())
    }
    return [n for n in self._beats if n != self._me and n not in ended]

  def _exit_for_lost(self, lost: list[int], why: str) -> None:
    hosts = self._statuses.get("host", {})
    names = " and ".join(f"process {n} on {hosts.get(n, '?')}" for n in lost)
    text = f"{names} is gone ({why})"
    line = f"error: {text}: {_RESTART_HINT}"
    self._exit(LOST_PEER_CODE, line, failure=(LOST_PEER_CODE, text))

  def _exit_like_peers(self, failed: dict[int, Any]) -> None:
    """Ends with the code of a process that failed or was stopped."""
    number = min(failed, key=lambda n: (failed[n][0] == LOST_PEER_CODE, n))
    code, text = failed[number]
    if code == LOST_PEER_CODE:  # the text names the lost process
      self._exit(code, f"error: {text}: {_RESTART_HINT}")
    host = self._statuses.get("host", {}).get(number, "?")
    start, verb = ("error: ", "failed") if code == 1 else ("", "ended")
    self._exit(code, f"{start}process {number} on {host} {verb}: {text}")

  def _exit(
    self, code: int, line: str, failure: tuple[int, str] | None = None
  ) -> NoReturn:
    """Prints a line, sets the status, and ends the process."""
    if not self._exiting.acquire(blocking=False):
      time.sleep(_EXIT_TIMEOUT + 10)  # another thread ends the process
      os._exit(code)
    self._code = code
    _exit_within(_EXIT_TIMEOUT + 5, code)
    if line:
      console.final_message(line)
    self._set_left(failure)
    _flush()
    os._exit(code)

  def _set_left(self, failure: tuple[int, str] | None) -> None:
    with contextlib.suppress(Exception):  # process 0 may be gone
      if failure is not None:
        self.store.set_status("failed", failure)
      self.store.set_status("left", True)
    if self._me == 0:  # the store ends with it, so the others must read first
      end = time.monotonic() + _EXIT_TIMEOUT
      while time.monotonic() < end and not self._all_left():
        time.sleep(0.1)
      time.sleep(0.5)  # between a peer's last status and its end

  def _all_left(self) -> bool:
    silent = time.monotonic() - min(self._heartbeat, _FAILED_COLLECTIVE_TIMEOUT)
    left = {
      n for kind in ("left", "done") for n in self._statuses.get(kind, ())
    }
    return all(
      n == self._me or n in left or beat < silent
      for n, (_, beat) in self._beats.items()
    )

  def fail(self, code: int, text: str) -> NoReturn:
    """Ends all processes for an error of this one."""
    failure, line = (code, text.partition("\n")[0]), f"error: {text}"
    if self._me:
      # A wrong setting fails in all processes: then only process 0 prints.
      with contextlib.suppress(Exception):
        self.store.set_status("failed", failure)
      end = time.monotonic() + 3
      while time.monotonic() < end:
        first = self._statuses.get("failed", {}).get(0)
        if first and first[1] == failure[1]:
          line = ""
          break
        time.sleep(0.1)
    self._exit(code, line, failure=failure)

  def announce_exit(self, code: int, text: str) -> None:
    """Reports that this process ends at once; takes at most a few seconds."""
    if not self._exiting.acquire(blocking=False):
      return
    self._code = code
    _exit_within(_EXIT_TIMEOUT, code)
    self._set_left((code, text))

  def wait_for_lost_peer(self, why: str) -> NoReturn:
    """Waits until `_watch_peers` ends the process and names the lost peer."""
    self._collective_failed_at = time.monotonic()
    time.sleep(self._heartbeat + _OWN_ERROR_GRACE + 5)
    self._exit(
      LOST_PEER_CODE,
      f"error: the connection to other processes failed ({why}), but all of "
      f"them are alive: check the network, and {_RESTART_HINT}",
      failure=(LOST_PEER_CODE, f"the connection failed ({why})"),
    )

  def finish(self, code: int) -> NoReturn:
    """Ends this process when all others are done too."""
    _flush()
    self.store.set_status("done", code)
    while self._live_peers():
      time.sleep(0.05)
    self._exiting.acquire()
    self._code = code
    self._ended.set()
    _exit_within(60, code)
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
    _flush()
    os._exit(code)

  def handle_abort(self) -> None:
    """Handles SIGABRT, which JAX raises in all processes if process 0 dies."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, _HANDLER]
    self._handler = _HANDLER(self._on_abort)  # C code needs the reference
    libc.signal(signal.SIGABRT, self._handler)

  def _on_abort(self, number: int) -> None:
    # This is synchronous: its own thread has called abort().
    if self._exiting.locked():
      os._exit(self._code)
    host, _, port = self._place.coordinator.rpartition(":")
    try:
      with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        pass
    except OSError:
      name = self._statuses.get("host", {}).get(0, "?")
      console.final_message(
        f"error: process 0 on {name} is gone: {_RESTART_HINT}"
      )
      _flush()
      os._exit(LOST_PEER_CODE)
    # Process 0 is alive, so the abort has another cause and continues.


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _exit_within(seconds: float, code: int) -> None:
  """Starts a timer that ends the process, whatever else happens."""
  timer = threading.Timer(seconds, os._exit, (code,))
  timer.daemon = True
  timer.start()


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
