"""Files of named tensors, read and written one tensor at a time.

Files of PyTorch are pickles, which may contain any program. They are read with
PyTorch's `weights_only` reader, which accepts only tensors, plain containers
and `argparse.Namespace`, and executes nothing. Of a few harmless classes that
training scripts save, such as paths and dates, it makes empty objects.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import pickle
import re
import tarfile
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
# Supported dtypes by their names in safetensors.
FLOATS: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": BFLOAT16,
}
_SAFE_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class Header:
  """The names and shapes of tensors, before their values are read.

  Attributes:
    shapes: shape of each tensor, by name.
    extra: other content of the files.
  """

  shapes: Mapping[str, tuple[int, ...]]
  extra: Mapping[str, Any]


class Tensors(Protocol):
  """Named tensors of a file.

  Attributes:
    shapes: shape of each tensor, by name.
    dtypes: dtype of each tensor, as safetensors names it.
    extra: other content of the file.
    prefix: what precedes the names in the file.
    notes: what was changed or left out, one line each.
  """

  shapes: dict[str, tuple[int, ...]]
  dtypes: dict[str, str]
  extra: dict[str, Any]
  prefix: str
  notes: tuple[str, ...]

  def reading(self) -> contextlib.AbstractContextManager[Read]:
    """Opens the file for reading; frees memory at the end."""


class SafeTensors:
  """Tensors in one or several `.safetensors` files.

  Attributes:
    shapes: shape of each tensor, by name.
    dtypes: dtype of each tensor, as safetensors names it.
    extra: the metadata of the files.
  """

  prefix = ""
  notes: tuple[str, ...] = ()

  def __init__(self, paths: Sequence[pathlib.Path]):
    """Reads the headers.

    Raises:
      ConfigError: if a file is damaged.
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
    """Opens the files for reading; closes them and frees memory at the end."""
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

  check_git_lfs(path)
  try:
    file = safetensors.safe_open(path, framework="numpy")
  except safetensors.SafetensorError as error:
    raise ConfigError(
      f"{path} is not a complete .safetensors file "
      f"({console.first_line(error)}): it may be truncated; download or write "
      "it again"
    ) from error
  with file:
    yield file


# Keys of training scripts' files, the first one first. Among the _USUAL first
# ones there is no choice. DeepSpeed has "module", SlowFast "model_state" and
# DINO "teacher".
_CONTAINERS = (
  "model",
  "state_dict",
  "model_state_dict",
  "model_state",
  "module",
  "net",
  "network",
  "backbone",
  "weights",
  "params",
  "teacher",
  "target_encoder",
  "encoder",
  "student",
  "model_ema",
  "state_dict_ema",
  "ema",
)
_USUAL = 10


class _Unread:
  """An object of a file whose class is not imported; it has no content."""

  def __init__(self, *args: Any):
    pass

  def __new__(cls, *args: Any) -> "_Unread":
    return super().__new__(cls)

  def __setstate__(self, state: Any) -> None:
    pass


def _new_dict(*args: Any) -> dict[Any, Any]:
  """Stands for a class of dictionaries with a default."""
  return {}


# Classes and functions that training scripts save beside weights.
_HARMLESS = (
  *(
    f"{module}.{name}"
    for module in ("numpy._core.multiarray", "numpy.core.multiarray")
    for name in ("scalar", "_reconstruct")
  ),
  "numpy.dtype",
  "numpy.ndarray",
  *(
    f"{module}.{flavor}{kind}"
    for module in ("pathlib", "pathlib._local")
    for flavor in ("", "Pure")
    for kind in ("Path", "PosixPath", "WindowsPath")
  ),
  *(
    f"datetime.{name}"
    for name in ("date", "datetime", "time", "timedelta", "timezone")
  ),
  "types.SimpleNamespace",
  # Settings of Hydra, with the types of their values.
  "omegaconf.dictconfig.DictConfig",
  "omegaconf.listconfig.ListConfig",
  "omegaconf.base.ContainerMetadata",
  "omegaconf.base.Metadata",
  *(
    f"omegaconf.nodes.{kind}Node"
    for kind in ("Any", "Boolean", "Float", "Integer", "String")
  ),
  "typing.Any",
  *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "str", "tuple")),
  "builtins.list",  # default of a dictionary
  "builtins.int",
)
_SAFE_CLASSES: list[Any] = [
  argparse.Namespace,
  (_new_dict, "collections.defaultdict"),
  # Lightning's hyper-parameters.
  *(
    (collections.OrderedDict, f"{module}.AttributeDict")
    for module in (
      "pytorch_lightning.utilities.parsing",
      "lightning.pytorch.utilities.parsing",
      "lightning_fabric.utilities.data",
      "lightning.fabric.utilities.data",
    )
  ),
  *(
    (type(name.rpartition(".")[2], (_Unread,), {}), name) for name in _HARMLESS
  ),
]


