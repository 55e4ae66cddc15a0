"""Tests the command line that is made from a function's signature."""

from __future__ import annotations

import importlib

import pytest

from mae_jax import __main__ as commands
from mae_jax.tools import cli


def example(
  source: cli.Path,
  /,
  out: cli.Path = "out",
  *,
  size: cli.Size | None = None,
  shares: cli.Numbers = (0.5, 0.75),
  browser: bool = True,
  fast: bool = False,
  count: int = 3,
) -> None:
  """Does an example.

  Args:
    source: the input.
    out: the output.
    size: height and width.
    shares: some shares, 50 % by default.
    browser: do not open the browser.
    fast: hurry.
    count: how often.
  """
  print((source, out, size, shares, browser, fast, count))


def test_flags_are_made_of_the_signature(capsys, monkeypatch):
  monkeypatch.setenv("HOME", "/home/x")
  monkeypatch.setattr(cli.signals, "exit_on_signals", lambda text: None)
  cli.run(example, "example", ["~/a", "--size=2,3", "--no_browser", "--fast"])
  found = capsys.readouterr().out
  assert found == (
    "('/home/x/a', 'out', (2, 3), (0.5, 0.75), False, True, 3)\n"
  )
  with pytest.raises(SystemExit, match="did you mean --count"):
    cli.run(example, "example", ["a", "--coutn=4"])
  with pytest.raises(SystemExit, match="--count"):
    cli.run(example, "example", ["a", "--count=many"])
  with pytest.raises(SystemExit, match="'b' is not a flag"):
    cli.run(example, "example", ["a", "b"])


def test_help_is_made_of_the_docstring(capsys):
  with pytest.raises(SystemExit):
    cli.run(example, "example", ["--help"])
  found = capsys.readouterr().out
  assert found.startswith("usage: mae-jax example ")
  for text in (
    "Does an example.",
    "--count COUNT",
    "how often (default: 3)",
    "some shares, 50 % by default",
    "--no_browser",
  ):
    assert text in found


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_each_command_has_help(name, capsys):
  with pytest.raises(SystemExit) as raised:
    commands.main([name, "--help"])
  assert raised.value.code in (0, None)
  found = capsys.readouterr().out
  assert found.startswith(f"usage: mae-jax {name} ")
  if name == "train":
    assert "train --config=RECIPE --workdir=WORKDIR [--flag" in found
    assert " ".join(found.split()).count("(required)") == 2
  assert "--debug" in found


def test_all_commands_are_listed(capsys):
  commands.main(["--help"])
  found = capsys.readouterr().out
  for name, command in commands.COMMANDS.items():
    assert f"  {name}" in found
    assert command.text in found
    module, function = command.function.split(":")
    assert callable(getattr(importlib.import_module(module), function))
