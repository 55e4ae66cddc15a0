"""Names equal those of TFDS, and means those of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow_datasets.datasets.imagenet2012_corrupted import (
  imagenet2012_corrupted_dataset_builder as corrupted,
)

from mae_jax.config import DataConfig
from mae_jax.evals import robustness
from mae_jax.utils.errors import ConfigError
from tests.helpers import tiny


def data(name: str, **changes) -> DataConfig:
  return tiny.config(data={"source": "tfds", "name": name, **changes}).data


def all_errors(error) -> robustness.CorruptionErrors:
  """Returns all 95 errors, from the corruption's index and the severity."""
  names = list(dict.fromkeys(name for name, _ in robustness.KEYS))
  return robustness.CorruptionErrors(
    {key: error(names.index(key[0]), key[1]) for key in robustness.KEYS}
  )


def test_names_are_those_of_tfds():
  assert list(robustness.ALEXNET) == corrupted.BENCHMARK_CORRUPTIONS
  assert sorted(robustness.EXTRA) == sorted(corrupted.EXTRA_CORRUPTIONS)
  names = {each.name for each in corrupted.Builder.BUILDER_CONFIGS}
  assert {robustness.config_name(key) for key in robustness.KEYS} == names
  assert len(robustness.KEYS) == 95


@pytest.mark.parametrize(
  ("name", "known", "whole"),
  [
    ("imagenet_a", "imagenet_a", False),
    ("imagenet_r:0.2.0", "imagenet_r", False),
    ("imagenet_sketch", "imagenet_sketch", False),
    ("imagenet2012_corrupted", "imagenet2012_corrupted", True),
    ("imagenet2012_corrupted:3.1.0", "imagenet2012_corrupted", True),
    ("imagenet2012_corrupted/fog_1", "imagenet2012_corrupted", False),
    ("imagenet2012_corrupted/fog_1:3.1.0", "imagenet2012_corrupted", False),
    ("imagenet2012", "", False),
    ("imagenet_a2", "", False),
  ],
)
def test_which_sets_are_known(name: str, known: str, whole: bool):
  assert robustness.data_set(data(name)) == known
  assert robustness.is_all_corruptions(data(name)) == whole
  # A recipe's data.name remains, but has no meaning for a folder.
  assert robustness.data_set(data(name, source="folder")) == ""


def test_one_corruption_keeps_the_version():
  key = ("glass_blur", 3)
  one = robustness.corruption_data(data("imagenet2012_corrupted:3.1.0"), key)
  assert one.name == "imagenet2012_corrupted/glass_blur_3:3.1.0"
  one = robustness.corruption_data(data("imagenet2012_corrupted"), key)
  assert one.name == "imagenet2012_corrupted/glass_blur_3"


def test_keys_are_in_the_order_of_tables():
  names = ("saturate_1", "fog_2", "fog_1", "shot_noise_5")
  found = robustness.corruption_keys(data("x"), names)
  assert found == [("shot_noise", 5), ("fog", 1), ("fog", 2), ("saturate", 1)]
  with pytest.raises(ConfigError, match=r"'fog_6', which is not a cor"):
    robustness.corruption_keys(data("x"), (*names, "fog_6"))


def test_means_by_hand():
  """Errors rise by 1 % per severity, and start at 10 %, 12 %, 14 %, ..."""
  found = all_errors(lambda number, s: 0.10 + 0.02 * number + 0.01 * (s - 1))
  scalars = found.scalars()
  total = normalized = 0.0
  alexnet = (
    *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268),
    *(0.785948, 0.798360, 0.866816, 0.826572, 0.819324),
    *(0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
  )
  for number, reference in enumerate(alexnet):
    mean = 0.12 + 0.02 * number
    total += mean
    normalized += mean / reference
  assert scalars["eval_error"] == pytest.approx(total / 15)
  assert scalars["eval_error"] == pytest.approx(0.26)
  assert scalars["eval_mce"] == pytest.approx(normalized / 15)
  assert scalars["eval_error_mean/saturate"] == pytest.approx(0.48)
  assert scalars["eval_error/shot_noise_5"] == pytest.approx(0.16)
  assert len(scalars) == 95 + 19 + 2
  lines = found.table().splitlines()
  assert len(lines) == 1 + 19 + 1
  assert (
    " ".join(lines[2].split()) == "shot_noise 12.0 13.0 14.0 15.0 16.0 14.0"
  )
  assert lines[-1] == (
    "mean over the 15 corruptions of the benchmark: error 26.0 %, mCE "
    f"(relative to AlexNet) {100 * normalized / 15:.1f} %"
  )


def test_alexnet_itself_has_an_mce_of_one():
  values = list(robustness.ALEXNET.values())
  found = all_errors(lambda number, _: values[number] if number < 15 else 0.5)
  assert found.scalars()["eval_mce"] == pytest.approx(1)
  assert found.scalars()["eval_error"] == pytest.approx(np.mean(values))


def test_what_is_missing_is_named_and_there_is_no_mean():
  whole = all_errors(lambda number, _: 0.5)
  part = {key: e for key, e in whole.errors.items() if key != ("snow", 4)}
  found = robustness.CorruptionErrors(part)
  assert found.missing == [("snow", 4)]
  assert found.mean("snow") is None
  assert not {"eval_error", "eval_mce"} & set(found.scalars())
  lines = found.table().splitlines()
  assert lines[8].split() == ["snow", "50.0", "50.0", "50.0", "-", "50.0", "-"]
  assert lines[-1] == (
    "no mean over corruptions: 1 of 75 are not prepared (snow_4)"
  )
  # Corruptions for development are not required.
  benchmark = {key: e for key, e in whole.errors.items() if key[0] != "spatter"}
  assert robustness.CorruptionErrors(benchmark).scalars()["eval_mce"] > 0
  none = robustness.CorruptionErrors({("spatter", 1): 0.25})
  assert len(none.missing) == 75
  assert none.table().splitlines()[1].split() == ["spatter", "25.0", *"-----"]
