"""Counts flops, memory traffic and collectives of a compiled program.

XLA's own `cost_analysis` counts the body of a loop once, and on-chip memory
like main memory. Here loops count by their trips, and bytes by memory space.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

from mae_jax.tools.plan import hlo_parser

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute",
)  # fmt: skip
# On TPU, a reduce-scatter may be one operation.
_SCATTERS = "all-reduce-scatter"
# On TPU, a fusion starts a collective, and other fusions hold parts of it until
# it is done.
_MEANWHILE = "async-collective-start"


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation between devices.

  Attributes:
    kind: one of COLLECTIVES.
    times: number of executions in a step, on average.
    bytes: size of the whole array, before it is split or after it is gathered.
    group: number of devices in a group.
    span: difference between the last and the first device number of a group.
    dims: shapes of the arrays, for people.
    source: the operation of the model, as JAX names it.
    overlapped: whether the chip computes at the same time.
  """

  kind: str
  times: float
  bytes: int
  group: int
  span: int
  dims: str
  source: str = ""
  overlapped: bool = False

  @property
  def sent(self) -> float:
    """Bytes that a device sends in one execution, around a ring."""
    if self.group < 2:
      return 0.0
    share = (self.group - 1) / self.group
    turns = {"all-reduce": 2.0, "collective-permute": 1 / share}
    return turns.get(self.kind, 1.0) * share * self.bytes


@dataclasses.dataclass(frozen=True)
class Costs:
  """The costs of one step on one device.

  Attributes:
    flops: flops of matrix products, two for a multiply-add.
    hbm_bytes: bytes read from and written to main memory.
    collectives: the collective operations.
    unknown_loops: number of loops with unknown trip counts; they count once.
    padding: the part of `hbm_bytes` that pads tiles.
  """

  flops: float
  hbm_bytes: float
  collectives: tuple[Collective, ...]
  unknown_loops: int = 0
  padding: float = 0.0

  @property
  def sent(self) -> float:
    """Bytes that a device sends to other devices."""
    return sum(each.times * each.sent for each in self.collectives)

  @property
  def overlapped(self) -> float:
    """Bytes that a device sends while it computes."""
    return sum(e.times * e.sent for e in self.collectives if e.overlapped)

  def by_kind(self) -> dict[str, tuple[float, float]]:
    """Sums number and sent bytes for each kind of collective."""
    result: dict[str, tuple[float, float]] = {}
    for each in self.collectives:
      times, sent = result.get(each.kind, (0.0, 0.0))
      times, sent = times + each.times, sent + each.times * each.sent
      result[each.kind] = times, sent
    return result


def count_costs(text: str, devices: int) -> Costs:
  """Counts the costs of a compiled program, given as `compiled.as_text()`."""
  module = hlo_parser.Module.parse(text)
  flops = 0.0
  collectives: dict[str, Collective] = {}
  unknown = 0
  for computation, times in module.runs():
    meanwhile = set()
    for each in module.computations[computation].values():
      if each.name.startswith(_MEANWHILE):
        meanwhile.add(each.called("calls"))
      unknown += each.opcode == "while" and module.trips(each) is None
    for place, each in module.inside(computation):
      flops += times * _flops(module.computations[place], each)
      kind = each.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        collectives.setdefault(
          f"{computation}/{_exchange(each, fused=place != computation)}",
          dataclasses.replace(
            _collective(module, place, each, kind, times, devices),
            overlapped=place in meanwhile or each.opcode.endswith("-start"),
          ),
        )
  hbm_bytes = _all_traffic(module)
  filled = _all_traffic(hlo_parser.Module.parse(hlo_parser.without_tiles(text)))
  exchanges = tuple(collectives.values())
  return Costs(flops, hbm_bytes, exchanges, unknown, hbm_bytes - filled)


def _exchange(each: hlo_parser.Instruction, fused: bool) -> str:
  """Names a collective, the same in all fusions that hold parts of it."""
  if not fused:
    return each.name
  chain = re.search(r'chain_id="\d+"', each.attributes)
  named = chain or re.search(r"channel_id=\d+", each.attributes)
  return named[0] if named else each.name


def _all_traffic(module: hlo_parser.Module) -> float:
  return sum(
    times * _traffic(module, computation, each)
    for computation, times in module.runs()
    for each in module.computations[computation].values()
  )


