"""Builds an ONNX graph from nodes, and keeps the values of JAX's variables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

BATCH = "batch"


class Tensor(NamedTuple):
  """A value that the graph computes.

  Attributes:
    name: its name in the graph.
    whole: False if axes of length 1 still have to be broadcast.
  """

  name: str
  whole: bool = True


Value = Tensor | np.ndarray  # arrays are constants
Equation = Any  # core.JaxprEqn, whose types hide shapes


class Graph:
  """A graph under construction, and the values of a jaxpr's variables."""

  def __init__(self, first_input: str):
    """Starts a graph; the first axis of `first_input` is the batch."""
    self.values: dict[Any, Value] = {}
    self.nodes: list[onnx.NodeProto] = []
    self.constants: list[onnx.TensorProto] = []
    self._names: dict[int, tuple[str, np.ndarray]] = {}
    self._first_input = first_input
    self._batch = ""

  def read(self, atom: Any) -> Value:
    """Returns the value of a variable or literal."""
    if isinstance(atom, core.Literal):
      aval: Any = atom.aval
      return np.asarray(atom.val, aval.dtype)
    return self.values[atom]

  def name(self, value: Value) -> str:
    """Returns the name of a value; adds a constant when it is first used."""
    if isinstance(value, Tensor):
      return value.name
    if id(value) not in self._names:
      name = f"c{len(self._names)}"
      # The array is kept, so that no other one gets its id.
      self._names[id(value)] = name, value
      array = np.ascontiguousarray(value).reshape(value.shape)
      self.constants.append(numpy_helper.from_array(array, name))
    return self._names[id(value)][0]

  def whole(self, atom: Any) -> str:
    """Returns the name of a value in its full shape."""
    value = self.read(atom)
    shape = atom.aval.shape
    if is_whole(value, shape):
      return self.name(value)
    parts = [
      self.name(np.array([size])) if isinstance(size, int) else self._size(size)
      for size in shape
    ]
    size = self.node("Concat", parts, axis=0)
    return self.node("Expand", [self.name(value), size.name]).name

  def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> Tensor:
    """Adds a node with one output."""
    out = f"t{len(self.nodes)}"
    self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
    return Tensor(out)

  def elementwise(self, op: str, eqn: Equation, **attributes: Any) -> Any:
    """Adds a node whose inputs broadcast."""
    return self.broadcasting(op, eqn, map(self.read, eqn.invars), **attributes)

  def broadcasting(
    self,
    op: str,
    eqn: Equation,
    inputs: Any,
    **attributes: Any,
  ) -> Tensor:
    """Adds a node of such inputs; the result may have to be broadcast too."""
    shape, inputs = eqn.outvars[0].aval.shape, list(inputs)
    node = self.node(op, [self.name(each) for each in inputs], **attributes)
    whole = any(is_whole(each, shape) for each in inputs)
    return node._replace(whole=whole)

  def reshape(self, name: str, shape: Sequence[Any]) -> Tensor:
    """Adds a Reshape, in which one size may depend on the batch."""
    sizes = [each if isinstance(each, int) else -1 for each in shape]
    assert sizes.count(-1) <= 1
    return self.node("Reshape", [name, self.name(np.array(sizes))])

  def cut(self, name: str, starts: Any, stops: Any, axes: Any) -> Tensor:
    """Adds a Slice."""
    lists = [
      self.name(np.array(each, np.int64)) for each in (starts, stops, axes)
    ]
    return self.node("Slice", [name, *lists])

  def _size(self, size: Any) -> str:
    """Returns the name of a vector of one size, that of the batch."""
    assert str(size) == BATCH
    if not self._batch:
      self._batch = self.node("Shape", [self._first_input], start=0, end=1).name
    return self._batch


def is_whole(value: Value, shape: Any) -> bool:
  """Checks whether a value has the full shape of its variable."""
  if isinstance(value, Tensor):
    return value.whole
  return value.shape == tuple(shape)
