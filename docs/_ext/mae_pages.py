"""Sphinx extension: fills pages from the code, and fixes links out of `docs/`.

A page has a marker, an HTML comment that a reader on a code host does not see:

    <!-- generated: settings -->
    <!-- generated: include ../CHANGELOG.md -->

The text behind it is written when the documentation is built, so it cannot
differ from the code.
"""

import argparse
import dataclasses
import os
import pathlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from mae_jax import __main__ as program
from mae_jax.api.recipes import list_recipes
from mae_jax.config import overrides, schema
from mae_jax.tools import cli

DOCS = pathlib.Path(__file__).parents[1]
ROOT = DOCS.parent
_MARKER = re.compile(r"<!-- generated: (\w+) ?(\S*) -->")
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def setup(app: Any) -> dict[str, bool]:
  """Connects the extension to Sphinx."""
  app.connect("source-read", _on_source)
  app.connect("env-before-read-docs", _read_again)
  return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read_again(app: Any, env: Any, docnames: list[str]) -> None:
  """Adds pages with generated text: Sphinx cannot know that it changed."""
  for name in env.found_docs - set(docnames):
    path = pathlib.Path(env.doc2path(name))
    if _MARKER.search(path.read_text()):
      docnames.append(name)


def _on_source(app: Any, docname: str, source: list[str]) -> None:
  page = DOCS / f"{docname}.md"
  source[0] = render(source[0], page)


def render(text: str, page: pathlib.Path) -> str:
  """Fills the markers of a page and fixes its links."""

  def fill(match: re.Match[str]) -> str:
    kind, argument = match.groups()
    if kind == "include":
      path = (page.parent / argument).resolve()
      body = path.read_text().partition("\n")[2]  # the page has the title
      return _mend(body, path, page)
    return str(GENERATORS[kind]())

  return _MARKER.sub(fill, _mend(text, page, page))


def _mend(text: str, source: pathlib.Path, page: pathlib.Path) -> str:
  """Changes links to files that are no pages of the documentation.

  Results of benchmarks have pages under `benchmarks/`. Of other files the name
  stays, without a link.

  Args:
    text: Markdown.
    source: the file that the text, and so its links, come from.
    page: the page that shows the text.
  """
  code = [match.span() for match in _FENCE.finditer(text)]

  def fix(match: re.Match[str]) -> str:
    picture, label, address = match.groups()
    inside = any(begin <= match.start() < end for begin, end in code)
    path, anchor, name = address.partition("#")
    if inside or not path or ":" in path:
      return match[0]
    target = (source.parent / path).resolve()
    if target == ROOT / "CHANGELOG.md":
      target = DOCS / "changelog.md"
    if target.parent == ROOT / "bench" / "results" and target.suffix == ".md":
      target = DOCS / "benchmarks" / target.name
    if picture or (target.is_relative_to(DOCS) and target != page):
      found = os.path.relpath(target, page.parent)
      return f"{picture}[{label}]({found}{anchor}{name})"
    return label

  return _LINK.sub(fix, text)


def settings() -> str:
  """Writes a table of all settings, a section each."""
  sections: dict[str, list[str]] = {}
  for name, field, rule in schema.rules():
    section = name.rpartition(".")[0]
    sections.setdefault(section, []).append(_setting(name, field, rule))
  head = "| setting | default | |\n|---|---|---|"
  parts = []
  for section, rows in sections.items():
    kind: Any = schema.SECTIONS.get(section, schema.Config)
    title = f"`{section}`" if section else "The run"
    intro = (kind.__doc__ or "").partition("\n")[0]
    # Sphinx's own anchors of headings drop the dots of names.
    parts += [f"## {title}", intro, "\n".join([head, *rows])]
  return "\n\n".join(parts)


def _setting(name: str, field: dataclasses.Field, rule: schema.Rule) -> str:
  default = field.default
  shown = f"`{_shown(default)}`"
  if default is dataclasses.MISSING:
    shown = "the recipe's"
  elif default is None:
    shown = "see the text"
  parts = [rule.help[:1].upper() + rule.help[1:] + "."]
  if rule.choices:
    parts.append(", ".join(f"`{each}`" for each in rule.choices) + ".")
  else:
    bounds = f"; {rule.bounds}" if rule.bounds else ""
    parts.append(f"*{_kind(field)}{bounds}.*")
  if rule.resumable:
    parts.append("**May change on resume.**")
  text = " ".join(parts).replace("|", "&#124;")
  return f"| `{name}` | {shown} | {text} |"


