"""Starts one command in several processes, as on several hosts."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Sequence

from bench.lib import kill_and_resume
from bench.lib.fork_server import ForkServer

HEARTBEAT = 6  # seconds
SETTINGS = (
  *kill_and_resume.SETTINGS,
  "--config.train.length=24 steps",
  "--config.train.log_every=1 steps",
  "--config.train.save_every=6 steps",
  "--config.eval.every=12 steps",
)


def free_port() -> int:
  """Returns an unused port outside the range that the system assigns."""
  while True:
    port = random.randrange(10_000, 30_000)
    try:
      with socket.create_server(("", port)):
        return port
    except OSError:
      continue


class Team:
  """The processes of one run.

  Attributes:
    processes: each process by its number.
  """

  def __init__(
    self,
    fork_server: ForkServer,
    count: int,
    args: Sequence[str],
    *,
    devices: int = 1,
    only: Sequence[int] | None = None,
    own: Sequence[Sequence[str]] = (),
  ):
    """Starts the processes.

    Args:
      fork_server: starts processes by forking.
      count: number of processes of the run.
      args: command line of all processes.
      devices: devices per process.
      only: numbers of the processes to start; None for all.
      own: further arguments of each process.
    """
    where = f"--coordinator=127.0.0.1:{free_port()}"
    self.processes = {
      number: fork_server.start(
        [
          *args,
          f"--config.mesh.cpu_devices={devices}",
          f"--heartbeat_seconds={HEARTBEAT}",
          where,
          f"--num_processes={count}",
          f"--process_id={number}",
          *(own[number] if own else ()),
        ]
      )
      for number in (range(count) if only is None else only)
    }

  def wait(self, timeout: float = 600) -> list[int]:
    """Waits for all processes; returns their exit codes."""
    end = time.monotonic() + timeout
    return [
      process.wait(max(1, end - time.monotonic()))
      for process in self.processes.values()
    ]

  def output(self, number: int) -> str:
    """Returns the output of a process."""
    return self.processes[number].log.read_text()

  def outputs(self) -> str:
    """Returns the outputs of all processes."""
    return "\n".join(f"--- {n}\n{self.output(n)}" for n in self.processes)
