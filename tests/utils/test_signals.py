"""Tests what signals do, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.helpers import commands

# libtpu installs its own handlers, and ours must still work.
BEFORE = {
  "nothing": "",
  "libtpu": "from mae_jax.tools.plan import topology\n"
  "topology.open_topology('v5e:2x2')",
}
TRAIN = textwrap.dedent(
  """
  import sys, threading
  from mae_jax.utils import signals

  # The second Ctrl-C of a wrapper and of a user differ by their delay alone.
  signals._ECHO_SECONDS = float(sys.argv[2])

  class Signals(signals.StopSignals):
    def _on_signal(self, number, first):
      super()._on_signal(number, first)
      print("handled", number, flush=True)

  stop = Signals(grace_seconds=float(sys.argv[1]))
  stop.install()
  exec(sys.argv[3])
  with stop.unsaved_work():
    print("ready", flush=True)
    threading.Event().wait()
  """
)


def start(program: str, *args: object) -> subprocess.Popen:
  process = subprocess.Popen(
    [sys.executable, "-c", program, *map(str, args)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize(("echo", "exits"), [(3600, False), (0, True)])
def test_a_second_ctrl_c_exits_at_once_unless_it_is_an_echo(echo, exits):
  with start(TRAIN, 3600, echo, "") as process:
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == f"handled {signal.SIGINT:d}\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"handled {signal.SIGTERM:d}\n"
    process.send_signal(signal.SIGINT)
    if exits:
      assert process.wait(60) == 130
      assert "left at once" in process.stderr.read()
    else:
      assert process.stdout.readline() == f"handled {signal.SIGINT:d}\n"
      assert process.poll() is None
    process.kill()


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
  "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_the_grace_period_is_bounded(before, number):
  if before == "libtpu":
    pytest.importorskip("libtpu")
  with start(TRAIN, 0.3, 3600, BEFORE[before]) as process:
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "train.shutdown_timeout=0.3" in process.stderr.read()


def test_a_closed_stderr_changes_nothing():
  with start(TRAIN, 0.3, 3600, "") as process:
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


COMMAND = """
import os, sys, threading
from mae_jax.utils import signals

signals.exit_on_signals("interrupted")
with signals.cleanup(lambda: os.unlink(sys.argv[1])):
  {block}
"""
WAIT = 'print("ready", flush=True); threading.Event().wait()'
# Where an exception raised by a handler would be printed and lost.
IN_CALLBACK = (
  "import gc; gc.callbacks.append(lambda *_: (gc.callbacks.clear(), "
  "print('ready', flush=True), threading.Event().wait())); gc.collect()"
)


@pytest.mark.parametrize("block", [WAIT, IN_CALLBACK])
@pytest.mark.parametrize(
  ("number", "code"),
  [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_command_cleans_up_and_exits(tmp_path, block, number, code):
  unfinished = tmp_path / "unfinished"
  unfinished.touch()
  with start(COMMAND.format(block=block), unfinished) as process:
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr.read().strip() == "interrupted"
  assert not unfinished.exists()


def test_no_exit_delays_the_exit(tmp_path):
  block = (
    "signal = __import__('signal')\n"
    "  with signals.no_exit():\n"
    "    os.kill(os.getpid(), signal.SIGINT)\n"
    "    print('ready', flush=True)\n"
    "    sys.stdin.read()\n"
    "    open(sys.argv[1] + '.done', 'w').close()\n"
    "  threading.Event().wait()"
  )
  unfinished = tmp_path / "unfinished"
  unfinished.touch()
  process = subprocess.Popen(
    [sys.executable, "-c", COMMAND.format(block=block), str(unfinished)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(60) == 130
  assert (tmp_path / "unfinished.done").exists()


@pytest.mark.parametrize(
  "block",
  [
    "signals.check()",
    "signals.call_interruptible(threading.Event().wait)",
  ],
)
def test_interruptible_work_stops(block):
  program = textwrap.dedent(
    f"""
    import os, signal, threading
    from mae_jax.utils import signals

    stop = signals.StopSignals(grace_seconds=3600)
    stop.install()
    with stop.unsaved_work():
      try:
        with stop.interruptible():
          print("ready", flush=True)
          while True:
            {block}
      except signals.RunInterrupted:
        print("saved", flush=True)
    """
  )
  with start(program) as process:
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    assert process.wait(60) == 0


def test_with_other_processes_work_stops_only_by_agreement():
  program = textwrap.dedent(
    """
    import threading
    from mae_jax.utils import signals

    stop = signals.StopSignals(grace_seconds=3600, together=True)
    stop.install()
    with stop.unsaved_work(), stop.interruptible():
      assert signals.stop_requested() is False
      print("ready", flush=True)
      while not signals.stop_requested():
        signals.check()
      signals.check()
      print(signals.call_interruptible(lambda: "called"), flush=True)
    assert signals.stop_requested() is None
    """
  )
  with start(program) as process:
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "called\n"
    assert process.wait(60) == 0


def test_a_command_that_still_imports_ends_without_a_traceback():
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
    assert process.wait(60) == -signal.SIGINT
  assert "Traceback" not in rest


_FAILS = """
import sys, threading
from mae_jax.utils import signals
threading.Thread(target=threading.Event().wait).start()
signals.run_process(lambda: sys.exit({code!r}))
"""


@pytest.mark.parametrize(
  ("code", "returned", "text"), [("error: x", 1, "error: x\n"), (75, 75, "")]
)
def test_a_program_that_failed_does_not_wait_for_threads(code, returned, text):
  done = subprocess.run(
    [sys.executable, "-c", _FAILS.format(code=code)],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert (done.returncode, done.stderr) == (returned, text)
