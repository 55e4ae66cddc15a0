"""What a signal does where something is at stake, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.helpers import commands

# libtpu takes signals that nobody caught before it looks for devices.
MEANWHILE = {
  "nothing": "",
  "libtpu": "from mae_jax.tools.plan import topology\n"
  "topology.open_topology('v5e:2x2')",
}
PROGRAM = textwrap.dedent(
  """
  import sys, time
  from mae_jax import interrupts

  stop = interrupts.Interrupts(grace_seconds=float(sys.argv[1]))
  stop.install()
  exec(sys.argv[2])
  with stop.at_stake():
    print("ready", flush=True)
    time.sleep(30)
  """
)


@pytest.fixture
def process(request):
  seconds, meanwhile = request.param
  if meanwhile == "libtpu":
    pytest.importorskip("libtpu")
  started = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(seconds), MEANWHILE[meanwhile]],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with started:
    assert started.stdout.readline() == "ready\n"
    yield started
    started.kill()


@pytest.mark.parametrize("process", [(60, "nothing")], indirect=True)
def test_only_a_later_second_ctrl_c_leaves_at_once(process):
  process.send_signal(signal.SIGINT)
  time.sleep(0.05)
  process.send_signal(signal.SIGINT)  # the echo of a wrapper
  process.send_signal(signal.SIGTERM)
  time.sleep(0.7)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert process.wait(10) == 130
  assert "left at once" in process.stderr.read()


@pytest.mark.parametrize(
  "process",
  [(0.3, name) for name in MEANWHILE],
  indirect=True,
  ids=MEANWHILE.keys(),
)
@pytest.mark.parametrize(
  "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_the_grace_is_bounded(process, number):
  process.send_signal(number)
  assert process.wait(10) == 75
  assert "train.shutdown_timeout=0.3" in process.stderr.read()


@pytest.mark.parametrize("process", [(0.3, "nothing")], indirect=True)
def test_a_reader_that_went_away_changes_nothing(process):
  process.stderr.close()
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 75


LOST = """
import gc, os, signal, time
from mae_jax import interrupts

signal.signal(signal.SIGINT, signal.SIG_DFL)
interrupts.raise_at_once()

def callback(phase, info):
  gc.callbacks.remove(callback)
  os.kill(os.getpid(), signal.{name})
  time.sleep(0)

gc.callbacks.append(callback)
try:
  gc.collect()
  print("lost", flush=True)
  time.sleep(20)
except KeyboardInterrupt:
  interrupts.leave(130)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_what_is_raised_in_a_callback_is_raised_again(name, code):
  done = commands.python("-c", LOST.format(name=name), timeout=60)
  assert (done.returncode, done.stdout) == (code, "lost\n"), done.stderr
  assert done.stderr == ""


def test_a_tool_that_still_imports_ends_without_a_trace():
  with subprocess.Popen(
    [sys.executable, "-X", "importtime", "-m", "mae_jax", "reconstruct"],
    cwd=commands.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stderr:
      if line.endswith(" mae_jax\n"):
        break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(30) == -signal.SIGINT
  assert "Traceback" not in rest
