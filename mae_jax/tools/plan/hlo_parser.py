"""Parses the text of a compiled program, as XLA prints it.

There is no Python library for that text. This parser reads what `hlo_costs`
needs: shapes with memory space and padding, calls, and trip counts of loops.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Self

# The types whose names do not end in their size.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMES = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape.

  Attributes:
    dtype: XLA's name of the type.
    dims: lengths of the dimensions.
    layout: dimensions in order, the fastest varying first.
    tile: tile of the last dimensions in memory, () for none.
    space: memory space: 0 is the chip's main memory, others are on the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  layout: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def bytes(self) -> int:
    """Bytes in memory, with the padding of tiles."""
    lengths = [self.dims[i] for i in reversed(self.layout)]
    lengths = lengths or list(self.dims)
    for i, size in enumerate(reversed(self.tile), 1):
      if i <= len(lengths):
        lengths[-i] = -(-lengths[-i] // size) * size
    return math.prod(lengths) * _bits(self.dtype) // 8


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  digits = re.match(r"[a-z]+(\d+)", dtype)  # f32, bf16, s8, c128, f8e4m3
  return int(digits.group(1)) if digits else 0


def without_tiles(text: str) -> str:
  """Removes tiles from the text of a program or a shape."""
  return re.sub(r"T\([\d,]*\)", "", text)


def arrays(shape: str) -> list[Array]:
  """Returns the arrays of a shape, those of a tuple in order."""
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
    name: its name, unique in the module.
    opcode: the operation.
    shape: shape of the result, as text.
    operands: names of the operands.
    inside: the text between the brackets of the operands.
    attributes: the text behind the operands.
    root: whether it is the result of its computation.
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
    """The arrays of the result."""
    return arrays(self.shape)

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute such as "body" names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found.group(1) if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: the instructions of each computation by name, in order.
    entry: name of the computation that runs.
  """

  computations: Mapping[str, Computation]
  entry: str

  @classmethod
  def parse(cls, text: str) -> Self:
    """Parses the text of `compiled.as_text()`.

    Raises:
      ValueError: if the text has another form.
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
    """Returns the trip count of a `while`; None if the text has none."""
    known = _TRIPS.search(loop.attributes)
    if known:
      return int(known.group(1))
    condition = self.computations.get(loop.called("condition") or "", {})
    for each in condition.values():
      if each.opcode == "compare" and "direction=LT" in each.attributes:
        limit = condition.get(each.operands[1])
        if limit is not None and limit.opcode == "constant":
          return int(limit.inside)
    return None

  def root(self, computation: str) -> Instruction:
    """Returns the result of a computation."""
    found = self.computations[computation].values()
    return next(each for each in found if each.root)

  def runs(self) -> Iterator[tuple[str, float]]:
    """Returns the computations that run, and how often each one does.

    Loops count by their trips, or once if those are unknown. The branches of a
    conditional count in equal shares. Fusions are not entered.
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
    """Returns instructions, with those in fusions and asynchronous calls."""
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
  """Returns the position of the bracket that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if not depth:
      return place
  raise ValueError(f"a bracket is not closed in {text[:100]!r}")
