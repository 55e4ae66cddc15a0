"""A process among others: it watches them, and they leave together."""

from __future__ import annotations

import contextlib
import ctypes
import os
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
  "start the same command again on all hosts, and it goes on from the last "
  "checkpoint"
)
_HEARTBEAT_INTERVAL = 1.0  # seconds
# After a collective that failed somebody is gone, or about to say why: who is
# silent for so long is it.
_FAILED_COLLECTIVE_TIMEOUT = 10.0
_OWN_ERROR_GRACE = (
  2.0  # for an error of one's own, when another process told of one
)
_EXIT_TIMEOUT = 10.0  # that process 0 waits for the others to hear of its end
# JAX's own verdict ends a process without a word; it comes if ours does not.
_JAX_TIMEOUT_MARGIN = 20

_group: ProcessGroup | None = None


def start(
  place: ProcessInfo, *, start_seconds: float, heartbeat: float
) -> None:
  """Joins the others; before anything uses a device.

  Args:
    place: of this process.
    start_seconds: how long to wait for the others.
    heartbeat: seconds of silence after which a process counts as gone.

  Raises:
    ConfigError: if somebody does not come.
  """
  global _team
  console.set_process(place.process_id)
  rendezvous.wait_for_all(place, start_seconds)
  # It would take SIGTERM for itself.
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
  _group.watch()
  jax.devices()  # the topologies are told now
  _group.catch_abort()


def single_process() -> bool:
  """Whether this is the only process."""
  return _group is None


def gather(text: str = "") -> list[str]:
  """What each process says at this point, in order; all must come to it."""
  if _group is None:
    return [text]
  return _group.board.gather(text)


def publish(where: str, value: Any) -> None:
  """Leaves a note, JSON, for those that `meet` the others with it in mind."""
  if _group is not None:
    _group.board.post(where, value)


def barrier(where: str, seconds: float, unless: str) -> None:
  """Waits for the others at a place.

  It may be called by any thread; no two places of a run share a name.

  Raises:
    OSError: with the note that somebody left at the place `unless`.
    TimeoutError: if not all come.
  """
  if _group is not None:
    _group.board.meet(where, seconds, unless)


def fail(code: int, line: str) -> None:
  """Ends all processes for an error of this one; returns if it is alone."""
  if _group is not None:
    _group.fail(code, line)


def announce_exit(code: int, text: str) -> None:
  """Tells the others that this one ends at once."""
  if _group is not None:
    _group.part(code, text)


def exit_if_peer_lost(error: BaseException) -> None:
  """Ends the process if an error comes from one that is gone, and names it."""
  if _group is not None and _is_peer_error(error):
    _group.wait_for_verdict(console.first_line(error))


def finish(code: int) -> None:
  """Ends this process when all are done; returns if it is alone."""
  if _group is not None:
    _group.finish(code)


def _is_peer_error(error: BaseException) -> bool:
  text = f"{type(error).__name__} {error}".lower()
  if not isinstance(error, ValueError | RuntimeError | OSError):
    return False
  return any(
    word in text
    for word in (
      "gloo",
      "nccl",
      "coordination",
      "connection closed",
      "connection reset",
      "socket closed",
      "unavailable",
      "heartbeat",
      "deadline_exceeded",
      "barrier",
    )
  )


