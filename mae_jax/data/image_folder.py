"""The image files of one folder, with or without class folders."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import listing
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


class ImageFolder:
  """The images of one folder, grouped by class folders if there are any."""

  def __init__(
    self,
    folder: epath.Path,
    data: DataConfig,
    ignore: Sequence[str] = (),
    tree: listing.Tree | None = None,
  ):
    """Lists the folder, but none below.

    Args:
      folder: the folder.
      data: `channels`.
      ignore: folders in it that are no classes.
      tree: a tree of this folder, if there is one.
    """
    self.folder = os.fspath(folder)
    self.suffixes: tuple[str, ...] = listing.SUFFIXES
    if data.channels not in (1, 3):
      self.suffixes = (".npy",)
    self._tree = tree or listing.open_tree(self.folder)
    top = self._tree.folder()
    self._flat = list(self._wanted(top.images))
    self._folders = [name for name in top.folders if name not in ignore]

  def classes(self) -> tuple[str, ...]:
    """Returns the sorted class folders that have images; () if there are none.

    Raises:
      ConfigError: if there are images beside class folders.
    """
    names = (
      name for name in self._folders if any(True for _ in self._in(name))
    )
    return self._check_flat(tuple(names))

  def read(
    self, classes: tuple[str, ...] | None
  ) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    """Returns the paths under the folder, their labels, and the classes.

    Args:
      classes: class names in the order of labels, whose folders may be missing;
        None for all class folders that have images; () for no classes.
    """
    if classes == ():
      return self._all_flat()
    with self._reported():
      found = {name: list(self._in(name)) for name in self._folders}
    if classes is None:
      classes = self._check_flat(tuple(name for name in found if found[name]))
    if not classes:
      return self._all_flat()
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
      # Held-out images need not have every class.
      paths = found.pop(name, [])
      files += paths
      labels += [label] * len(paths)
    return files, labels, classes

  def all_paths(self) -> list[bytes]:
    """Returns the sorted paths of all images, whatever folders they are in."""
    found: list[bytes] = []
    with self._reported():
      # With a slash at its end, a folder sorts to where its paths belong.
      for name in sorted([*self._flat, *(f"{x}/" for x in self._folders)]):
        inside = name.endswith("/")
        found += self._in(name[:-1]) if inside else [os.fsencode(name)]
    return found

  def _all_flat(self) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    return [os.fsencode(x) for x in self._flat], [-1] * len(self._flat), ()

  def _check_flat(self, classes: tuple[str, ...]) -> tuple[str, ...]:
    if self._flat and classes:
      raise ConfigError(
        f"{self.folder} has images beside class folders, for instance "
        f"{self.folder}/{self._flat[0]} and {self.folder}/{classes[0]}: move "
        "the images into class folders, or the folders away"
      )
    return classes

  def _in(self, name: str) -> Iterator[bytes]:
    return map(os.fsencode, self._wanted(self._tree.walk(name)))

  def _wanted(self, names: Iterable[str]) -> Iterator[str]:
    for name in names:
      if self.suffixes == listing.SUFFIXES or name.lower().endswith(".npy"):
        yield name
      else:
        self._tree.skipped[listing.suffix(name)] += 1

  @contextlib.contextmanager
  def _reported(self) -> Iterator[None]:
    """Lists all folders in the block, then reports what was skipped."""
    skipped = self._tree.skipped
    # Other methods may have listed a part.
    self._tree.closed.clear()
    skipped.clear()
    skipped.update(self._tree.folder().skipped)
    list(self._wanted(self._tree.folder().images))  # counts other suffixes
    yield
    self._tree.save()
    for path in self._tree.closed:
      console.warn(
        f"{self.folder}/{path} is skipped, with all images in it: permission "
        "denied"
      )
    if skipped:
      kinds = ", ".join(f"{n} {kind}" for kind, n in skipped.most_common(8))
      console.notice(
        f"{self.folder}: files skipped because they are not images: "
        f"{skipped.total():,} ({kinds})"
      )
