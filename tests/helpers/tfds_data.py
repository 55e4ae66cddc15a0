"""TFDS data sets for tests."""

from __future__ import annotations

import numpy as np

from bench.lib.tfds_data import prepare, tfds

__all__ = ["SHARDS", "TEST", "TRAIN", "prepare", "shapes", "tfds"]

SHARDS = 3
TRAIN, TEST = 53, 22


def shapes(number):
  """Returns images of one gray level each; level and label are unique."""
  return [
    {
      "image": np.full((6 + k % 3, 7, 3), 2 * k, np.uint8),
      "label": k,
      "file_name": f"{k}.png",
    }
    for k in range(number)
  ]
