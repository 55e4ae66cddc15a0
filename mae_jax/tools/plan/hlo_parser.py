"""Reads the text of a compiled program, as XLA prints it.

There is no library for it in Python. What is read is what `costs` needs:
shapes with their memory space and padding, who calls whom, and how often loops
turn.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {
  "pred": 8,
  "token": 0,
  "opaque": 0,
  "bf16": 16,
  "c64": 64,
  "c128": 128,
}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMES = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape.

  Attributes:
    dtype: as XLA names it.
    dims: lengths.
    layout: dimensions, the one that varies fastest first.
    tile: of its last dimensions in memory, () for none.
    space: memory it lives in: 0 is the chip's main memory, others are on chip.
  """

  dtype: str
  dims: tuple[int, ...]
  layout: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def bytes(self) -> int:
    """In memory, with the padding of its tiles."""
    lengths = [self.dims[i] for i in reversed(self.layout or self._row_major)]
    for i, size in enumerate(reversed(self.tile), 1):
      if i <= len(lengths):
        lengths[-i] = -(-lengths[-i] // size) * size
    return math.prod(lengths) * _bits(self.dtype) // 8

  @property
  def _row_major(self) -> tuple[int, ...]:
    return tuple(range(len(self.dims)))[::-1]


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  digits = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, f8e4m3
  return int(digits.group(1)) if digits else 0


def without_tiles(text: str) -> str:
  """A program's text, or a shape's, as if nothing were padded."""
  return re.sub(r"T\([\d,]*\)", "", text)


def arrays(shape: str) -> list[Array]:
  """The arrays of a shape, a tuple's in order."""
  found = []
  for dtype, dims, rest in _ARRAY.findall(shape):
    order, _, properties = rest.partition(":")
    tile = re.search(r"T\(([\d,]*)\)", properties)
    space = re.search(r"S\((\d+)\)", properties)
    found.append(
      Array(
        dtype,
        _numbers(dims),
        _numbers(order),
        _numbers(tile.group(1)) if tile else (),
        int(space.group(1)) if space else 0,
      )
    )
  return found


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(each) for each in text.split(",") if each)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the module.
    opcode: what it does.
    shape: of its result, as text.
    operands: names.
    inside: the text between the brackets of its operands.
    attributes: the text behind them.
    root: whether it is its computation's result.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  inside: str
  attributes: str
  root: bool

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """Of its result."""
    return arrays(self.shape)

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute such as "body" names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found.group(1) if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: by name, each its instructions by name, in order.
    entry: name of the one that is run.
  """

  computations: Mapping[str, Computation]
  entry: str

  @classmethod
  def parse(cls, text: str) -> Module:
    """Reads what `compiled.as_text()` gives.

    Raises:
      ValueError: if it is not such a text.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header.group(2), {})
        entry = header.group(2) if header.group(1) else entry
      elif line.startswith("}"):
        current = None
      elif current is not None and " = " in line:
        instruction = _instruction(line)
        current[instruction.name] = instruction
    if not entry:
      raise ValueError("there is no ENTRY in the program's text")
    return cls(computations, entry)

  def trips(self, loop: Instruction) -> int | None:
    """How often a `while` turns; None if its text does not tell."""
    known = _TRIPS.search(loop.attributes)
    if known:
      return int(known.group(1))
    condition = self.computations.get(loop.called("condition") or "", {})
    for each in condition.values():
      if (
        each.opcode == "label_efficiency" and "direction=LT" in each.attributes
      ):
        limit = condition.get(each.operands[1])
        if limit is not None and limit.opcode == "constant":
          return int(limit.inside)
    return None

  def root(self, computation: str) -> Instruction:
    """The result of a computation."""
    found = self.computations[computation].values()
    return next(each for each in found if each.root)

  def runs(self) -> Iterator[tuple[str, float]]:
    """The computations that are run as they stand, and how often each is.

    Loops count by their turns, at least one where that is not known; of a
    choice each branch is taken as often as the others. Fusions are not gone
    into.
    """

    def visit(name: str, times: float) -> Iterator[tuple[str, float]]:
      yield name, times
      for each in self.computations[name].values():
        if each.opcode == "while":
          body = each.called("body")
          assert body is not None
          yield from visit(body, times * (self.trips(each) or 1))
        elif each.opcode == "call":
          target = each.called("to_apply")
          if target:
            yield from visit(target, times)
        elif each.opcode == "conditional":
          branches = re.search(
            r"branch_computations=\{([^}]*)\}", each.attributes
          )
          names = _NAMES.findall(branches.group(1)) if branches else []
          for key in ("true_computation", "false_computation"):
            names += [found] if (found := each.called(key)) else []
          for branch in names:
            yield from visit(branch, times / len(names))

    yield from visit(self.entry, 1)

  def inside(self, computation: str) -> Iterator[tuple[str, Instruction]]:
    """Its instructions and those of its fusions and asynchronous calls."""
    for each in self.computations[computation].values():
      yield computation, each
      target = each.called("calls")
      if target is not None and target in self.computations:
        yield from self.inside(target)


def _instruction(line: str) -> Instruction:
  left, _, right = line.strip().partition(" = ")
  root = left.startswith("ROOT ")
  is_tuple = right.startswith("(")
  end = _closing(right, 0) + 1 if is_tuple else right.index(" ")
  shape, rest = right[:end], right[end:].strip()
  start = rest.index("(")
  close = _closing(rest, start)
  inside = rest[start + 1 : close]
  return Instruction(
    name=left.removeprefix("ROOT ").lstrip("%"),
    opcode=rest[:start],
    shape=shape,
    operands=tuple(_NAMES.findall(inside)),
    inside=inside,
    attributes=rest[close + 1 :],
    root=root,
  )


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` is closed."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if not depth:
      return place
  raise ValueError(f"a bracket is not closed in {text[:100]!r}")
