"""The roles of the folders in a directory of images: splits or classes.

A name alone does not say whether a folder `train` is a split or a class of
trains, so the folders beside it and in it count too. Where both make sense, the
user is asked.
"""

import dataclasses
import re
from collections.abc import Sequence

from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data.listing import Tree
from mae_jax.utils.errors import ConfigError

# Names of splits in lower case, in order of preference.
TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = (
  "val", "valid", "validation", "dev", "eval", "test", "testing",
)  # fmt: skip
# `train2017` of COCO, `Training_Set`, `test-images`.
_SUFFIX = re.compile(r"(?<=[a-z])[-_ ]?(set|data|images)?[-_ ]?([12]\d{3})?$")


def split_name(folder: str) -> str:
  """Returns a folder's name as the lists above have it, if it is a split's."""
  return _SUFFIX.sub("", folder.lower())


@dataclasses.dataclass(frozen=True)
class Layout:
  """The folders of a directory that hold training and held-out images.

  Attributes:
    train: folder of training images; "" for the directory itself.
    held_out: folder of held-out images; "" for none.
    splits: folders that are no classes of the directory.
    unused: folders with images that neither train nor are held out.
  """

  train: str = ""
  held_out: str = ""
  splits: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()

  def describe(self, data: DataConfig) -> str:
    """Says in one sentence which images train and which are held out."""
    train = f"the folder {self.train} is the training split"
    if not self.train:
      others = f" outside {', '.join(self.splits)}" if self.splits else ""
      train = (
        f"all images{others} are for training; their folders, if any, are "
        "classes"
      )
    held_out = "no image is held out"
    if not data.eval_split:
      held_out = "data.eval_split='' evaluates nothing"
    elif data.holdout:
      held_out = f"a share of data.holdout={data.holdout:g} is held out"
    elif self.held_out:
      held_out = f"the folder {self.held_out} is held out"
    unused = ""
    if self.unused:
      unused = f"; not used: {', '.join(self.unused)}"
    return f"{train}; {held_out}{unused}"


def find_layout(root: epath.Path, tree: Tree, data: DataConfig) -> Layout:
  """Decides which folders of `root` are splits, by their names and content.

  Args:
    root: the directory.
    tree: lists it.
    data: `layout`, `train_split` and `eval_split`. A split that is not the
      default is the name of a folder, as it is written.

  Raises:
    ConfigError: if a split is missing, or two readings make sense.
  """
  found = _Directory(root, tree, data)
  if data.layout == "classes":
    return found.as_classes()
  return found.as_splits() if found.has_splits() else Layout()


