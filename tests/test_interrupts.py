"""What a signal does where something is at stake, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

PROGRAM = textwrap.dedent(
  """
  import sys, time
  from mae_jax import interrupts

  stop = interrupts.Interrupts(grace_seconds=float(sys.argv[1]))
  stop.install()
  with stop.at_stake():
    print("ready", flush=True)
    time.sleep(30)
  """
)


@pytest.fixture
def process(request):
  started = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(request.param)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with started:
    assert started.stdout.readline() == "ready\n"
    yield started
    started.kill()


@pytest.mark.parametrize("process", [60], indirect=True)
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


@pytest.mark.parametrize("process", [0.3], indirect=True)
@pytest.mark.parametrize(
  "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_the_grace_is_bounded(process, number):
  process.send_signal(number)
  assert process.wait(10) == 75
  assert "train.stop_seconds=0.3" in process.stderr.read()


@pytest.mark.parametrize("process", [0.3], indirect=True)
def test_a_reader_that_went_away_changes_nothing(process):
  process.stderr.close()
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 75
