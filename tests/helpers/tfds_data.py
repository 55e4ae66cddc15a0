"""Writes small data sets as TFDS prepares them, for tests to read."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from mae_jax import data as _  # noqa: F401  (hides accelerators from TensorFlow)

SHARDS = 3
TRAIN, TEST = 53, 22


class Prepared(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Writes the examples it is given as TFDS data sets are written."""

  VERSION = tfds.core.Version("1.0.0")
  # For a class in a package, tfds 4.9.10 imports importlib_resources, which it
  # does not install (tensorflow/datasets#11212).
  __module__ = "prepared"

  def __init__(self, name, features, splits, **options):
    self.name = name
    self._features = features
    self._splits = splits
    super().__init__(**options)

  def _info(self):
    features = tfds.features.FeaturesDict(self._features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      name: enumerate(examples) for name, examples in self._splits.items()
    }

  def _generate_examples(self):
    raise NotImplementedError


def prepare(directory, name, features, splits, num_shards=1, **options):
  """Prepares a data set of {split: examples} in a data_dir."""
  tfds.disable_progress_bar()
  builder = Prepared(name, features, splits, data_dir=directory, **options)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=num_shards)
  )


def shapes(number):
  """Writes images of a single gray level, which, like the label, is unique."""
  return [
    {
      "image": np.full((6 + k % 3, 7, 3), 2 * k, np.uint8),
      "label": k,
      "file_name": f"{k}.png",
    }
    for k in range(number)
  ]
