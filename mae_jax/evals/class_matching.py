"""Matches the classes of data to those of a head; needs no TensorFlow."""

import collections
from collections.abc import Sequence

import numpy as np

from mae_jax import conversion
from mae_jax.config import nearest
from mae_jax.evals import imagenet
from mae_jax.utils.errors import ConfigError, abbreviate


def match_classes(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
  """Returns the head's class number for each class of the data.

  Classes are matched by name. ImageNet's are known by different names; see
  `imagenet.class_numbers`. If the head has default names and as many classes as
  the data, classes are matched by number.

  Args:
    names: the M classes of the data, in the order of their labels.
    known: the N classes of the head.

  Returns:
    int32 [M], indices into `known`.

  Raises:
    ConfigError: if the head lacks a class, or has its name twice.
  """
  if {*names} - {*known}:
    as_imagenet = _imagenet_numbers(names, known)
    if as_imagenet is not None:
      return as_imagenet
  if _match_by_number(names, known):
    return np.arange(len(known), dtype=np.int32)
  counts = collections.Counter(known)
  twice = {name for name in names if counts[name] > 1}
  if twice:
    raise ConfigError(
      f"the checkpoint has {len(twice)} class names more than once, such as "
      f"{abbreviate(min(twice))}, so names do not identify classes: convert "
      "it with other --class_names (python -m mae_jax convert)"
    )
  numbers = {name: number for number, name in enumerate(known)}
  unknown = [name for name in names if name not in numbers]
  if unknown:
    raise ConfigError(
      f"{len(unknown)} of the data's {len(names)} classes, such as "
      f"{abbreviate(unknown[0])}, are not among the {len(known)} classes of "
      f"the checkpoint: {nearest(unknown[0], known)}; name classes as in "
      "training, and remove all others; or convert the checkpoint with other "
      "--class_names (python -m mae_jax convert)"
    )
  return np.array([numbers[name] for name in names], np.int32)


def folder_labels(files: Sequence[str], known: Sequence[str]) -> dict[str, int]:
  """Returns the class of each file whose first folder is named by its class.

  Args:
    files: paths under a folder.
    known: the classes of the head.

  Returns:
    The class number by file; empty unless all files lie in folders of classes.
  """
  folders = [file.rpartition("/")[0].partition("/")[0] for file in files]
  names = sorted({*folders})
  if "" in names or _match_by_number(names, known):
    return {}
  try:
    numbers = dict(zip(names, match_classes(names, known), strict=True))
  except ConfigError:
    return {}
  labels = [int(numbers[folder]) for folder in folders]
  return dict(zip(files, labels, strict=True))


def assumption(names: Sequence[str], known: Sequence[str]) -> str:
  """Returns what `match_classes` assumes of a head without names; or ""."""
  if not _is_unnamed(known):
    return ""
  order = "in the order of the data's classes"
  if _imagenet_numbers(names, known) is not None:
    order = "those of ImageNet"
  return (
    f"the classes of the checkpoint have no names: they are assumed to be "
    f"{order}"
  )


def _match_by_number(names: Sequence[str], known: Sequence[str]) -> bool:
  return _is_unnamed(known) and len(names) == len(known)


def _is_unnamed(known: Sequence[str]) -> bool:
  return tuple(known) == conversion.default_class_names(len(known))


def _imagenet_numbers(
  names: Sequence[str], known: Sequence[str]
) -> np.ndarray | None:
  """Returns `match_classes` if all classes are ImageNet's, else None."""
  ours, theirs = (imagenet.class_numbers(each) for each in (known, names))
  if ours is None or theirs is None or not {*theirs} <= {*ours}:
    return None
  place = {number: index for index, number in enumerate(ours)}
  return np.array([place[number] for number in theirs], np.int32)
