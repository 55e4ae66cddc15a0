"""Waits until all processes are there, and says which ones are not.

JAX waits too, but ends the process with a stack trace and no names. So before
it starts, process 0 listens at its address, and lets all go on when everybody
has called.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time

from mae_jax.distributed.cluster import ProcessInfo
from mae_jax.utils.errors import ConfigError

_RETRY_SECONDS = 0.5  # seconds between two calls
_MAX_BYTES = 200  # bytes of a call


def wait_for_all(place: ProcessInfo, seconds: float) -> None:
  """Meets the others, for at most so many seconds.

  Raises:
    ConfigError: if somebody is missing, or two say they are the same.
  """
  if place.process_id == 0:
    _listen(place, time.monotonic() + seconds, seconds)
  else:
    _connect(place, time.monotonic() + seconds, seconds)


def _listen(place: ProcessInfo, end: float, seconds: float) -> None:
  port = int(place.coordinator.rpartition(":")[2])
  callers: dict[int, socket.socket] = {}
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_server(port))
    except OSError as error:
      raise ConfigError(
        f"process 0 cannot listen at {place.coordinator} ({error.strerror}): "
        "name another port for all processes (--coordinator=HOST:PORT), or end "
        "what has this one"
      ) from error
    ready = stack.enter_context(selectors.DefaultSelector())
    ready.register(server, selectors.EVENT_READ)
    while len(callers) < place.num_processes - 1:
      if not ready.select(max(0.0, end - time.monotonic())):
        raise ConfigError(_missing(place, callers, seconds))
      caller = stack.enter_context(server.accept()[0])
      number = _read_process_id(caller, place)
      if number is None:
        continue
      known = callers.get(number)
      if known is not None and not _hung_up(known):
        _reply(caller, "twice")
        raise ConfigError(
          f"two processes say that they are process {number} of "
          f"{place.num_processes}: give each its own --process_id"
        )
      callers[number] = caller
    for caller in callers.values():
      _reply(caller, "go")
    # Who hangs up first keeps the port for a while: not the one that needs it.
    for caller in callers.values():
      _hung_up(caller, wait=2.0)


def _server(port: int) -> socket.socket:
  """Listens on all addresses of this host, as JAX does afterwards."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(("", port), backlog=1024)


def _read_process_id(caller: socket.socket, place: ProcessInfo) -> int | None:
  """The number of who calls; None if it is not one of the others."""
  caller.settimeout(2.0)
  try:
    said = json.loads(caller.recv(_MAX_BYTES))
    number, count = int(said["process_id"]), int(said["num_processes"])
  except (OSError, ValueError, KeyError, TypeError):
    return None
  if count != place.num_processes or not 0 < number < count:
    _reply(caller, f"of {place.num_processes}")
    raise ConfigError(
      f"process {number} was started as one of --num_processes={count}, and "
      f"process 0 as one of {place.num_processes}: say the same everywhere"
    )
  return number


def _hung_up(caller: socket.socket, wait: float = 0.0) -> bool:
  caller.settimeout(wait)
  try:
    return not caller.recv(1)
  except BlockingIOError:
    return False
  except OSError as error:
    return not isinstance(error, TimeoutError)


def _reply(caller: socket.socket, word: str) -> None:
  with contextlib.suppress(OSError):
    caller.sendall(word.encode())


def _missing(
  place: ProcessInfo, callers: dict[int, socket.socket], seconds: float
) -> str:
  here = {0, *(n for n, each in callers.items() if not _hung_up(each))}
  gone = sorted(set(range(place.num_processes)) - here)
  names = ", ".join(map(str, gone[:8])) + (", ..." if len(gone) > 8 else "")
  return (
    f"{len(here)} of {place.num_processes} processes came within "
    f"--start_seconds={seconds:g}: process {names} did not. Start the same "
    f"command on every host; all must reach {place.coordinator}"
  )


def _connect(place: ProcessInfo, end: float, seconds: float) -> None:
  host, _, port = place.coordinator.rpartition(":")
  told = {
    "process_id": place.process_id,
    "num_processes": place.num_processes,
  }
  reason = ""
  while (left := end - time.monotonic()) > 0:
    try:
      address = (host.strip("[]"), int(port))
      with socket.create_connection(address, timeout=min(left, 5.0)) as call:
        call.sendall(json.dumps(told).encode())
        reason = ""
        word = _read_reply(call, end)
    except OSError as error:
      reason = error.strerror or str(error)
      word = ""
    if word == "go":
      return
    if word == "twice":
      raise ConfigError(
        f"another process says that it is process {place.process_id} too: give "
        "each its own --process_id"
      )
    if word:
      raise ConfigError(
        f"process 0 was started as one {word}, and process "
        f"{place.process_id} of --num_processes={place.num_processes}: say the "
        "same everywhere"
      )
    time.sleep(_RETRY_SECONDS)
  if reason:
    raise ConfigError(
      f"process 0 could not be reached at {place.coordinator} within "
      f"--start_seconds={seconds:g} ({reason}): start the same command on every"
      " host, and see that the address is that of process 0"
    )
  raise ConfigError(
    f"not all {place.num_processes} processes came within "
    f"--start_seconds={seconds:g}; process 0 says which"
  )


def _read_reply(call: socket.socket, end: float) -> str:
  # A little longer than process 0, which is to say who is missing.
  call.settimeout(max(0.1, end + 2 - time.monotonic()))
  return call.recv(_MAX_BYTES).decode(errors="replace")
