"""Files of vision_transformer and big_vision: `.npz`, or Flax's msgpack.

Their tensors are read under timm's names and in its layout.
"""

import contextlib
import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from mae_jax.conversion.tensor_files import (
  BFLOAT16,
  FLOATS,
  Read,
  check_git_lfs,
)
from mae_jax.conversion.tensor_views import Entry, TensorView, entry
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

_NPY = b".npy"
_ANCHOR = "embedding/kernel"
# Where files keep the parameters: alone, with those of a text model, or beside
# an optimizer's.
_PREFIXES = (
  "", "params/", "params/img/", "img/", "target/", "opt/target/",
)  # fmt: skip
_BLOCK = re.compile(r"Transformer/encoderblock(?:_(\d+))?/")
# LayerNorm, attention and MLP of a block, in both projects.
_OLD = "LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3"
_NEW = "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0"


def is_npz(path: pathlib.Path) -> bool:
  """Checks whether a file begins as an archive of NumPy arrays.

  The list of an archive's files is at its end, which a truncated one lacks.
  """
  with path.open("rb") as file:
    head = file.read(30)  # the header before the first file's name
    name = file.read(int.from_bytes(head[26:28], "little"))
  return head.startswith(b"PK") and name.endswith(_NPY)


def is_msgpack(path: pathlib.Path) -> bool:
  """Checks whether a file begins as a msgpack map with text keys."""
  with path.open("rb") as file:
    head = file.read(6)
  # Lengths of 1 to 15, 16 bits and 32 bits; then a text of any length.
  sizes = {0xDE: 3, 0xDF: 5} | dict.fromkeys(range(0x81, 0x90), 1)
  place = sizes.get(head[0], 6) if head else 6
  return len(head) > place and (
    0xA0 <= head[place] <= 0xBF or head[place] in (0xD9, 0xDA, 0xDB)
  )


class _Arrays:
  """The arrays of a file by path; see `tensor_files.Tensors`."""

  prefix = ""
  notes: tuple[str, ...] = ()

  def __init__(
    self,
    path: pathlib.Path,
    kind: str,
    opened: Callable[[], contextlib.AbstractContextManager[Any]],
  ):
    """Reads names and shapes of the arrays that `opened` gives by path."""
    check_git_lfs(path)
    self._opened = opened
    self.shapes, self.dtypes = {}, {}
    self.extra: dict[str, Any] = {}
    try:
      with opened() as arrays:
        for name in arrays:
          array = arrays[name]
          self.shapes[name] = array.shape
          self.dtypes[name] = _dtype_name(array.dtype)
    except (OSError, MemoryError):
      raise
    except Exception as error:  # damaged files raise errors of many types
      raise ConfigError(
        f"{path} is not a complete {kind} file "
        f"({console.first_line(error, 120)}): it may be truncated, or contain "
        "objects, which are not loaded; download or write it again"
      ) from error

  @contextlib.contextmanager
  def reading(self) -> Iterator[Read]:
    """Opens the file for reading; closes it at the end."""
    with self._opened() as arrays:

      def read(name: str) -> np.ndarray:
        array: np.ndarray = np.asarray(arrays[name])
        # NumPy stores bfloat16 as two bytes of no type.
        return array.view(BFLOAT16) if array.dtype.str == "|V2" else array

      yield read


def _dtype_name(dtype: np.dtype) -> str:
  known = {each: name for name, each in FLOATS.items()}
  return "BF16" if dtype.str == "|V2" else known.get(dtype, str(dtype))


def open_npz(path: pathlib.Path) -> TensorView:
  """Opens a `.npz` of a Vision Transformer; objects in it are refused."""

  @contextlib.contextmanager
  def opened() -> Iterator[Any]:
    # np.load advises to load a file of another kind unsafely.
    with path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
      yield arrays

  return _as_timm(path, _Arrays(path, "NumPy (.npz)", opened))


def open_msgpack(path: pathlib.Path) -> TensorView:
  """Opens what `flax.serialization` wrote of a Vision Transformer."""

  @functools.cache
  def load() -> dict[str, np.ndarray]:
    tree = serialization.msgpack_restore(path.read_bytes())
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {k: x for k, x in flat.items() if isinstance(x, np.ndarray)}

  found = _Arrays(path, "msgpack", lambda: contextlib.nullcontext(load()))
  return _as_timm(path, found)


def _as_timm(path: pathlib.Path, found: _Arrays) -> TensorView:
  prefix = next((x for x in _PREFIXES if x + _ANCHOR in found.shapes), None)
  if prefix is None:
    names = ", ".join(list(found.shapes)[:3])
    raise ConfigError(
      f"{path} has no array {_ANCHOR}, which every Vision Transformer of "
      f"vision_transformer and big_vision has (it has {names or 'none'}, ...): "
      "check that it is the right file"
    )
  renamer = _Renamer(path, found, prefix)
  renamer.rename()
  found.extra = {"flax_heads": renamer.heads}
  return TensorView(found, renamer.entries)