class _Directory:
  """The folders of one directory, by the role that their names suggest."""

  def __init__(self, root: epath.Path, tree: Tree, data: DataConfig):
    self._root, self._tree, self._data = root, tree, data
    folders = tree.folder().folders
    self._train = self._named(folders, data.train_split, TRAIN_NAMES, "train")
    self._held_out = self._named(
      folders, data.eval_split, HELD_OUT_NAMES, "eval"
    )
    self._rest = [
      name for name in folders if name not in self._train + self._held_out
    ]

  def as_classes(self) -> Layout:
    for split in ("train", "eval"):
      if self._is_chosen(split):
        name = getattr(self._data, f"{split}_split")
        raise ConfigError(
          f"data.layout='classes' makes {self._root}/{name} a class, but "
          f"data.{split}_split={name!r} makes it a split: set one of them only"
        )
    return Layout()

  def as_splits(self) -> Layout:
    self._check_single("train", self._train)
    self._check_single("eval", self._held_out)
    train = "" if self._train_is_class() else next(iter(self._train), "")
    held_out = next(iter(self._held_out), "")
    splits = [*self._held_out, *([] if not train else self._train)]
    named = [*self._train, *self._held_out] if train else self._held_out
    unused = [x for x in named if x not in (train, held_out)]
    if train:
      unused += self._rest
    unused = list(filter(self._has_images, unused))
    return Layout(train, held_out, tuple(splits), tuple(unused))

  def has_splits(self) -> bool:
    """Checks whether the folders are splits; raises ConfigError if unclear."""
    train, held_out = self._train, self._held_out
    if self._data.layout == "splits":
      if train or held_out:
        return True
      raise ConfigError(
        f"data.layout='splits', but {self._root} has no folder that is called "
        f"train or val: it has {self._listed()}"
      )
    if self._is_chosen("train"):
      return True
    if not train:
      return bool(held_out) and self._has_held_out()
    if not self._is_flat(train[0]):
      if held_out or not self._has_images(train[0]) or not self._others():
        return True
      raise self._unclear()
    clear = self._is_chosen("eval") or not self._others()
    if clear or self._train_is_class():
      return True
    if not held_out and any(map(self._is_flat, self._others())):
      return False  # bus/, car/, train/: each is a class
    raise self._unclear()

  def _check_single(self, split: str, names: Sequence[str]) -> None:
    """Refuses names that mean the same split."""
    if self._is_chosen(split):
      return
    first = [x for x in names if split_name(x) == split_name(names[0])]
    if split == "train" and self._data.layout != "splits":
      first = list(names)
    if len(first) > 1:
      raise ConfigError(
        f"{self._root} has the folders {' and '.join(first)} for one split: "
        f"set --config.data.{split}_split={first[-1]} to use that one, or "
        "rename or remove one of them"
      )

  def _has_held_out(self) -> bool:
    """Decides whether folders are held out where no folder is for training."""
    if self._is_chosen("eval") or self._holds_classes(self._others()):
      return True
    images = self._tree.folder().images
    if not self._others() and images:
      return True
    if not any(map(self._has_images, self._held_out)):
      return True  # an empty folder is no class, and evaluation reports it
    raise self._unclear()

  def _train_is_class(self) -> bool:
    """Checks for classes, one called train, beside held-out class folders."""
    if self._data.layout != "auto" or self._is_chosen("train"):
      return False
    train = next(iter(self._train), "")
    return (
      bool(train)
      and self._is_flat(train)
      and bool(self._others())
      and self._holds_classes([train, *self._others()])
    )

  def _holds_classes(self, names: Sequence[str]) -> bool:
    """Checks whether a held-out folder has folders with one of the names."""
    return any(
      set(self._tree.folder(each).folders) & set(names)
      for each in self._held_out
      if not self._is_flat(each)
    )

  def _others(self) -> list[str]:
    """Returns the folders with images that have no split's name."""
    return list(filter(self._has_images, self._rest))

  def _has_images(self, name: str) -> bool:
    return self._tree.has_images(name)

  def _is_flat(self, name: str) -> bool:
    return bool(self._tree.folder(name).images)

  def _is_chosen(self, split: str) -> bool:
    field = f"{split}_split"
    return getattr(self._data, field) not in ("", getattr(DataConfig, field))

  def _named(
    self, folders: Sequence[str], wanted: str, known: Sequence[str], split: str
  ) -> list[str]:
    """Returns folders with a known name, and first of all the one that is set.

    Raises:
      ConfigError: if that one is missing.
    """
    chosen = [wanted] if self._is_chosen(split) else []
    if chosen and not (wanted in folders and (self._root / wanted).is_dir()):
      raise ConfigError(
        f"data.{split}_split={wanted!r} is not a folder of {self._root}, which "
        f"has {self._listed()}: set --config.data.{split}_split to one of them"
        f", or to {getattr(DataConfig, f'{split}_split')!r} to find it by name"
      )
    found = [
      name
      for name in folders
      if split_name(name) in known
      and name not in chosen
      and (self._root / name).is_dir()
    ]
    return chosen + sorted(found, key=lambda x: known.index(split_name(x)))

  def _listed(self) -> str:
    names = self._tree.folder().folders
    text = ", ".join(names[:8]) or "none"
    return text + f" and {len(names) - 8} more" * (len(names) > 8)

  def _unclear(self) -> ConfigError:
    splits = ", ".join(self._train + self._held_out)
    return ConfigError(
      f"{self._root} can be read in two ways: its folders {self._listed()} are "
      f"all classes, or {splits} is a split and no class. Set "
      "--config.data.layout=classes or --config.data.layout=splits"
    )
