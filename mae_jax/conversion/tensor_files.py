"""Files of named tensors, read and written one tensor at a time.

`.pth` files are pickles, which may hold any program: they are read with
PyTorch's reader of weights alone, which knows tensors, plain containers and the
one class that the reference's own files hold, and runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import ml_dtypes
import numpy as np

from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

Read = Callable[[str], np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What weights may be stored as, by its name in safetensors.
FLOATS: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": BFLOAT16,
}
_SAFE_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of tensors before they are read.

  Attributes:
    shapes: of each, by name.
    extra: what the files say besides.
  """

  shapes: Mapping[str, tuple[int, ...]]
  extra: Mapping[str, Any]


class Tensors(Protocol):
  """Named tensors in files."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Of each."""

  @property
  def dtypes(self) -> Mapping[str, str]:
    """Of each, as safetensors calls them."""

  @property
  def extra(self) -> Mapping[str, Any]:
    """What the files say besides."""

  def reading(self) -> contextlib.AbstractContextManager[Read]:
    """Opens the files; what was read of them is let go at the end."""


class SafeTensors:
  """One or several `.safetensors` files; see `Tensors`."""

  def __init__(self, paths: Sequence[pathlib.Path]):
    """Reads the headers.

    Raises:
      ConfigError: if a file is not whole.
    """
    self._files: dict[str, pathlib.Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, str] = {}
    self.extra: dict[str, Any] = {}
    for path in paths:
      with _open_safe(path) as file:
        self.extra |= file.metadata() or {}
        names: list[str] = file.keys()
        for name in names:
          view = file.get_slice(name)
          self._files[name] = path
          self.shapes[name] = tuple(view.get_shape())
          self.dtypes[name] = view.get_dtype()

  @contextlib.contextmanager
  def reading(self) -> Iterator[Read]:
    """As in `Tensors`."""
    with contextlib.ExitStack() as stack:
      opened: dict[pathlib.Path, Any] = {}

      def read(name: str) -> np.ndarray:
        path = self._files[name]
        if path not in opened:
          opened[path] = stack.enter_context(_open_safe(path))
        array: np.ndarray = opened[path].get_tensor(name)
        return array

      yield read


@contextlib.contextmanager
def _open_safe(path: pathlib.Path) -> Iterator[Any]:
  import safetensors

  _check_pointer(path)
  try:
    file = safetensors.safe_open(path, framework="numpy")
  except safetensors.SafetensorError as error:
    raise ConfigError(
      f"{path} is no whole .safetensors file ({console.first_line(error)}): "
      "it may have been cut off; fetch or write it again"
    ) from error
  with file:
    yield file


class Pickled:
  """A `.pth` or `.bin` file of PyTorch; see `Tensors`.

  `extra` has what lies beside the tensors of `["model"]`; None of those of
  `["state_dict"]` or of the file itself.
  """

  def __init__(self, path: pathlib.Path):
    """Reads names and shapes.

    Raises:
      ConfigError: if the file is not whole, holds code, or has no tensors.
    """
    self._path = path
    content = _load_pickle(path)
    if not isinstance(content, Mapping):
      raise ConfigError(
        f"{path} holds a {type(content).__name__}, not named tensors: save "
        "the model's state_dict()"
      )
    self._inside = next(
      (key for key in ("model", "state_dict") if _is_dict(content.get(key))),
      None,
    )
    self.reference = self._inside == "model"
    self.extra: dict[str, Any] = {}
    if self._inside is not None:
      self.extra = {k: v for k, v in content.items() if k != self._inside}
    tensors = self._tensors(content)
    self.shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    self.dtypes = {name: _dtype_name(x) for name, x in tensors.items()}

  def _tensors(self, content: Any) -> Mapping[str, Any]:
    found = content if self._inside is None else content[self._inside]
    torch = import_torch(self._path)
    for name, value in found.items():
      if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise ConfigError(
          f"{self._path} has {name!r} of type {type(value).__name__} among "
          "its weights, where only tensors with names can be: save the model's "
          "state_dict(), alone or as {'model': state_dict}"
        )
    result: Mapping[str, Any] = found
    return result

  @contextlib.contextmanager
  def reading(self) -> Iterator[Read]:
    """As in `Tensors`."""
    tensors = self._tensors(_load_pickle(self._path))

    def read(name: str) -> np.ndarray:
      import torch

      tensor = tensors[name].detach()
      if tensor.dtype == torch.bfloat16:  # NumPy has no such thing of its own
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
      array: np.ndarray = tensor.numpy()
      return array

    yield read


