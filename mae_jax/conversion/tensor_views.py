"""Tensors of a file under the names and in the form that a format expects."""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mae_jax.conversion.name_maps import INNER_WRAPPERS
from mae_jax.conversion.tensor_files import Read, Tensors

# The first weight of an encoder in the formats of PyTorch.
_ANCHOR = re.compile(
  r"^(.*?)(patch_embed\.proj\.weight"
  r"|((vit|beit)\.)?embeddings\.patch_embeddings\.projection\.weight)$"
)
_WRAPPERS = re.compile(rf"((module|{INNER_WRAPPERS})\.)*")
_INNER = re.compile(rf"({INNER_WRAPPERS})\.")
PREFIX_NOTE = "the names of tensors "  # begins a usual note
# Of several encoders the first is read. Teachers are averages of students and
# better, but BYOL's online encoder is the one that is used.
_PREFERRED = (
  *("base_encoder", "online_encoder", "teacher", "target_encoder", "ema"),
  "student",
)
_SCALES = {"ls1": "attn.proj", "gamma_1": "attn.proj"} | {
  "ls2": "mlp.fc2",
  "gamma_2": "mlp.fc2",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor, and how it is read.

  Attributes:
    shape: its shape.
    dtype: its dtype, as safetensors names it.
    compute: reads it, given the reader of the file.
  """

  shape: tuple[int, ...]
  dtype: str
  compute: Callable[[Read], np.ndarray]


class TensorView:
  """Tensors of `found` as `entries`; see `tensor_files.Tensors`."""

  def __init__(
    self,
    found: Tensors,
    entries: Mapping[str, Entry],
    notes: tuple[str, ...] = (),
    prefix: str = "",
  ):
    """Keeps what `found` has beside its tensors."""
    self._found, self._entries = found, entries
    self.shapes = {name: each.shape for name, each in entries.items()}
    self.dtypes = {name: each.dtype for name, each in entries.items()}
    self.extra = found.extra
    self.prefix = found.prefix + prefix
    self.notes = (*found.notes, *notes)

  @contextlib.contextmanager
  def reading(self) -> Iterator[Read]:
    """Opens the file for reading; frees memory at the end."""
    with self._found.reading() as read:
      yield lambda name: self._entries[name].compute(read)


def entry(found: Tensors, name: str) -> Entry:
  """Returns a tensor as it is."""
  return Entry(found.shapes[name], found.dtypes[name], lambda read: read(name))


def without_prefix(found: Tensors) -> Tensors:
  """Returns the tensors of the encoder, without a common prefix.

  Those of DistributedDataParallel and other wrappers are only noted: formats
  remove them.
  """
  matches = map(_ANCHOR.match, found.shapes)
  prefixes = [match[1] for match in matches if match]
  if not prefixes:
    return found
  wrapped = [each for each in prefixes if _WRAPPERS.fullmatch(each)]
  prefix = wrapped[0] if wrapped else min(prefixes, key=_rank)
  notes = []
  if prefix:
    notes.append(f"{PREFIX_NOTE}begin with {prefix!r}, which is removed")
  inner = [_INNER.search(name.removeprefix(prefix)) for name in found.shapes]
  notes += [
    f"{PREFIX_NOTE}contain {each!r}, which is removed"
    for each in dict.fromkeys(match[0] for match in inner if match)
  ]
  if wrapped:
    found.notes = (*found.notes, *notes)
    return found
  kept = {
    name.removeprefix(prefix): entry(found, name)
    for name in found.shapes
    if name.startswith(prefix)
  }
  parent = prefix.rstrip(".").rpartition(".")[0]
  left: collections.Counter[str] = collections.Counter()
  for name in found.shapes:
    if not name.startswith(prefix):
      other = next((x for x in prefixes if name.startswith(x)), "")
      inside = parent if parent and name.startswith(f"{parent}.") else ""
      first = name.removeprefix(f"{inside}.").partition(".")[0]
      left[other.rstrip(".") or f"{inside}.{first}".lstrip(".")] += 1
  if left:
    parts = ", ".join(f"{name} ({count})" for name, count in left.items())
    notes.append(f"tensors without {prefix!r} are left out: {parts}")
  return TensorView(found, kept, tuple(notes), prefix)


def _rank(prefix: str) -> int:
  parts = prefix.split(".")
  return min(
    (_PREFERRED.index(part) for part in parts if part in _PREFERRED),
    default=len(_PREFERRED),
  )


def without_layer_scale(found: Tensors) -> Tensors:
  """Multiplies layer scales into the layers before them, which is the same."""
  pattern = re.compile(rf"^(.*blocks\.\d+\.)({'|'.join(_SCALES)})(\.gamma)?$")
  scales = {
    match[1] + _SCALES[match[2]]: match[0]
    for match in map(pattern.match, found.shapes)
    if match
  }
  if not scales:
    return found

  def scaled(name: str, scale: str) -> Entry:
    def compute(read: Read) -> np.ndarray:
      values = read(name).astype(np.float32)
      factors = read(scale).astype(np.float32)
      # [D, ...]: rows of a weight, or a bias.
      return values * factors.reshape(-1, *[1] * (values.ndim - 1))

    return Entry(found.shapes[name], "F32", compute)

  entries = {
    name: scaled(name, scales[layer])
    if (layer := name.rpartition(".")[0]) in scales
    else entry(found, name)
    for name in found.shapes
    if name not in scales.values()
  }
  note = f"{len(scales)} layer scales are multiplied into the layers before"
  return TensorView(found, entries, (note,))
