"""The dialects, and which one a file speaks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from mae_jax.conversion import (
  facebook,
  json_fields,
  model_info,
  name_maps,
  tensor_files,
  timm,
  transformers,
)
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

JAX = "jax"
_PICKLES = (".pth", ".pt", ".bin")
_SAFE = ".safetensors"
_WRAPPERS = (name_maps.WRAPPERS,)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
  """How others keep the weights of a ViT.

  Attributes:
    names: of their tensors.
    describe: from tensors, path and what our metadata says to the facts.
    spellings: other names, as in `names.SPELLINGS`.
    left_out: tensors that are no part of our networks, as regular expressions,
      and what they are.
    no_bias: what may be missing and is then zero.
  """

  names: name_maps.Names
  describe: Callable[
    [tensor_files.Header, pathlib.Path, model_info.ModelInfo | None],
    model_info.ModelInfo,
  ]
  spellings: Sequence[tuple[str, str]] = _WRAPPERS
  left_out: Sequence[tuple[str, str]] = ()
  no_bias: str = ""


_COUNTER = (
  (r"^head\.0\.num_batches_tracked$", "BatchNorm's counter of batches"),
)
FORMATS = {
  "facebook": WeightFormat(
    name_maps.FACEBOOK, facebook.describe, left_out=_COUNTER
  ),
  "transformers": WeightFormat(
    name_maps.TRANSFORMERS,
    transformers.describe,
    spellings=name_maps.SPELLINGS,
    left_out=((r"^vit\.pooler\.", "the pooler, which a MAE does not have"),),
    no_bias=r"\.attention\.attention\.(query|key|value)\.bias$",
  ),
  "timm": WeightFormat(name_maps.FACEBOOK, timm.describe),
}
FORMAT_NAMES = (JAX, *FORMATS)


def is_foreign(path: epath.PathLike) -> bool:
  """Whether a path is of weights of another dialect, and not of a checkpoint.

  Raises:
    OSError: if a bucket cannot be reached.
  """
  path = storage.absolute(path)
  if path.suffix in (*_PICKLES, _SAFE) and not path.is_dir():
    return True
  if path.exists() and not path.is_dir():
    return True  # or nothing at all, which is told when it is opened
  return path.is_dir() and (path / transformers.CONFIG).is_file()


def check_exists(path: epath.PathLike) -> None:
  """Raises ConfigError if there is no such file or folder."""
  with storage.os_errors(path):
    if not storage.absolute(path).exists():
      raise ConfigError(f"{os.fspath(path)}: there is no such file or folder")


@contextlib.contextmanager
def local(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """The files on a disk; those of a bucket are copied for as long.

  Raises:
    ConfigError: if there is nothing.
  """
  check_exists(path)
  path = storage.absolute(path)
  with storage.os_errors(path):
    if not storage.is_remote(path):
      yield pathlib.Path(path)
      return
    with tempfile.TemporaryDirectory() as directory:
      copied = pathlib.Path(directory) / path.name
      if path.is_dir():
        copied.mkdir()
        for each in path.iterdir():
          if not each.is_dir():
            each.copy(copied / each.name)
      else:
        path.copy(copied)
      yield copied


def open_tensors(path: pathlib.Path) -> tensor_files.Tensors:
  """The tensors of a file, or of a directory with a config.json.

  Raises:
    ConfigError: if there are none, or they cannot be read.
  """
  if not path.is_dir():
    if path.suffix == _SAFE:
      return tensor_files.SafeTensors([path])
    if path.suffix in _PICKLES:
      return tensor_files.Pickled(path)
    raise ConfigError(
      f"{path} is no file of weights: known are {', '.join((*_PICKLES, _SAFE))}"
      ", and directories with a config.json"
    )
  index = path / transformers.INDEX
  if index.is_file():
    return tensor_files.SafeTensors(_parts(index))
  for name in ("model.safetensors", "pytorch_model.bin"):
    if (path / name).is_file():
      return open_tensors(path / name)
  raise ConfigError(
    f"{path} has a {transformers.CONFIG} and no model.safetensors or "
    "pytorch_model.bin beside it: fetch the weights too"
  )


def _parts(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index names."""
  content = json_fields.read(index)
  content = content if isinstance(content, dict) else {}
  files = json_fields.mapping(content, "weight_map", index).values()
  parts = [index.with_name(name) for name in sorted(set(map(str, files)))]
  missing = [part.name for part in parts if not part.is_file()]
  if missing or not parts:
    raise ConfigError(
      f"{index} names {', '.join(missing)}, which is not beside it: fetch the "
      "weights whole"
      if missing
      else f"{index} names no files of weights: fetch it again"
    )
  return parts


def detect(path: pathlib.Path, found: tensor_files.Tensors) -> str:
  """The name of the dialect.

  Raises:
    ConfigError: if it is none of them.
  """
  if path.is_dir():
    content = json_fields.read(path / transformers.CONFIG)
    if transformers.is_config(content):
      return "transformers"
    if timm.is_config(content):
      return "timm"
    raise ConfigError(
      f"{path / transformers.CONFIG} is neither of transformers (model_type) "
      "nor of timm (architecture)"
    )
  if any(name.startswith(("vit.", "embeddings.")) for name in found.shapes):
    raise ConfigError(
      f"{path} has the names of transformers, which needs the config.json "
      f"beside it: name the directory, {path.parent}"
    )
  if isinstance(found, tensor_files.Pickled) and found.reference:
    return "facebook"
  decoder = str(name_maps.FACEBOOK["model/decoder/mask_token"])
  return "facebook" if decoder in found.shapes else "timm"