def _is_dict(value: Any) -> bool:
  return isinstance(value, Mapping)


def _dtype_name(tensor: Any) -> str:
  layout = str(tensor.layout).removeprefix("torch.")
  if tensor.is_meta or layout != "strided":
    return "meta" if tensor.is_meta else layout
  name = str(tensor.dtype).removeprefix("torch.")
  short = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U"}
  match = re.fullmatch(r"([a-z]+)(\d+)", name)
  return f"{short.get(match[1], match[1])}{match[2]}" if match else name


def import_torch(path: os.PathLike | str) -> Any:
  """PyTorch, which only `.pth` files need.

  Raises:
    ConfigError: if it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise ConfigError(
      f"{path} is a file of PyTorch, which is not installed: pip install "
      "'mae_jax[torch]'"
    ) from error
  return torch


_POINTER = b"version https://git-lfs"
# A zip archive, or a pickle of protocol 2 or later.
_PICKLE_HEADS = (b"PK", b"\x80")


def _check_pointer(path: pathlib.Path) -> bytes:
  """Refuses what git clones in the place of a large file; returns its head."""
  with path.open("rb") as file:
    head = file.read(len(_POINTER))
  if head == _POINTER:
    raise ConfigError(
      f"{path} is a pointer of Git LFS and not the file itself: fetch that "
      "with git lfs pull"
    )
  return head


def _load_pickle(path: pathlib.Path) -> Any:
  torch = import_torch(path)
  head = _check_pointer(path)
  if not head.startswith(_PICKLE_HEADS):
    what = f"it begins with {head[:12]!r}" if head else "it is empty"
    raise ConfigError(
      f"{path} is no whole file of PyTorch ({what}): it may have been cut off; "
      "fetch or write it again"
    )

  def load(mmap: bool) -> Any:
    with (
      warnings.catch_warnings(),
      torch.serialization.safe_globals([argparse.Namespace]),
    ):
      warnings.simplefilter("ignore")  # of old files, before an error
      return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)

  try:
    # Files of PyTorch before 1.6 are no archives and cannot be mapped.
    return load(mmap=zipfile.is_zipfile(path))
  except pickle.UnpicklingError as error:
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f"{found[1]}, which" if found else "something that"
    raise ConfigError(
      f"{path} holds {what} is neither a tensor nor a plain value. Pickles can "
      "run any program when they are read, so that this one is not: ask for a "
      "file of weights alone, or save its state_dict() where you trust it"
    ) from error
  except (OSError, MemoryError):
    raise
  except Exception as error:  # as many kinds as there are ways to be damaged
    raise ConfigError(
      f"{path} is no whole file of PyTorch ({console.first_line(error, 120)}): "
      "it may have been cut off; fetch or write it again"
    ) from error


def write_safetensors(
  file: IO[bytes],
  specs: Sequence[tuple[str, tuple[int, ...]]],
  dtype: np.dtype,
  arrays: Iterable[np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes tensors as they come, where the library wants them all at once.

  Args:
    file: open for writing.
    specs: name and shape of each tensor.
    dtype: of all of them.
    arrays: their values, in the same order, of any floating type.
    metadata: for the header.
  """
  header: dict[str, Any] = {"__metadata__": dict(metadata)}
  end = 0
  for name, shape in specs:
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": _SAFE_NAMES[dtype],
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  file.write(len(text).to_bytes(8, "little") + text)
  for (name, shape), array in zip(specs, arrays, strict=True):
    assert array.shape == shape, (name, array.shape, shape)
    stored = _stored(array, dtype, name)
    file.write(stored.reshape(-1).view(np.uint8).data)


def _stored(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """The values in a type that must hold them."""
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(array, dtype)
  narrow = dtype.itemsize < array.dtype.itemsize
  if narrow and not np.isfinite(stored).all():
    raise ConfigError(
      f"{name} has values up to {np.abs(array).max():.3g}, which {dtype} does "
      "not hold: convert with --dtype=float32"
    )
  return stored


def as_torch(array: np.ndarray, dtype: np.dtype, name: str) -> Any:
  """A tensor of a type that NumPy may not have."""
  import torch

  stored = _stored(array, dtype, name)
  if not stored.flags.writeable or stored.base is not None:
    stored = stored.copy()
  if dtype == BFLOAT16:
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(stored)