class PickledTensors:
  """Tensors in a file of PyTorch.

  The tensors are in the first of `_CONTAINERS` that the file has, which may
  hold another one, or in the file itself.

  Attributes:
    reference: whether they are in `["model"]`, as in the reference's files.
    shapes: shape of each tensor, by name.
    dtypes: dtype of each tensor, as safetensors names it.
    extra: the content beside the tensors.
    notes: names the container, if a file has other networks in others.
  """

  prefix = ""

  def __init__(self, path: pathlib.Path):
    """Reads names and shapes.

    Raises:
      ConfigError: if the file is damaged, contains code, or has no tensors.
    """
    self._path = path
    content = _load_pickle(path)
    if not isinstance(content, Mapping):
      raise ConfigError(
        f"{path} contains a {type(content).__name__}, not named tensors: save "
        "the model's state_dict()"
      )
    self.extra: dict[str, Any] = {}
    self._keys: list[str] = []
    while key := next(
      (key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), ""
    ):
      self._keys.append(key)
      self.extra |= {k: v for k, v in content.items() if k != key}
      content = content[key]
    self.reference = self._keys == ["model"]
    self.notes = tuple(
      f"the weights are those of {key!r}"
      for key in self._keys[-1:]
      if key in _CONTAINERS[_USUAL:]
    )
    self._check(content)
    self.shapes = {name: tuple(x.shape) for name, x in content.items()}
    self.dtypes = {name: _dtype_name(x) for name, x in content.items()}

  def _check(self, tensors: Mapping[Any, Any]) -> None:
    torch = import_torch(self._path)
    for name, value in tensors.items():
      if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise ConfigError(
          f"{self._path} has {name!r} of type {_type_name(value)} among its "
          "weights, which must be named tensors: save the model's "
          "state_dict(), alone or as {'model': state_dict}"
        )

  @contextlib.contextmanager
  def reading(self) -> Iterator[Read]:
    """Opens the file for reading; frees memory at the end."""
    tensors = _load_pickle(self._path)
    for key in self._keys:
      tensors = tensors[key]

    def read(name: str) -> np.ndarray:
      import torch

      tensor = tensors[name].detach()
      if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
      array: np.ndarray = tensor.numpy()
      return array

    yield read


def _type_name(value: Any) -> str:
  name = type(value).__name__
  return "numpy.ndarray" if name == "_reconstruct" else name


def _dtype_name(tensor: Any) -> str:
  layout = str(tensor.layout).removeprefix("torch.")
  if tensor.is_meta or layout != "strided":
    return "meta" if tensor.is_meta else layout
  name = str(tensor.dtype).removeprefix("torch.")
  short = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U"}
  match = re.fullmatch(r"([a-z]+)(\d+)", name)
  return f"{short.get(match[1], match[1])}{match[2]}" if match else name


def import_torch(path: os.PathLike | str) -> Any:
  """Imports PyTorch, which only its own files need."""
  try:
    import torch
  except ImportError as error:
    raise ConfigError(
      f"{path} is a PyTorch file, but PyTorch is not installed: pip install "
      "'mae_jax[torch]'"
    ) from error
  return torch


_GIT_LFS_HEAD = b"version https://git-lfs"
# Zip archives, and pickles of protocol 2 or later.
_PICKLE_HEADS = (b"PK", *(bytes((0x80, number)) for number in range(2, 6)))


def is_pickle(path: pathlib.Path) -> bool:
  """Checks whether a file begins as those of PyTorch do."""
  with path.open("rb") as file:
    return file.read(2).startswith(_PICKLE_HEADS)


