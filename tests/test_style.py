"""Checks the rules of plain English that a program can check.

Docstrings start with a verb (functions) or a noun (classes), sentences avoid a
few phrases that read as riddles, and spelling is American.
"""

from __future__ import annotations

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CODE = ("mae_jax", "configs", "bench", "tests", "setup.py")
DOCS = ("README.md", "CONTRIBUTING.md", "docs", "launch")

# No docstring starts with one of these.
BAD_FIRST_WORDS = {
  *("What", "Which", "How", "Of", "By", "As", "Those", "See", "Whether"),
  *("Where", "When", "From", "With", "That", "This", "Likewise", "It", "Its"),
}
# Nouns and adverbs that look like verbs of the third person.
NOT_VERBS = {
  *("Always", "Arrays", "Batches", "Bytes", "Checkpoints", "Classes", "Counts"),
  *("Features", "Files", "Flags", "Flops", "Images", "Kernels", "Labels"),
  *("Lines", "Losses", "Masks", "Metrics", "Names", "Numbers", "Patches"),
  *("Parameters", "Pictures", "Pixels", "Positions", "Predictions", "Rows"),
  *("Seconds", "Settings", "Shapes", "Sides", "Steps", "Tables", "Tensors"),
  *("Tokens", "Values", "Weights", "Words", "Plus", "Less", "Across"),
} - {
  "Counts",
  "Lists",
  "Names",
  "Shapes",
  "Steps",
  "Weights",
  "Masks",
  "Labels",
}
PHRASES = (
  *("likewise", "see there", "in vain", "what it costs", "to whoever"),
  *("that is what", "of those that", "as ever", "for who wants"),
  *("is told", "are told", "be told", "goes on from", "gone on", "go on from"),
  *("tells of", "nothing is said", "what there is", "by itself alone"),
)
BRITISH = re.compile(
  r"\b\w*(?:colour|grey|neighbour|behaviour|favour|honour|labelled|centred|"
  r"centre|licence|analys(?:e|es|ed|ing)\b|catalogue|modelled|cancelled|"
  r"(?:optim|normal|initial|quant|serial|util|real|organ|recogn|general|"
  r"random|regular|standard|summar|visual|synchron|total|polar|special|"
  r"minim|maxim|categor|capital|penal|memor|token|vector|parallel|final)"
  r"is(?:e|es|ed|er|ers|ing|ation|ations)\b)\w*",
  re.IGNORECASE,
)


def python_files() -> list[str]:
  found = []
  for name in CODE:
    path = ROOT / name
    found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
  me = pathlib.Path(__file__)
  return [str(path.relative_to(ROOT)) for path in found if path != me]


def doc_files() -> list[str]:
  found = []
  for name in DOCS:
    path = ROOT / name
    found += (
      [
        each
        for each in sorted(path.rglob("*"))
        if each.suffix in (".md", ".sh") and "_build" not in each.parts
      ]
      if path.is_dir()
      else [path]
    )
  return [str(path.relative_to(ROOT)) for path in found]


def docstring_problems(source: str) -> list[str]:
  """Lists docstrings whose first word breaks the rules."""
  found = []
  for node in ast.walk(ast.parse(source)):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
    if not isinstance(node, kinds):
      continue
    text = ast.get_docstring(node)
    if not text:
      continue
    first = text.split()[0].rstrip(".,:;'")
    line = 1 if isinstance(node, ast.Module) else node.lineno
    where = f"line {line}: {text.splitlines()[0]!r}"
    if first in BAD_FIRST_WORDS:
      found.append(f"{where} starts with {first}")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      is_verb = re.fullmatch(r"[A-Z][a-z]+s", first) and first not in NOT_VERBS
      if not is_verb and not _is_noun_like(node):
        found.append(f"{where} does not start with a verb, as 'Reads'")
  return found


def _is_noun_like(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  """Accepts properties and fixtures, which are things, and tests."""
  names = {ast.unparse(each) for each in node.decorator_list}
  return node.name.startswith("test_") or any(
    "property" in name or "fixture" in name for name in names
  )


def prose(path: str) -> list[tuple[int, str]]:
  """Returns (line number, text) of strings and comments, or of all lines."""
  text = (ROOT / path).read_text()
  if not path.endswith(".py"):
    return list(enumerate(text.splitlines(), 1))
  kinds = (tokenize.STRING, tokenize.COMMENT, tokenize.FSTRING_MIDDLE)
  return [
    (token.start[0] + offset, line)
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type in kinds
    for offset, line in enumerate(token.string.splitlines())
  ]


def phrase_problems(lines: list[tuple[int, str]]) -> list[str]:
  """Lists lines with a phrase of PHRASES."""
  return [
    f"line {number}: {phrase!r}"
    for number, line in lines
    for phrase in PHRASES
    if re.search(rf"\b{re.escape(phrase)}\b", line, re.IGNORECASE)
  ]


def spelling_problems(lines: list[tuple[int, str]]) -> list[str]:
  """Lists words that are not in American spelling."""
  return [
    f"line {number}: {match[0]}"
    for number, line in lines
    for match in BRITISH.finditer(line)
  ]


# One test for all files: hundreds of tests of a millisecond take seconds.
def test_docstrings():
  found = {
    path: docstring_problems((ROOT / path).read_text())
    for path in python_files()
  }
  assert not {path: wrong for path, wrong in found.items() if wrong}


def test_phrases():
  files = python_files() + doc_files()
  found = {path: phrase_problems(prose(path)) for path in files}
  assert not {path: wrong for path, wrong in found.items() if wrong}


def test_spelling():
  found = {}
  for path in python_files() + doc_files():
    lines = (ROOT / path).read_text().splitlines()
    found[path] = spelling_problems(list(enumerate(lines, 1)))
  assert not {path: wrong for path, wrong in found.items() if wrong}


@pytest.mark.parametrize(
  ("source", "wrong"),
  [
    ('def f():\n  """Reads a file."""', False),
    ('def f():\n  """What a file holds."""', True),
    ('def f():\n  """The lines of a file."""', True),
    ('def f():\n  """Whether it is there."""', True),
    ('@property\ndef f(self):\n  """The lines of a file."""', False),
    ('class A:\n  """A file."""', False),
    ('class A:\n  """What is in a file."""', True),
    ('"""How files are read."""', True),
  ],
)
def test_a_wrong_docstring_is_found(source: str, wrong: bool):
  assert bool(docstring_problems(source)) == wrong


def test_wrong_words_are_found():
  lines = [(1, "Likewise, it is drawn in grey."), (2, "a normalised colour")]
  assert phrase_problems(lines) == ["line 1: 'likewise'"]
  assert spelling_problems(lines) == [
    "line 1: grey",
    "line 2: normalised",
    "line 2: colour",
  ]