def _collective(
  module: hlo_parser.Module,
  place: str,
  each: hlo_parser.Instruction,
  kind: str,
  times: float,
  devices: int,
) -> Collective:
  computation = module.computations[place]
  if kind == "all-gather":
    found = each.arrays
    if each.opcode.endswith("-start"):  # (operands, results)
      found = found[len(found) // 2 :]
  else:
    found = [a for name in each.operands for a in computation[name].arrays]
  if kind == "all-reduce" and place.startswith(_SCATTERS):
    kind = "reduce-scatter"
  source = re.search(r'op_name="([^"]*)"', each.attributes)
  group = _group(each.attributes, devices)
  return Collective(
    kind=kind,
    times=times,
    bytes=sum(dataclasses.replace(array, tile=()).bytes for array in found),
    group=len(group),
    span=int(np.ptp(group)) + 1,
    dims=" ".join(
      f"{array.dtype}[{','.join(map(str, array.dims))}]" for array in found
    ),
    source=source.group(1) if source else "",
  )


_MESH = re.compile(
  r"replica_groups=mesh\[([^\]]*)\]"
  r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_IOTA = re.compile(
  r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")


def _group(attributes: str, devices: int) -> np.ndarray:
  """Returns the devices of the first group of a collective."""
  if mesh := _MESH.search(attributes):
    sizes = {
      name: int(size)
      for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))
    }
    count = math.prod(sizes.values())
    numbers = _iota(mesh.group(2) or str(count), mesh.group(3))
    taken = re.findall(r"'(\w+)'", mesh.group(4))
    where = tuple(slice(None) if name in taken else 0 for name in sizes)
    return numbers.reshape(list(sizes.values()))[where].reshape(-1)
  if iota := _IOTA.search(attributes):
    numbers = _iota(iota.group(3), iota.group(4))
    return numbers.reshape(int(iota.group(1)), int(iota.group(2)))[0]
  if listed := _LISTED.search(attributes):
    return np.array([int(n) for n in listed.group(1).split(",")])
  return np.arange(devices)


def _iota(dims: str, order: str | None) -> np.ndarray:
  lengths = [int(n) for n in dims.split(",")]
  numbers = np.arange(math.prod(lengths)).reshape(lengths)
  if order:
    numbers = numbers.transpose([int(n) for n in order.split(",")])
  return numbers


# The attribute of XLA's own products and of calls to cuBLAS.
_CONTRACTED = re.compile(
  r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)[\]}]'
)


def _flops(
  computation: hlo_parser.Computation, each: hlo_parser.Instruction
) -> float:
  if each.opcode == "dot" or _is_gemm(each):
    lhs = computation[each.operands[0]].arrays[0].dims
    found = _CONTRACTED.search(each.attributes)
    axes = re.findall(r"\d+", found.group(1)) if found else []
    contracted = math.prod(lhs[int(i)] for i in axes)
    return 2.0 * math.prod(each.arrays[0].dims) * contracted
  if each.opcode == "convolution":
    return _convolution_flops(computation, each)
  return 0.0


def _is_gemm(each: hlo_parser.Instruction) -> bool:
  target = 'custom_call_target="__cublas$'
  return each.opcode == "custom-call" and target in each.attributes