class _Renamer:
  """Collects entries by timm's names."""

  def __init__(self, path: pathlib.Path, found: _Arrays, prefix: str):
    self._path, self._found, self._prefix = path, found, prefix
    self._left = {x for x in found.shapes if x.startswith(prefix)}
    self.entries: dict[str, Entry] = {}
    self.heads = 0

  def rename(self) -> None:
    """Collects all arrays; unknown ones keep their names."""
    tables = ("pos_embedding", "Transformer/posembed_input/pos_embedding")
    for theirs, name in (
      ("cls", "cls_token"),
      *((x, "pos_embed") for x in tables),
    ):
      if self._prefix + theirs in self._left:
        self._add(name, [theirs])
    self._add("patch_embed.proj.weight", [_ANCHOR], _convolution)
    self._add("patch_embed.proj.bias", ["embedding/bias"])
    self._norm("norm", "Transformer/encoder_norm")
    if f"{self._prefix}head/kernel" in self._left:
      self._dense("head", "head")
    start = len(self._prefix)
    blocks = [_BLOCK.match(name, start) for name in sorted(self._left)]
    for block in dict.fromkeys((x[0], x[1]) for x in blocks if x):
      self._blocks(*block)
    for name in sorted(self._left):
      self.entries[name] = entry(self._found, name)

  def _blocks(self, block: str, number: str | None) -> None:
    """Adds a block, or all blocks that a scan has stacked."""
    first = f"{self._prefix}{block}LayerNorm_0/scale"
    layers: list[tuple[int, int | None]] = (
      [(layer, layer) for layer in range(self._found.shapes[first][0])]
      if number is None and first in self._left
      else [(int(number or 0), None)]
    )
    old = f"{self._prefix}{block}LayerNorm_2/scale" in self._left
    norm2, attention, mlp = (f"{block}{x}" for x in (_OLD if old else _NEW))
    names = [f"{attention}/{x}" for x in ("query", "key", "value")]
    for layer, place in layers:
      ours = f"blocks.{layer}"
      self._norm(f"{ours}.norm1", f"{block}LayerNorm_0", place)
      self._norm(f"{ours}.norm2", norm2, place)
      kernels = [f"{x}/kernel" for x in names]
      self._add(f"{ours}.attn.qkv.weight", kernels, _qkv_weight, place)
      biases = [f"{x}/bias" for x in names]
      self._add(f"{ours}.attn.qkv.bias", biases, _qkv_bias, place)
      self._add(
        f"{ours}.attn.proj.weight", [f"{attention}/out/kernel"], _out, place
      )
      self._add(
        f"{ours}.attn.proj.bias", [f"{attention}/out/bias"], None, place
      )
      self._dense(f"{ours}.mlp.fc1", f"{mlp}/Dense_0", place)
      self._dense(f"{ours}.mlp.fc2", f"{mlp}/Dense_1", place)
    self.heads = self._found.shapes[self._prefix + kernels[0]][-2]

  def _norm(self, name: str, theirs: str, place: int | None = None) -> None:
    self._add(f"{name}.weight", [f"{theirs}/scale"], None, place)
    self._add(f"{name}.bias", [f"{theirs}/bias"], None, place)

  def _dense(self, name: str, theirs: str, place: int | None = None) -> None:
    self._add(f"{name}.weight", [f"{theirs}/kernel"], np.transpose, place)
    self._add(f"{name}.bias", [f"{theirs}/bias"], None, place)

  def _add(
    self,
    name: str,
    theirs: list[str],
    convert: Callable[..., np.ndarray] | None = None,
    place: int | None = None,
  ) -> None:
    """Adds an entry that `convert` makes of arrays, or of layer `place`."""
    paths = [self._prefix + each for each in theirs]
    for each in paths:
      if each not in self._found.shapes:
        raise ConfigError(
          f"{self._path} has no array {each}: it is incomplete, or no plain "
          "Vision Transformer"
        )
    convert = convert or (lambda x: x)

    def compute(read: Read) -> np.ndarray:
      arrays = [read(each) for each in paths]
      if place is not None:
        arrays = [array[place] for array in arrays]
      return convert(*arrays)

    shapes = [
      self._found.shapes[x] if place is None else self._found.shapes[x][1:]
      for x in paths
    ]
    try:  # shapes without values
      empty = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
      shape = convert(*empty).shape
    except ValueError as error:
      raise ConfigError(
        f"{self._path}: {paths[0]} has shape {shapes[0]}, as no Vision "
        "Transformer has: check that it is the right file"
      ) from error
    self.entries[name] = Entry(shape, self._found.dtypes[paths[0]], compute)
    self._left -= set(paths)


def _convolution(kernel: np.ndarray) -> np.ndarray:
  return kernel.transpose(3, 2, 0, 1)  # [p, q, C, D] to [D, C, p, q]


def _qkv_weight(*kernels: np.ndarray) -> np.ndarray:
  # Each [D, heads, D / heads].
  return np.concatenate([x.reshape(len(x), -1).T for x in kernels])


def _qkv_bias(*biases: np.ndarray) -> np.ndarray:
  return np.concatenate([x.reshape(-1) for x in biases])


def _out(kernel: np.ndarray) -> np.ndarray:
  return kernel.reshape(-1, kernel.shape[-1]).T  # of [heads, D / heads, D]
