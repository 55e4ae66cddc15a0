"""Tests of the listing of a data set's prepared configs."""

from __future__ import annotations

import pytest
import tensorflow_datasets as tfds

from mae_jax.data.sources import tfds as configs
from mae_jax.utils.errors import ConfigError
from tests.helpers.tfds_data import prepare, shapes


@pytest.fixture
def noisy(tmp_path):
  """A data_dir with "noisy" in two configs, one of them in two versions."""
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=2),
    "file_name": tfds.features.Text(),
  }
  for name, version in (("much", "1.0.0"), ("much", "2.0.0"), ("a_1", "1.0.0")):
    builder = tfds.core.BuilderConfig(name=name, version=version)
    splits = {"test": shapes(2)}
    prepare(tmp_path, "noisy", features, splits, config=builder)
  (tmp_path / "noisy" / "begun" / "incomplete.AB12CD_1.0.0").mkdir(parents=True)
  return tmp_path


def test_prepared_configs_are_listed(any_settings, noisy, monkeypatch):
  data = any_settings("tfds", name="noisy", data_dir=str(noisy))
  assert configs.prepared_configs(data) == ("a_1", "much")
  second = any_settings("tfds", name="noisy:2.0.0", data_dir=str(noisy))
  assert configs.prepared_configs(second) == ("much",)
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(noisy))
  anywhere = any_settings("tfds", name="noisy", data_dir="")
  assert configs.prepared_configs(anywhere) == ("a_1", "much")


@pytest.mark.parametrize("name", ["noisy:3.0.0", "quiet", "noisy/much"])
def test_no_prepared_config_is_an_error(any_settings, noisy, name):
  data = any_settings("tfds", name=name, data_dir=str(noisy))
  with pytest.raises(ConfigError, match=r"is prepared in .*: set") as e:
    configs.prepared_configs(data)
  assert f"data.name={name!r}: none of its configs" in str(e.value)
