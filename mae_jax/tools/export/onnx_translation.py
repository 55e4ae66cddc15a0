"""Translates a JAX function to ONNX, primitive by primitive.

The function is traced with a symbolic batch size and without `jit`, so that
scans become straight code. A primitive that is missing in `_OPS` is refused:
the graph is never an approximation. Its opset is an old one, which runtimes of
several years read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
import onnx
from onnx import helper

from mae_jax.tools.export.onnx_graph import (
  BATCH,
  Equation,
  Graph,
  Tensor,
  Value,
)
from mae_jax.utils.errors import ConfigError

OPSET, IR_VERSION = 18, 8
_NARROW = ("int8", "bfloat16")  # dtypes of stored weights


def build(
  call: Callable[..., jax.Array],
  weights: Mapping[str, jax.Array],
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  output: str,
) -> onnx.ModelProto:
  """Builds the model of a function.

  Args:
    call: maps weights and inputs [B, ...] to [B, ...].
    weights: the first argument of `call`; they become constants.
    inputs: shape and dtype of one example of each further argument, by name.
    output: name of the result.

  Raises:
    ConfigError: if ONNX has no operator for a primitive of the function.
  """
  (batch,) = jax.export.symbolic_shape(BATCH)
  specs = [
    jax.ShapeDtypeStruct((batch, *each.shape), each.dtype)
    for each in inputs.values()
  ]
  with jax.disable_jit():
    traced = jax.make_jaxpr(call)(dict(weights), *specs)
  graph = Graph(next(iter(inputs)))
  constants = [*traced.consts, *jax.tree.leaves(dict(weights))]
  jaxpr = traced.jaxpr
  graph.values.update(
    zip(
      [*jaxpr.constvars, *jaxpr.invars],
      [*map(np.asarray, constants), *map(Tensor, inputs)],
      strict=True,
    )
  )
  for eqn in jaxpr.eqns:
    _add(graph, eqn)
  (out,) = jaxpr.outvars
  graph.nodes.append(helper.make_node("Identity", [graph.whole(out)], [output]))
  proto = helper.make_graph(
    graph.nodes,
    "mae_jax",
    [_describe(name, x) for name, x in zip(inputs, specs, strict=True)],
    [_describe(output, out.aval)],
    graph.constants,
  )
  return helper.make_model(
    proto,
    producer_name="mae_jax",
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
  )


def _describe(name: str, x: Any) -> onnx.ValueInfoProto:
  dtype = helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype))
  shape = [each if isinstance(each, int) else BATCH for each in x.shape]
  return helper.make_tensor_value_info(name, dtype, shape)


def _add(graph: Graph, eqn: Equation) -> None:
  """Adds an equation of the jaxpr."""
  folded = _fold(graph, eqn)
  if folded is None:
    name = eqn.primitive.name
    if name not in _OPS:
      raise ConfigError(
        f"--format=onnx: the network computes with {name}, for which this "
        "exporter has no ONNX operator: use --format=stablehlo"
      )
    folded = _OPS[name](graph, eqn)
  outs = folded if isinstance(folded, list) else [folded]
  graph.values.update(zip(eqn.outvars, outs, strict=True))


def _fold(graph: Graph, eqn: Equation) -> list[Value] | None:
  """Computes an equation of constants; None if it has to be a node."""
  values = map(graph.read, eqn.invars)
  inputs = [each for each in values if isinstance(each, np.ndarray)]
  shapes = [each.aval.shape for each in eqn.outvars]
  if len(inputs) < len(eqn.invars) or not all(
    isinstance(size, int) for shape in shapes for size in shape
  ):
    return None
  name = eqn.primitive.name
  if _OPS.get(name) is _inline:
    return None  # its equations are folded
  if name == "convert_element_type" and inputs[0].dtype.name in _NARROW:
    return None  # stored weights stay as small as they are
  if name in ("reshape", "squeeze"):
    return [inputs[0].reshape(shapes[0])]
  if name == "slice" and not eqn.params["strides"]:
    bounds = zip(
      eqn.params["start_indices"], eqn.params["limit_indices"], strict=True
    )
    return [inputs[0][tuple(slice(*each) for each in bounds)]]
  device = jax.local_devices(backend="cpu")[0]
  placed = [jax.device_put(each, device) for each in inputs]
  with jax.default_device(device):
    outs = eqn.primitive.bind(*placed, **eqn.params)
  outs = outs if eqn.primitive.multiple_results else [outs]
  return list(map(np.asarray, outs))


def _same(graph: Graph, eqn: Equation) -> Value:
  return graph.read(eqn.invars[0])


def _inline(graph: Graph, eqn: Equation) -> list[Value]:
  """Adds the equations of a function with a derivative of its own."""
  inner = eqn.params["call_jaxpr"]
  names = [*inner.jaxpr.constvars, *inner.jaxpr.invars]
  values = [*map(np.asarray, inner.consts), *map(graph.read, eqn.invars)]
  graph.values.update(zip(names, values, strict=True))
  for each in inner.jaxpr.eqns:
    _add(graph, each)
  return list(map(graph.read, inner.jaxpr.outvars))


def _elementwise(op: str) -> Callable[[Graph, Equation], Tensor]:
  return lambda graph, eqn: graph.elementwise(op, eqn)


def _square(graph: Graph, eqn: Equation) -> Tensor:
  return graph.broadcasting("Mul", eqn, [graph.read(eqn.invars[0])] * 2)


def _power(graph: Graph, eqn: Equation) -> Tensor:
  x = graph.read(eqn.invars[0])
  exponent = np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype)
  return graph.broadcasting("Pow", eqn, [x, exponent])


def _rsqrt(graph: Graph, eqn: Equation) -> Tensor:
  return graph.broadcasting("Reciprocal", eqn, [graph.elementwise("Sqrt", eqn)])


def _select(graph: Graph, eqn: Equation) -> Tensor:
  which, no, yes = map(graph.read, eqn.invars)
  return graph.broadcasting("Where", eqn, [which, yes, no])


def _clamp(graph: Graph, eqn: Equation) -> Tensor:
  low, x, high = map(graph.read, eqn.invars)
  return graph.broadcasting(
    "Min", eqn, [graph.broadcasting("Max", eqn, [x, low]), high]
  )


def _cast(graph: Graph, eqn: Equation) -> Tensor:
  dtype = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
  return graph.elementwise("Cast", eqn, to=dtype)


def _reshape(graph: Graph, eqn: Equation) -> Tensor:
  return graph.reshape(graph.whole(eqn.invars[0]), eqn.outvars[0].aval.shape)


def _broadcast(graph: Graph, eqn: Equation) -> Value:
  """Inserts axes of length 1; they are broadcast where they have to be."""
  (operand,) = eqn.invars
  shape = eqn.params["shape"]
  aligned: list[Any] = [1] * len(shape)
  for axis, size in zip(
    eqn.params["broadcast_dimensions"], operand.aval.shape, strict=True
  ):
    aligned[axis] = size
  value = graph.read(operand)
  if isinstance(value, np.ndarray) and value.shape == operand.aval.shape:
    return value.reshape(aligned)
  done = graph.reshape(graph.whole(operand), aligned)
  return done._replace(whole=tuple(aligned) == tuple(shape))


def _transpose(graph: Graph, eqn: Equation) -> Tensor:
  name = graph.whole(eqn.invars[0])
  return graph.node("Transpose", [name], perm=eqn.params["permutation"])


def _concatenate(graph: Graph, eqn: Equation) -> Tensor:
  names = list(map(graph.whole, eqn.invars))
  return graph.node("Concat", names, axis=eqn.params["dimension"])


def _unstack(graph: Graph, eqn: Equation) -> list[Value]:
  name, axis = graph.whole(eqn.invars[0]), eqn.params["axis"]
  return [
    graph.node("Gather", [name, graph.name(np.array(i))], axis=axis)
    for i in range(len(eqn.outvars))
  ]


def _slice(graph: Graph, eqn: Equation) -> Value:
  if eqn.params["strides"] and set(eqn.params["strides"]) != {1}:
    raise ConfigError(
      "--format=onnx: the network slices with steps, for which this exporter "
      "has no ONNX operator: use --format=stablehlo"
    )
  (operand,) = eqn.invars
  cuts = [
    (start, stop, axis)
    for axis, (start, stop, size) in enumerate(
      zip(
        eqn.params["start_indices"],
        eqn.params["limit_indices"],
        operand.aval.shape,
        strict=True,
      )
    )
    if (start, stop) != (0, size)
  ]
  if not cuts:
    return graph.read(operand)
  return graph.cut(graph.whole(operand), *zip(*cuts, strict=True))


def _gather(graph: Graph, eqn: Equation) -> Tensor:
  """Adds a gather at a constant index, such as x[:, 0] and x[:, 1:]."""
  operand, indices = eqn.invars
  where, numbers = graph.read(indices), eqn.params["dimension_numbers"]
  if not isinstance(where, np.ndarray) or where.ndim != 1:
    raise ConfigError(
      "--format=onnx: the network gathers at several indices, for which this "
      "exporter has no ONNX operator: use --format=stablehlo"
    )
  axes = numbers.start_index_map
  sizes = [eqn.params["slice_sizes"][axis] for axis in axes]
  out = graph.cut(graph.whole(operand), where, where + sizes, axes)
  if numbers.collapsed_slice_dims:
    return graph.reshape(out.name, eqn.outvars[0].aval.shape)
  return out


def _reduce(op: str) -> Callable[[Graph, Equation], Tensor]:
  def add(graph: Graph, eqn: Equation) -> Tensor:
    axes = graph.name(np.array(eqn.params["axes"]))
    return graph.node(op, [graph.whole(eqn.invars[0]), axes], keepdims=0)

  return add


def _dot(graph: Graph, eqn: Equation) -> Tensor:
  """Adds a matrix product of operands that are transposed if need be."""
  (contract, batch), names = eqn.params["dimension_numbers"], []
  ranks = [len(each.aval.shape) for each in eqn.invars]
  free = [
    [axis for axis in range(rank) if axis not in (*summed, *both)]
    for rank, summed, both in zip(ranks, contract, batch, strict=True)
  ]
  if (
    len(contract[0]) != 1
    or len(free[1]) != 1
    or (batch[0] and len(free[0]) != 1)
  ):
    raise ConfigError(
      "--format=onnx: the network has a product over several axes, for which "
      "this exporter has no ONNX operator: use --format=stablehlo"
    )
  orders = (
    (*batch[0], *free[0], *contract[0]),
    (*batch[1], *contract[1], *free[1]),
  )
  for atom, order in zip(eqn.invars, orders, strict=True):
    name = graph.whole(atom)
    if order != tuple(range(len(order))):
      name = graph.node("Transpose", [name], perm=order).name
    names.append(name)
  return graph.node("MatMul", names)


# By the names of JAX's primitives.
_OPS: dict[str, Callable[[Graph, Equation], Any]] = {
  "abs": _elementwise("Abs"),
  "add": _elementwise("Add"),
  "add_any": _elementwise("Add"),
  "and": _elementwise("And"),
  "broadcast_in_dim": _broadcast,
  "clamp": _clamp,
  "concatenate": _concatenate,
  "convert_element_type": _cast,
  "copy": _same,
  "custom_jvp_call": _inline,
  "custom_vjp_call": _inline,
  "div": _elementwise("Div"),
  "dot_general": _dot,
  "eq": _elementwise("Equal"),
  "erf": _elementwise("Erf"),
  "exp": _elementwise("Exp"),
  "gather": _gather,
  "ge": _elementwise("GreaterOrEqual"),
  "gt": _elementwise("Greater"),
  "integer_pow": _power,
  "le": _elementwise("LessOrEqual"),
  "log": _elementwise("Log"),
  "logistic": _elementwise("Sigmoid"),
  "lt": _elementwise("Less"),
  "max": _elementwise("Max"),
  "min": _elementwise("Min"),
  "mul": _elementwise("Mul"),
  "neg": _elementwise("Neg"),
  "not": _elementwise("Not"),
  "or": _elementwise("Or"),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_sum": _reduce("ReduceSum"),
  "reshape": _reshape,
  "rsqrt": _rsqrt,
  "select_n": _select,
  "sharding_constraint": _same,
  "slice": _slice,
  "sqrt": _elementwise("Sqrt"),
  "square": _square,
  "squeeze": _reshape,
  "stop_gradient": _same,
  "sub": _elementwise("Sub"),
  "tanh": _elementwise("Tanh"),
  "transpose": _transpose,
  "unstack": _unstack,
}
