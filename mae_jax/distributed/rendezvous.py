"""A start barrier that names the missing processes.

JAX waits for all processes too, but fails with a stack trace and no names. So
before JAX starts, process 0 listens at its address, and releases all processes
when each has connected.
"""

import contextlib
import json
import selectors
import socket
import time

from mae_jax.distributed.cluster import ProcessInfo
from mae_jax.utils.errors import ConfigError

_RETRY_SECONDS = 0.5  # between two connections
_MAX_BYTES = 200  # of a message


def wait_for_all(place: ProcessInfo, seconds: float) -> None:
  """Waits until all processes have started, for at most `seconds`.

  Raises:
    ConfigError: if a process is missing, or two have the same number.
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
        "the program that uses this one"
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
          f"two processes were started as process {number} of "
          f"{place.num_processes}: give each its own --process_id"
        )
      callers[number] = caller
    for caller in callers.values():
      _reply(caller, "go")
    # The side that closes first keeps the port busy for a while. Process 0
    # needs its port again, so the others close first.
    for caller in callers.values():
      _hung_up(caller, wait=2.0)


def _server(port: int) -> socket.socket:
  """Listens on all addresses of this host, as JAX will do."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(("", port), backlog=1024)


def _read_process_id(caller: socket.socket, place: ProcessInfo) -> int | None:
  """Reads the number of a caller; None if it is not a process of this run."""
  caller.settimeout(2.0)
  try:
    message = json.loads(caller.recv(_MAX_BYTES))
    number, count = int(message["process_id"]), int(message["num_processes"])
  except (OSError, ValueError, KeyError, TypeError):
    return None
  if count != place.num_processes or not 0 < number < count:
    _reply(caller, f"of {place.num_processes}")
    raise ConfigError(
      f"process {number} was started with --num_processes={count}, and process "
      f"0 with {place.num_processes}: give all processes the same number"
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
  missing = sorted(set(range(place.num_processes)) - here)
  names = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
  return (
    f"{len(here)} of {place.num_processes} processes started within "
    f"--start_seconds={seconds:g}: process {names} did not. Start the same "
    f"command on every host; all must reach {place.coordinator}"
  )


def _connect(place: ProcessInfo, end: float, seconds: float) -> None:
  host, _, port = place.coordinator.rpartition(":")
  message = {
    "process_id": place.process_id,
    "num_processes": place.num_processes,
  }
  reason = ""
  while (left := end - time.monotonic()) > 0:
    try:
      address = (host.strip("[]"), int(port))
      with socket.create_connection(address, timeout=min(left, 5.0)) as call:
        call.sendall(json.dumps(message).encode())
        reason = ""
        reply = _read_reply(call, end)
    except OSError as error:
      reason = error.strerror or str(error)
      reply = ""
    if reply == "go":
      return
    if reply == "twice":
      raise ConfigError(
        f"another process was started as process {place.process_id} too: give "
        "each its own --process_id"
      )
    if reply:
      raise ConfigError(
        f"process 0 was started as one {reply}, and process "
        f"{place.process_id} as one of --num_processes={place.num_processes}: "
        "give all processes the same number"
      )
    time.sleep(_RETRY_SECONDS)
  if reason:
    raise ConfigError(
      f"process 0 could not be reached at {place.coordinator} within "
      f"--start_seconds={seconds:g} ({reason}): start the same command on every"
      " host, and check that the address is that of process 0"
    )
  raise ConfigError(
    f"not all {place.num_processes} processes started within "
    f"--start_seconds={seconds:g}: process 0 names the missing ones"
  )


def _read_reply(call: socket.socket, end: float) -> str:
  # Waits a little longer than process 0, which names the missing processes.
  call.settimeout(max(0.1, end + 2 - time.monotonic()))
  return call.recv(_MAX_BYTES).decode(errors="replace")
