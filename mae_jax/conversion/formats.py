"""The weight formats, and how to recognize and open files of each."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from etils import epath

from mae_jax.conversion import (
  facebook,
  flax_files,
  hub,
  json_fields,
  tensor_files,
  tensor_views,
  timm,
  transformers,
  vision_transformer,
)
from mae_jax.conversion.weight_format import WeightFormat
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError, abbreviate

_MAX_NAMES = 6  # names in an error
JAX = "jax"
PICKLES = (".pth", ".pt", ".bin")
_SAFE = ".safetensors"
# Endings of files of weights. A file's content says what it is.
_ENDINGS = (*PICKLES, ".tar", ".ckpt", _SAFE, ".npz", ".msgpack")


FORMATS: dict[str, WeightFormat] = {
  "facebook": facebook.Facebook(),
  "transformers": transformers.Transformers(),
  "vision_transformer": vision_transformer.VisionTransformer(),
  "timm": timm.Timm(),
}
FORMAT_NAMES = (JAX, *FORMATS)
# Networks in mae_jax/assets. Made by `mae-jax train --config=digits` and
# `mae-jax convert --to=transformers --dtype=float16`.
PACKAGED = ("digits",)


def locate(path: epath.PathLike) -> epath.Path:
  """Returns a path that does not depend on the working directory.

  A path on the Hub becomes that of its local copy, and a name in PACKAGED that
  of the network that comes with this package.

  Raises:
    ConfigError: as `hub.resolve`.
  """
  if path in PACKAGED and not os.path.exists(path):
    return epath.Path(__file__).parents[1] / "assets" / path
  path = epath.Path(hub.resolve(path))
  if storage.is_remote(path):
    return path
  # A file keeps its name: in the Hub's cache it is a link to a file without an
  # ending.
  return storage.absolute(path.parent) / path.name


def is_foreign(path: epath.PathLike) -> bool:
  """Checks whether a path holds another format's weights, not a checkpoint.

  Raises:
    ConfigError: as `locate`, or if it is a folder of files of weights.
    OSError: if a bucket cannot be reached.
  """
  path = locate(path)
  if path.suffix in _ENDINGS and not path.is_dir():
    return True
  if path.exists() and not path.is_dir():
    return True  # opening it reports an unknown file
  if not path.is_dir():
    return False
  if (path / transformers.CONFIG).is_file():
    return True
  if not storage.is_remote(path):
    _check_no_files(path)
  return False


def _check_no_files(path: epath.Path) -> None:
  """Refuses a folder of weight files that is no checkpoint."""
  for folder in (path / "checkpoints", path):
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    if "params" in names or any(map(str.isdigit, names)):
      return
    files = sorted(name for name in names if name.endswith(_ENDINGS))
    if files:
      raise ConfigError(
        f"{path} has neither a checkpoint of this project nor a "
        f"{transformers.CONFIG}: name a file, such as {folder / files[0]}"
      )


def check_exists(path: epath.PathLike) -> None:
  """Raises ConfigError if there is no such file or folder."""
  with storage.os_errors(path):
    if not locate(path).exists():
      raise ConfigError(f"{os.fspath(path)}: there is no such file or folder")


@contextlib.contextmanager
def local_copy(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields a local path; copies files in a bucket temporarily."""
  check_exists(path)
  path = locate(path)
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
  """Opens the tensors of a file, or of a directory with a config.json.

  A common prefix of their names is removed, and layer scales are multiplied
  into other layers.

  Raises:
    ConfigError: if there are none, or they cannot be read.
  """
  found = tensor_views.without_prefix(_open(path))
  return tensor_views.without_layer_scale(found)


def _open(path: pathlib.Path) -> tensor_files.Tensors:
  if not path.is_dir():
    if not path.is_file():  # reading it may never end
      raise ConfigError(
        f"{path} is a pipe or a device, not a file of weights: save its "
        "content in a file"
      )
    if tensor_files.is_safetensors(path):
      return tensor_files.SafeTensors([path])
    if flax_files.is_npz(path):
      return flax_files.open_npz(path)
    if flax_files.is_msgpack(path):
      return flax_files.open_msgpack(path)
    if tensor_files.is_pickle(path):
      return tensor_files.PickledTensors(path)
    # A damaged file is reported as one of its ending.
    if path.suffix == _SAFE:
      return tensor_files.SafeTensors([path])
    if path.suffix == ".npz":
      return flax_files.open_npz(path)
    if path.suffix == ".msgpack":
      return flax_files.open_msgpack(path)
    if path.suffix in _ENDINGS:
      return tensor_files.PickledTensors(path)
    raise ConfigError(
      f"{path} is not a file of weights: use one of PyTorch, safetensors or "
      f"Flax ({', '.join(_ENDINGS)}), or a directory with a config.json"
    )
  index = path / transformers.INDEX
  if index.is_file():
    return tensor_files.SafeTensors(_index_files(index))
  for name in ("model.safetensors", "pytorch_model.bin"):
    if (path / name).is_file():
      return _open(path / name)
  others = sorted(each.name for each in path.iterdir() if each.is_file())
  raise ConfigError(
    f"{path} has a {transformers.CONFIG} but no model.safetensors or "
    f"pytorch_model.bin (it has {', '.join(others[:_MAX_NAMES])}): download "
    "the weights too, or save the network again with transformers"
  )


def _index_files(index: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files that an index names."""
  content = json_fields.read(index)
  content = content if isinstance(content, dict) else {}
  files = json_fields.mapping(content, "weight_map", index).values()
  names = sorted(set(map(str, files)))
  for name in names:
    if name in ("", "..") or "\0" in name or pathlib.Path(name).name != name:
      raise ConfigError(
        f"{index} names {abbreviate(name)}, which is not a file beside it: "
        "download it again"
      )
  parts = [index.parent / name for name in names]
  missing = [part.name for part in parts if not part.is_file()]
  if missing or not parts:
    raise ConfigError(
      f"{index} names {', '.join(missing)}, which is missing: download all "
      "files of the weights"
      if missing
      else f"{index} names no files of weights: download it again"
    )
  return parts


def detect(path: pathlib.Path, found: tensor_files.Tensors) -> str:
  """Detects the weight format.

  Raises:
    ConfigError: if no format matches.
  """
  names = [name for name, each in FORMATS.items() if each.matches(path, found)]
  if not names:
    raise ConfigError(
      f"{path / transformers.CONFIG} is neither from transformers (it has no "
      "model_type) nor from timm (no architecture)"
    )
  return names[0]