def _convolution_flops(
  computation: hlo_parser.Computation, each: hlo_parser.Instruction
) -> float:
  """Counts a convolution; on TPU all products are, with batches as space."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
  window = re.search(r"window=\{([^}]*)\}", each.attributes)
  assert labels is not None, each
  lhs = computation[each.operands[0]].arrays[0].dims
  rhs = computation[each.operands[1]].arrays[0].dims
  out = each.arrays[0].dims
  settings = dict(
    pair.split("=") for pair in (window.group(1).split() if window else [])
  )
  spatial = sorted(c for c in labels.group(1) if c.isdigit())
  valid = 1
  for number, label in enumerate(spatial):
    valid *= _valid(
      lhs[labels.group(1).index(label)],
      rhs[labels.group(2).index(label)],
      out[labels.group(3).index(label)],
      {key: text.split("x")[number] for key, text in settings.items()},
    )
  batch = out[labels.group(3).index("b")]
  features = out[labels.group(3).index("f")]
  depth = rhs[labels.group(2).index("i")]
  groups = re.search(r"batch_group_count=(\d+)", each.attributes)
  if groups:
    batch *= int(groups.group(1))
    features //= int(groups.group(1))
  return 2.0 * batch * features * depth * valid


def _valid(lhs: int, rhs: int, out: int, window: Mapping[str, str]) -> int:
  """Counts pairs of result and kernel positions that read an element."""
  stride = int(window.get("stride", 1))
  low = int(window.get("pad", "0_0").split("_")[0])
  lhs_dilate = int(window.get("lhs_dilate", 1))
  rhs_dilate = int(window.get("rhs_dilate", 1))
  count = 0
  for place, tap in itertools.product(range(out), range(rhs)):
    where = place * stride + tap * rhs_dilate - low
    index, rest = divmod(where, lhs_dilate)
    count += rest == 0 and 0 <= index < lhs
  return count


# Operations that move no bytes, or are counted where they start.
_FREE = {
  *("after-all", "bitcast", "call", "conditional", "constant", "iota"),
  *("get-tuple-element", "opt-barrier", "parameter", "partition-id"),
  *("replica-id", "tuple", "while"),
}


def _traffic(
  module: hlo_parser.Module, place: str, each: hlo_parser.Instruction
) -> float:
  """Counts bytes between the chip and its main memory."""
  if each.opcode in _FREE or each.opcode.endswith("-done"):
    return 0.0
  if each.opcode == "custom-call" and not each.operands:  # allocates
    return 0.0
  computation = module.computations[place]
  operands = [computation[name] for name in each.operands]
  fused = each.called("calls")
  if each.opcode == "fusion" and fused:
    return _fusion_traffic(module, fused, operands, each)
  reads = sum(_hbm(array) for x in operands for array in x.arrays)
  if each.opcode in ("copy-start", "slice-start", "async-start"):
    # (operand, result, context), or (result, operand, context).
    first, second, *_ = each.arrays
    smaller = min(first.bytes, second.bytes)
    return sum(smaller for array in (first, second) if array.space == 0)
  results = each.arrays[:1] if _is_gemm(each) else each.arrays  # no workspace
  writes = sum(_hbm(array) for array in results)
  if each.opcode in ("dynamic-slice", "slice", "gather"):
    return min(reads, 2.0 * writes or reads)
  if each.opcode == "dynamic-update-slice":
    return 2.0 * _hbm(operands[1].arrays[0])
  if each.opcode.endswith("-start"):  # the result holds the operand too
    return float(max(reads, writes))
  return float(reads + writes)


def _hbm(array: hlo_parser.Array) -> int:
  return array.bytes if array.space == 0 else 0


def _fusion_traffic(
  module: hlo_parser.Module,
  fused: str,
  operands: list[hlo_parser.Instruction],
  each: hlo_parser.Instruction,
) -> float:
  total = 0.0
  for number, operand in enumerate(operands):
    if whole := sum(_hbm(array) for array in operand.arrays):
      name = _parameter(module, fused, number)
      total += min(whole, _read(module, fused, name))
  for number, array in enumerate(each.arrays):
    if array.space == 0:
      total += _written(module, fused, number, array)
  return total


def _parameter(module: hlo_parser.Module, fused: str, number: int) -> str:
  return next(
    each.name
    for each in module.computations[fused].values()
    if each.opcode == "parameter" and int(each.inside) == number
  )


def _read(module: hlo_parser.Module, fused: str, name: str) -> float:
  """Counts bytes that a fusion reads of an operand, or of a slice of it."""
  computation = module.computations[fused]
  total = 0.0
  for user in computation.values():
    for place, operand in enumerate(user.operands):
      if operand != name or user.opcode in ("tuple", "custom-call"):
        continue
      inner = user.called("calls")
      if user.opcode == "bitcast":
        total += _read(module, fused, user.name)
      elif user.opcode == "fusion" and inner:
        total += _read(module, inner, _parameter(module, inner, place))
      elif user.opcode in ("dynamic-slice", "slice", "gather"):
        total += sum(array.bytes for array in user.arrays)
      elif user.opcode == "dynamic-update-slice" and place == 0:
        continue  # in place
      else:
        return float(sum(array.bytes for array in computation[name].arrays))
  return total


def _written(
  module: hlo_parser.Module, fused: str, number: int, array: hlo_parser.Array
) -> float:
  """Counts bytes that a fusion writes of a result."""
  computation = module.computations[fused]
  result = module.root(fused)
  while result.opcode in ("tuple", "bitcast"):
    result = computation[
      result.operands[number if result.opcode == "tuple" else 0]
    ]
  inner = result.called("calls")
  if result.opcode == "fusion" and inner:
    return _written(module, inner, number, array)
  if result.opcode == "parameter":  # passed through
    return 0.0
  if result.opcode == "dynamic-update-slice":  # in place
    return float(computation[result.operands[1]].arrays[0].bytes)
  return float(array.bytes)
