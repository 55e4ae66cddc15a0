"""The 1000 classes of ImageNet by number, WordNet ID and name."""

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence

from mae_jax import conversion

# A line for each class: its ID and its names in WordNet.
_FILE = pathlib.Path(__file__).parents[1] / "assets" / "imagenet/classes.txt"
CLASSES = 1000


def class_numbers(names: Sequence[str]) -> list[int] | None:
  """Returns ImageNet's number for each class name.

  Names may be WordNet IDs (n01440764) or WordNet's names ("tench", or "tench,
  Tinca tinca"; capitals and underscores do not matter). For all 1000 classes
  they may be numbers, also as LABEL_0 and so on, or a list with nine of ten
  names in their places: torchvision's tells namesakes apart in its own way.

  Returns:
    Numbers from 0 to 999; None unless all names are different classes.
  """
  in_order = list(range(CLASSES))
  if tuple(names) == conversion.default_class_names(CLASSES):
    return in_order
  known = [_by_name().get(_normalized(name), frozenset()) for name in names]
  if len(names) == CLASSES:
    if all(map(str.isdecimal, names)):
      found = list(map(int, names))
      return found if sorted(found) == in_order else None
    if sum(number in each for number, each in enumerate(known)) > 900:
      return in_order
  if any(len(each) != 1 for each in known):
    return None
  found = [min(each) for each in known]
  return found if len({*found}) == len(found) else None


@functools.cache
def _by_name() -> Mapping[str, frozenset[int]]:
  """Returns the classes of each ID and name."""
  found: dict[str, set[int]] = collections.defaultdict(set)
  lines = _FILE.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines):
    wnid, names = line.split("\t")
    for name in (wnid, names, *names.split(", ")):
      found[_normalized(name)].add(number)
  return {name: frozenset(numbers) for name, numbers in found.items()}


def _normalized(name: str) -> str:
  return name.lower().replace("_", " ").strip()