def is_safetensors(path: pathlib.Path) -> bool:
  """Checks whether a file begins as safetensors: a length, then JSON."""
  with path.open("rb") as file:
    head = file.read(9)
  length = int.from_bytes(head[:8], "little")
  return head[8:] == b"{" and length <= path.stat().st_size


def check_git_lfs(path: pathlib.Path) -> bytes:
  """Refuses a Git LFS pointer; returns the first bytes of the file."""
  with path.open("rb") as file:
    head = file.read(len(_GIT_LFS_HEAD))
  if head == _GIT_LFS_HEAD:
    raise ConfigError(
      f"{path} is a Git LFS pointer, not the file itself: download the file "
      "with git lfs pull"
    )
  return head


def _check_archive(path: pathlib.Path) -> None:
  """Refuses archives of files, and PyTorch's archives of programs."""
  names = []
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      names = [name.rpartition("/")[2] for name in archive.namelist()]
  if "constants.pkl" in names:
    raise ConfigError(
      f"{path} is a TorchScript program, not a file of weights: save the "
      "state_dict() of torch.jit.load"
    )
  if (names and "data.pkl" not in names) or tarfile.is_tarfile(path):
    raise ConfigError(
      f"{path} is an archive of other files: unpack it, and name the file of "
      "weights"
    )


def _load_pickle(path: pathlib.Path) -> Any:
  torch = import_torch(path)
  head = check_git_lfs(path)
  _check_archive(path)
  if not head.startswith(_PICKLE_HEADS):
    what = f"it begins with {head[:12]!r}" if head else "it is empty"
    raise ConfigError(
      f"{path} is not a complete PyTorch file ({what}): it may be truncated; "
      "download or write it again"
    )

  def load(mmap: bool) -> Any:
    with (
      warnings.catch_warnings(),
      torch.serialization.safe_globals(_SAFE_CLASSES),
    ):
      warnings.simplefilter("ignore")  # old files warn before they fail
      settings = {"map_location": "cpu", "weights_only": True}
      if mmap:
        return torch.load(path, mmap=True, **settings)
      with path.open("rb") as file:
        return torch.load(file, **settings)

  try:
    # Before PyTorch 1.6, files were not archives and cannot be memory-mapped.
    # A path with this ending goes to another reader.
    return load(zipfile.is_zipfile(path) and path.suffix != ".safetensors")
  except pickle.UnpicklingError as error:
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f"{found[1]}, which" if found else "an object that"
    raise ConfigError(
      f"{path} contains {what} is neither a tensor nor a plain value. Loading "
      "such a pickle could run any program, so it was not loaded: get a file "
      "of weights only, or save its state_dict() on a machine that trusts it"
    ) from error
  except (OSError, MemoryError):
    raise
  except Exception as error:  # damaged files raise errors of many types
    raise ConfigError(
      f"{path} is not a complete PyTorch file "
      f"({console.first_line(error, 120)}): it may be truncated; download or "
      "write it again"
    ) from error


def write_safetensors(
  file: IO[bytes],
  specs: Sequence[tuple[str, tuple[int, ...]]],
  dtype: np.dtype,
  arrays: Iterable[np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes tensors one at a time; the library needs all at once.

  Args:
    file: open for writing.
    specs: name and shape of each tensor.
    dtype: dtype of all tensors.
    arrays: values in the same order, of any floating-point dtype.
    metadata: strings for the header.
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
    stored = _cast(array, dtype, name)
    file.write(stored.reshape(-1).view(np.uint8).data)


def _cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Casts values, and refuses overflow."""
  with np.errstate(over="ignore"):
    stored = np.ascontiguousarray(array, dtype)
  narrow = dtype.itemsize < array.dtype.itemsize
  if narrow and not np.isfinite(stored).all():
    raise ConfigError(
      f"{name} has values up to {np.abs(array).max():.3g}, which {dtype} "
      "cannot hold: convert with --dtype=float32"
    )
  return stored


def as_torch(array: np.ndarray, dtype: np.dtype, name: str) -> Any:
  """Converts an array to a PyTorch tensor, also to bfloat16."""
  import torch

  stored = _cast(array, dtype, name)
  if not stored.flags.writeable or stored.base is not None:
    stored = stored.copy()
  if dtype == BFLOAT16:
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(stored)
