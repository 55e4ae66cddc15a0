"""Writes small TFDS data sets, for tests and benchmarks to read."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mae_jax import data as _  # noqa: F401  (hides accelerators from TensorFlow)


class Prepared(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A builder that writes given examples as a TFDS data set."""

  VERSION = tfds.core.Version("1.0.0")
  # For a class in a package, tfds 4.9.10 imports importlib_resources, which it
  # does not install (tensorflow/datasets#11212).
  __module__ = "prepared"

  def __init__(
    self,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Any]],
    **options: Any,
  ):
    self.name = name
    self._features = features
    self._splits = splits
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(self._features)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    return {
      name: enumerate(examples) for name, examples in self._splits.items()
    }

  def _generate_examples(self) -> Any:
    raise NotImplementedError


def prepare(
  directory: pathlib.Path,
  name: str,
  features: Mapping[str, Any],
  splits: Mapping[str, Sequence[Any]],
  num_shards: int = 1,
  **options: Any,
) -> None:
  """Prepares a TFDS data set.

  Args:
    directory: its `data_dir`.
    name: its name.
    features: TFDS features by name.
    splits: examples by split.
    num_shards: number of record files of each split.
    **options: further arguments of the TFDS builder.
  """
  tfds.disable_progress_bar()
  builder = Prepared(name, features, splits, data_dir=directory, **options)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=num_shards)
  )
