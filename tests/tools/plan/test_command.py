"""Tests of the command `plan` as a user starts it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys

import pytest

from tests.helpers import commands

VIT_B = "--config=configs/vit_b.py"
no_tpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no TPU compiler here"
)


@pytest.mark.parametrize(
  ("args", "text"),
  [
    ((VIT_B,), "arguments are required: --topology"),
    (
      (VIT_B, "--topology=v9:2x2"),
      "--topology=v9:2x2 is not a slice: write a kind of chip (v3, v4, v5e",
    ),
    (
      (VIT_B, "--topology=v5e:2x2", "--batches=64"),
      "--batches is for --search",
    ),
    (
      (VIT_B, "--topology=v5e:2x2", "--search", "--batches=a"),
      "--batches=a are not batch sizes",
    ),
    (
      (VIT_B, "--topology=v5e:2x2", "--num_examples=0"),
      "--num_examples=0 must be at least 1",
    ),
    (("--topology=v5e:2x2",), "--config is missing"),
    ((VIT_B, "--topology=v5e:2x2", "x"), "'x' is not a flag"),
  ],
)
def test_mistakes_are_one_line(args, text: str):
  found = commands.command("plan", *args)
  assert found.returncode == 1
  assert found.stdout == ""
  assert text in found.stderr
  assert found.stderr.count("\n") == 1


@no_tpu
def test_batches_are_checked_before_any_is_compiled():
  args = ("--topology=v5e:2x2", "--search", "--batches=64,10")
  found = commands.command("plan", VIT_B, *args)
  assert found.returncode == 1
  assert found.stdout == ""
  assert "--batches=10 is not a multiple of the 4 devices" in found.stderr


@no_tpu
@pytest.mark.slow
def test_ctrl_c_is_one_line():
  small = ("--config.model.depth=1", "--config.model.decoder_depth=1")
  args = (VIT_B, "--topology=v5e:2x2", "--search", *small)
  process = subprocess.Popen(
    (sys.executable, "-m", "mae_jax", "plan", *args),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    cwd=commands.ROOT,
    text=True,
  )
  with process:
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("pretrain of B/16")
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert process.stderr.read().splitlines() == [
      "stopped by Ctrl-C; what is printed above is true"
    ]


@no_tpu
@pytest.mark.slow
def test_plan_and_search_for_two_by_two_chips():
  args = (
    "--config=configs/vit_b.py",
    "--topology=v5e:2x2",
    "--config.data.batch_size=64",
    # A larger network takes minutes to compile.
    "--config.data.image_size=(64,64)",
    "--config.model.variant=Ti/16",
    "--config.model.width=128",
    "--config.model.heads=2",
    "--config.model.depth=1",
    "--config.model.decoder_width=128",
    "--config.model.decoder_heads=2",
    "--config.model.decoder_depth=1",
  )
  found = commands.command("plan", *args, timeout=900)
  assert found.returncode == 0, found.stderr
  assert found.stderr == ""
  for text in (
    "pretrain of Ti/16 on v5e:2x2: 4 x TPU v5 lite",
    "tokens an image     5 in the encoder, 17 in the decoder",
    "of 17.18 GB: fits",
    "Estimate, a roofline",
  ):
    assert text in found.stdout
  found = commands.command("plan", *args, "--search", timeout=900)
  assert found.returncode == 0, found.stderr
  last = found.stdout.strip().splitlines()[-1]
  assert last.startswith("The fastest that fits: --config.data.batch_size=64 ")
