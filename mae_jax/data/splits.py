"""The splits that names of files, folders or cells of a table mean.

`layout` decides the same for folders of images, which may also be classes.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import layout
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError, abbreviate

# `train-00000-of-00002`, `train_03`
_NUMBER = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def without_number(name: str) -> str:
  """Removes the number of a shard from the end of a file's stem."""
  return _NUMBER.sub("", name)


def choose(
  items: Sequence[str], data: DataConfig, where: str
) -> tuple[list[int], list[int]]:
  """Divides items into those of training and held-out ones, by their names.

  A name is a split's if it, or a folder above, is called as the split. If no
  name is, a word in it counts: `data/imagenet-train-0003.tar`. Without a name
  for training, all items train that are not held out.

  Args:
    items: paths under one folder, or names of splits.
    data: `train_split`, `eval_split` and `holdout`. A split that is not the
      default is a name as it is written.
    where: the place of the items, for messages.

  Returns:
    Indices of training items, of which there is at least one, and of held-out
    ones.

  Raises:
    ConfigError: if a split that is set is missing, nothing is left to train on,
      or `holdout` is set and there are held-out items.
  """
  chosen = _is_set(data, "train") or _is_set(data, "eval")
  if (
    len(items) == 1 and re.fullmatch(r"[^/]+[.][^/]+", items[0]) and not chosen
  ):
    return [0], []  # the only file, whatever it is called
  train = _find(items, data, "train", layout.TRAIN_NAMES, where)
  held_out = _find(items, data, "eval", layout.HELD_OUT_NAMES, where)
  if not train:
    known = set(held_out)
    for name in layout.HELD_OUT_NAMES:  # test beside val does not train
      known.update(_matches(items, name))
    train = [k for k in range(len(items)) if k not in known]
  if not train:
    raise ConfigError(
      f"{where} has held-out images only ({_listed(items)}): set "
      "--config.data.train_split to the one to train on"
    )
  if data.holdout and held_out:
    raise ConfigError(
      f"data.holdout={data.holdout:g} holds out a share of the training images"
      f", but {where} has held-out images in {items[held_out[0]]}: set "
      "--config.data.holdout=0"
    )
  return train, held_out


def find_files(
  data: DataConfig, suffixes: Sequence[str], wanted: str
) -> tuple[epath.Path, list[str]]:
  """Lists data.path itself, or the files in it and in its folders.

  Args:
    data: `source` and `path`.
    suffixes: of the files, in lower case; the first with a file counts.
    wanted: the files in words, for messages.

  Returns:
    A folder, and the sorted paths under it.

  Raises:
    ConfigError: if there is none.
  """
  if not data.path:
    raise ConfigError(f"data.path is empty: set --config.data.path to {wanted}")
  root = epath.Path(data.path).expanduser()
  if not root.is_dir():
    if not root.exists() or not root.name.lower().endswith(tuple(suffixes)):
      raise ConfigError(
        f"data.path={data.path!r} is not {wanted}: set --config.data.path to it"
        f", or another --config.data.source than {data.source}"
      )
    return root.parent, [root.name]
  folders = [root, *sorted(x for x in root.iterdir() if _is_folder(x))]
  files = [
    str(PurePosixPath(folder.name if folder != root else "", path.name))
    for folder in folders
    for path in sorted(folder.iterdir(), key=lambda path: path.name)
    if not path.name.startswith(".")
  ]
  for suffix in suffixes:
    found = [file for file in files if file.lower().endswith(suffix)]
    if found:
      return root, found
  raise ConfigError(
    f"data.path={data.path!r} has no {' or '.join(suffixes)} in it or in its "
    f"folders: set --config.data.path to {wanted}"
  )


def refuse_remote(data: DataConfig) -> None:
  """Raises ConfigError if data.path is in a bucket."""
  if storage.is_remote(data.path):
    raise ConfigError(
      f"data.path={data.path!r} is in a bucket, and data.source={data.source} "
      "reads parts of files from a disk: copy or mount it, or use "
      "data.source=tfds, folder or table"
    )


def _is_folder(path: epath.Path) -> bool:
  return not path.name.startswith(".") and path.is_dir()


def _is_set(data: DataConfig, split: str) -> bool:
  field = f"{split}_split"
  return getattr(data, field) not in ("", getattr(DataConfig, field))


def _find(
  items: Sequence[str],
  data: DataConfig,
  split: str,
  known: Sequence[str],
  where: str,
) -> list[int]:
  if not _is_set(data, split):
    return next(filter(None, (_matches(items, name) for name in known)), [])
  value = getattr(data, f"{split}_split")
  found = _matches(items, value)
  if not found:
    raise ConfigError(
      f"data.{split}_split={value!r} is in no name of {where}, which has "
      f"{_listed(items)}: set --config.data.{split}_split to one of them"
    )
  return found


def _matches(items: Sequence[str], name: str) -> list[int]:
  """Returns the items that are called `name`, or have it as a word."""
  exact = [k for k, item in enumerate(items) if name in _names(item)]
  word = re.compile(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z])", re.IGNORECASE)
  return exact or [k for k, item in enumerate(items) if word.search(item)]


def _names(item: str) -> set[str]:
  path = PurePosixPath(item)
  stem = path.name.partition(".")[0]
  names = {*path.parts[:-1], path.name, stem, without_number(stem)}
  return names | {layout.split_name(name) for name in names}


def _listed(items: Sequence[str]) -> str:
  names = list(dict.fromkeys(items))
  more = f" and {len(names) - 8} more" * (len(names) > 8)
  return ", ".join(map(abbreviate, names[:8])) + more
