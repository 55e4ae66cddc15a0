"""Tests that messages escape control characters."""

from __future__ import annotations

from mae_jax.utils import console


def test_control_characters_are_escaped(capsys):
  name = "a\x1b[2Jb\rc\x07.png"
  console.info(f"{name} is read")
  console.warn(f"{name} cannot be read")
  out, err = capsys.readouterr()
  assert out == "a\\x1b[2Jb\\rc\\x07.png is read\n"
  assert err == "warning: a\\x1b[2Jb\\rc\\x07.png cannot be read\n"


def test_newlines_and_letters_stay(capsys):
  console.info("one\ttwo\nthree: Grün")
  assert capsys.readouterr().out == "one\ttwo\nthree: Grün\n"
