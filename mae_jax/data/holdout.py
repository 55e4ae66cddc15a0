"""The share of a folder's images that is held out, chosen by their names."""

import hashlib
from collections.abc import Sequence

import numpy as np

from mae_jax.utils.errors import ConfigError


def choose(
  files: Sequence[bytes], labels: Sequence[int], share: float
) -> np.ndarray:
  """Chooses the images to hold out: the same for all runs and seeds.

  Each class holds out its images with the smallest hashes of their paths, so
  that an image that is added moves at most one other, of its class.

  Args:
    files: the N paths under the folder.
    labels: their N classes; all equal if there are none.
    share: of each class, in (0, 1). A class of two or more images keeps at
      least one on each side, and a class of one image trains.

  Returns:
    bool [N], true for held-out images.

  Raises:
    ConfigError: if no image would be held out.
  """
  digests = (hashlib.sha256(file).digest()[:8] for file in files)
  hashes = np.frombuffer(b"".join(digests), ">u8")
  chosen = np.zeros(len(files), bool)
  numbers = np.asarray(labels, np.int64)
  # Sorted by class, and by hash in it.
  order = np.lexsort((hashes, numbers))
  _, counts = np.unique(numbers, return_counts=True)
  for first, count in zip(np.cumsum(counts) - counts, counts, strict=True):
    held_out = min(max(round(share * count), 1), count - 1)
    chosen[order[first : first + held_out]] = True
  if len(files) and not chosen.any():
    raise ConfigError(
      f"data.holdout={share:g} holds out none of {len(files)} images, because "
      "no class has two: add images, or set --config.data.holdout=0"
    )
  return chosen