def _shown(value: Any) -> str:
  if isinstance(value, tuple) and value:
    return ",".join(map(_shown, value))
  return f"{value:.4g}" if isinstance(value, float) else repr(value)


_KINDS = {
  "bool": "true or false",
  "float": "number",
  "float, ...": "numbers",
  "float, float": "two numbers",
  "int": "whole number",
  "int, ...": "whole numbers",
  "int, int": "two whole numbers",
  "str": "text",
  "str, ...": "words",
}


def _kind(field: dataclasses.Field) -> str:
  text = str(field.type).removesuffix(" | None")
  if schema.rule_of(field).duration:
    return "length, as '40 epochs'"
  return _KINDS[text.removeprefix("tuple[").removesuffix("]")]


def recipes() -> str:
  """Writes a table of recipes with the first line of each docstring."""
  rows = ["| recipe | what it does |", "|---|---|"]
  for name in list_recipes():
    path = overrides.find_recipe(name)
    match = re.search(r'"""(.*)', pathlib.Path(path).read_text())
    if match and not match[1].endswith('"""'):  # no short name of another
      rows.append(f"| `{name}` | {match[1]} |")
  return "\n".join(rows)


def commands() -> str:
  """Writes a section for each command, with its flags."""
  return "\n\n".join(
    part
    for name, command in program.COMMANDS.items()
    for part in _command(name, command)
  )


def _command(name: str, command: program.Command) -> Iterator[str]:
  function = pkgutil.resolve_name(command.function)
  if name in ("train", "evaluate"):
    function = pkgutil.resolve_name("mae_jax.main:train")
  parser = cli.parser(function, name)
  yield f"## `{name}`"
  yield command.text.replace("`train`", "[`train`](#train)")
  has_config = "--config" in {
    option for action in parser._actions for option in action.option_strings
  }
  yield f"```sh\nmae-jax {name} {_usage(parser)}\n```"
  body = (parser.description or "").partition("\n\n")[2]
  if body and name != "evaluate":
    yield body
  rows = ["| flag | default | |", "|---|---|---|"]
  for action in parser._actions:
    if action.dest not in ("help", "debug"):
      rows.append(_flag(action))
  if has_config:
    rows.append(
      "| `--config.SECTION.SETTING=VALUE` | the recipe's | "
      "changes a [setting](settings.md) |"
    )
  yield "\n".join(rows)


def _usage(parser: argparse.ArgumentParser) -> str:
  """Lists the arguments that must be given."""
  parts = ["--config=RECIPE"] if "--config" in parser.format_help() else []
  for action in parser._actions:
    if not action.option_strings:
      parts.append(action.dest.upper())
    elif action.required:
      parts.append(f"{action.option_strings[-1]}={action.metavar}")
  return " ".join([*parts, "[--flag=value ...]"])


def _flag(action: argparse.Action) -> str:
  text = (action.help or "").replace("%%", "%")
  text = text.replace(", which are listed below", "")
  text = re.sub(r"(?<![\w`])(--[\w.]+(?:=[^\s,;)]+)?)", r"`\1`", text)
  text = text.removesuffix(" (required)")
  text = re.sub(r" \(default: [^()]*(\([^()]*\))?[^()]*\)$", "", text)
  default = ""
  if action.default not in (None, "", ()):
    value = action.default
    default = f"`{value if isinstance(value, str) else _shown(value)}`"
  if (
    action.dest == "config"
    or action.required
    or (not action.option_strings and action.nargs is None)
  ):
    default = "required"
  if isinstance(action.default, bool):
    default = "off"
  name = action.option_strings[-1] if action.option_strings else action.dest
  return f"| `{name}` | {default} | {text.replace('|', '&#124;')} |"


GENERATORS = {
  "commands": commands,
  "recipes": recipes,
  "settings": settings,
}
