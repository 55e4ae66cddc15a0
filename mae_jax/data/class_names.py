"""Classes: labels as they are stored, and names that look alike."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from mae_jax.utils.errors import ConfigError, abbreviate


def find_alike(names: Sequence[str]) -> tuple[str, str] | None:
  """Returns two names that look alike to a person, if there are any."""
  seen: dict[str, str] = {}
  for name in names:
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    if seen.setdefault(plain, name) != name:
      return seen[plain], name
  return None


def describe_alike(names: tuple[str, str] | None) -> str:
  """Says how names of `find_alike` differ; "" for None."""
  if not names:
    return ""
  first, second = map(ascii, names)
  return (
    f" ({first} and {second} differ only in case, spaces or the form of "
    "Unicode)"
  )


def sort_classes(labels: Sequence[str]) -> tuple[str, ...]:
  """Returns the distinct labels, sorted; numbers by their value.

  Raises:
    ConfigError: if they are fractions, which are no classes.
  """
  names = sorted(set(labels))
  try:
    numbers = [float(name) for name in names]
  except ValueError:
    return tuple(names)
  for name, number in zip(names, numbers, strict=True):
    if not number.is_integer():
      raise ConfigError(
        f"the label {abbreviate(name)} is no class: labels are names or whole "
        "numbers; set --config.data.label_column to a column of classes, or to "
        "none for images without labels"
      )
  return tuple(sorted(names, key=lambda name: (float(name), name)))


def to_numbers(
  labels: Sequence[str],
  names: tuple[str, ...],
  name_of: Callable[[int], str],
  train: str,
) -> np.ndarray:
  """Maps labels to their indices in `names`, int64 [N].

  Args:
    labels: of N images.
    names: of the training classes.
    name_of: function from an index of `labels` to the image's name.
    train: the place of the training images.

  Raises:
    ConfigError: if a label is none of the names.
  """
  index = {name: number for number, name in enumerate(names)}
  numbers = np.array([index.get(label, -1) for label in labels], np.int64)
  if (numbers < 0).any():
    first = int(np.argmax(numbers < 0))
    unknown = {labels[int(k)] for k in np.flatnonzero(numbers < 0)}
    alike = find_alike((labels[first], *names))
    raise ConfigError(
      f"{name_of(first)} has the label {abbreviate(labels[first])}, which no "
      f"image of {train} has{describe_alike(alike)}; {len(unknown)} held-out "
      "label(s) are unknown: remove these images, or set "
      "--config.data.eval_split='' to run without held-out images"
    )
  return numbers
