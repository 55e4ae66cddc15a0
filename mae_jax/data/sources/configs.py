"""Which configs of a TFDS data set are prepared: each is a data set apart."""

from __future__ import annotations

from etils import epath
from tensorflow_datasets.core.utils import file_utils

from mae_jax import config, storage


def prepared_configs(data: config.Data) -> tuple[str, ...]:
  """The names of those in data.data_dir, or in TFDS's default.

  Args:
    data: `name` of a data set that has configs, with a version or without.

  Raises:
    ConfigError: if there is none.
  """
  name, _, version = data.name.partition(":")
  directories = file_utils.list_data_dirs(data.data_dir or None)
  with storage.reaching(data.data_dir):
    found = {
      each.config
      for directory in directories
      for each in file_utils.list_dataset_variants(epath.Path(directory) / name)
      if each.config and version in ("", str(each.version))
    }
  if not found:
    where = ", ".join(map(str, directories))
    raise config.ConfigError(
      f"data.name={data.name!r}: none of its configs is prepared in {where}: "
      "set --config.data.data_dir to where they are, or prepare each with "
      f"`tfds build {name}/CONFIG --data_dir={directories[0]}`"
    )
  return tuple(sorted(found))