class ProcessGroup:
  """The others as this process sees them.

  Attributes:
    board: what they tell.
  """

  def __init__(self, place: ProcessInfo, heartbeat: float):
    self.board = KeyValueStore(place.process_id, place.num_processes)
    self._me, self._place, self._heartbeat = place.process_id, place, heartbeat
    self._leaving = threading.Lock()
    self._ended = threading.Event()
    self._failed_at: float | None = None  # a collective of this process
    self._told_at: float | None = None  # of another's failure
    self._code = LOST_PEER_CODE
    now = time.monotonic()
    self._reached = now
    self._beats = dict.fromkeys(range(place.num_processes), (0, now))
    self._notes: dict[str, dict[int, Any]] = {}

  def watch(self) -> None:
    """Begins to tell that this process lives, and to look at the others."""
    self.board.put("host", socket.gethostname())
    for work in (self._talk, self._judge):
      threading.Thread(target=work, daemon=True, name=work.__name__).start()

  def _talk(self) -> None:
    count = 0
    while not self._ended.is_set():
      count += 1
      # Without process 0 there is no answer; how long is looked at elsewhere.
      with contextlib.suppress(Exception):
        self.board.put("beat", count)
        found = self.board.notes()
        now = time.monotonic()
        for number, beat in found.get("beat", {}).items():
          if beat != self._beats[number][0]:
            self._beats[number] = (beat, now)
        self._notes, self._reached = found, now
      self._ended.wait(_HEARTBEAT_INTERVAL)

  def _judge(self) -> None:
    last = time.monotonic()
    while not self._ended.wait(_HEARTBEAT_INTERVAL / 2):
      now = time.monotonic()
      if now - last > 5:  # it was this process that stood still
        self._reached = now
        self._beats = {n: (b, now) for n, (b, _) in self._beats.items()}
      last = now
      limit = self._heartbeat
      if self._failed_at is not None:
        limit = min(limit, _FAILED_COLLECTIVE_TIMEOUT)
      silent = now - self._reached
      if self._me and silent > limit:
        self._give_up([0], f"does not answer for {silent:.0f} s")
      gone = [n for n in self._others() if now - self._beats[n][1] > limit]
      if gone and silent < limit / 2:
        self._give_up(gone, f"has not been heard of for {limit:g} s")
      told = dict(self._notes.get("failed", {}))
      told.pop(self._me, None)  # which `fail` tells
      if told:
        self._told_at = self._told_at or now
        if now - self._told_at > _OWN_ERROR_GRACE:
          self._follow(told)

  def _others(self) -> list[int]:
    """Those that are not known to have ended."""
    ended = {
      n for kind in ("done", "failed") for n in self._notes.get(kind, ())
    }
    return [n for n in self._beats if n != self._me and n not in ended]

  def _give_up(self, gone: list[int], why: str) -> None:
    hosts = self._notes.get("host", {})
    names = " and ".join(f"process {n} on {hosts.get(n, '?')}" for n in gone)
    text = f"{names} is gone ({why})"
    line = f"error: {text}: {_RESTART_HINT}"
    self._leave(LOST_PEER_CODE, line, note=(LOST_PEER_CODE, text))

  def _follow(self, told: dict[int, Any]) -> None:
    """Ends as others do who failed or were stopped."""
    number = min(told, key=lambda n: (told[n][0] == LOST_PEER_CODE, n))
    code, text = told[number]
    if code == LOST_PEER_CODE:  # it names who is gone
      self._leave(code, f"error: {text}: {_RESTART_HINT}")
    host = self._notes.get("host", {}).get(number, "?")
    said = "error: " if code == 1 else ""
    verb = "failed" if code == 1 else "ended"
    self._leave(code, f"{said}process {number} on {host} {verb}: {text}")

  def _leave(
    self, code: int, line: str, note: tuple[int, str] | None = None
  ) -> NoReturn:
    """Says a line and ends, after telling process 0 and being heard by all."""
    if not self._leaving.acquire(blocking=False):
      time.sleep(_EXIT_TIMEOUT + 10)  # somebody else is at it
      os._exit(code)
    self._code = code
    _exit_within(_EXIT_TIMEOUT + 5, code)
    if line:
      console.final_message(line)
    self._part(note)
    _flush()
    os._exit(code)

  def _part(self, note: tuple[int, str] | None) -> None:
    with contextlib.suppress(Exception):  # process 0 may be gone
      if note is not None:
        self.board.put("failed", note)
      self.board.put("left", True)
    if self._me == 0:  # without it the others would not hear of anything
      end = time.monotonic() + _EXIT_TIMEOUT
      while time.monotonic() < end and not self._all_left():
        time.sleep(0.1)
      time.sleep(0.5)  # from the note to the end

  def _all_left(self) -> bool:
    silent = time.monotonic() - min(self._heartbeat, _FAILED_COLLECTIVE_TIMEOUT)
    left = {n for kind in ("left", "done") for n in self._notes.get(kind, ())}
    return all(
      n == self._me or n in left or beat < silent
      for n, (_, beat) in self._beats.items()
    )

  def fail(self, code: int, text: str) -> NoReturn:
    """Ends for an error of this process's own."""
    note, line = (code, text.partition("\n")[0]), f"error: {text}"
    if self._me:
      # A wrong setting is wrong for all: one of them says it.
      with contextlib.suppress(Exception):
        self.board.put("failed", note)
      end = time.monotonic() + 3
      while time.monotonic() < end:
        first = self._notes.get("failed", {}).get(0)
        if first and first[1] == note[1]:
          line = ""
          break
        time.sleep(0.1)
    self._leave(code, line, note=note)

  def part(self, code: int, text: str) -> None:
    """Tells the others of an end at once, for at most a few seconds."""
    if not self._leaving.acquire(blocking=False):
      return
    self._code = code
    _exit_within(_EXIT_TIMEOUT, code)
    self._part((code, text))

  def wait_for_verdict(self, why: str) -> NoReturn:
    """Waits until it is known who is gone."""
    self._failed_at = time.monotonic()
    time.sleep(self._heartbeat + _OWN_ERROR_GRACE + 5)
    self._leave(
      LOST_PEER_CODE,
      f"error: the connection to other processes failed ({why}), and none is "
      f"gone: see to the network, and {_RESTART_HINT}",
      note=(LOST_PEER_CODE, f"the connection failed ({why})"),
    )

  def finish(self, code: int) -> NoReturn:
    """Ends when all others are done too."""
    _flush()
    self.board.put("done", code)
    while self._others():
      time.sleep(0.05)
    self._leaving.acquire()
    self._code = code
    self._ended.set()
    _exit_within(60, code)
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
    _flush()
    os._exit(code)

  def catch_abort(self) -> None:
    """When process 0 dies, JAX aborts the others: with our code, and a line."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, _HANDLER]
    self._handler = _HANDLER(self._on_abort)  # kept, as C code points to it
    libc.signal(signal.SIGABRT, self._handler)

  def _on_abort(self, number: int) -> None:
    # Not asynchronous: abort() was called by the thread that this runs in.
    if self._leaving.locked():
      os._exit(self._code)
    host, _, port = self._place.coordinator.rpartition(":")
    try:
      with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        pass
    except OSError:
      name = self._notes.get("host", {}).get(0, "?")
      console.final_message(
        f"error: process 0 on {name} is gone: {_RESTART_HINT}"
      )
      _flush()
      os._exit(LOST_PEER_CODE)
    # Another abort: it takes its course when this returns.


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _exit_within(seconds: float, code: int) -> None:
  """Whatever happens, the process ends by then."""
  timer = threading.Timer(seconds, os._exit, (code,))
  timer.daemon = True
  timer.start()


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
