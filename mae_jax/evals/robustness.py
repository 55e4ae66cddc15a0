"""The TFDS data sets for testing the robustness of ImageNet classifiers.

ImageNet-A and -R have images of 200 of the 1000 classes; published accuracies
allow only these 200 as answers. ImageNet-C (Hendrycks and Dietterich 2019,
arXiv 1903.12261) is the validation images under 15 corruptions, and 4 more for
development, at 5 severities, each a TFDS config. TFDS recomputes the
corruptions on images cropped to 224 pixels. Numbers are therefore close to
those on the authors' files, but not equal.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from mae_jax.config import DataConfig, nearest
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError

CORRUPTED = "imagenet2012_corrupted"
SETS = ("imagenet_a", "imagenet_r", "imagenet_sketch", CORRUPTED)

# AlexNet's top-1 error under each corruption, mean over severities, which
# normalizes the corruption error. Published by the authors with the data set,
# github.com/hendrycks/robustness.
ALEXNET = {
  "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
  "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
  "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324,
  "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
  "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
# Corruptions for development, which no mean includes.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)

Key = tuple[str, int]  # corruption and severity

# In the order of tables.
KEYS: tuple[Key, ...] = tuple(
  (name, severity) for name in (*ALEXNET, *EXTRA) for severity in SEVERITIES
)


def data_set(data: DataConfig) -> str:
  """Returns the name in SETS that data.name refers to, or ""."""
  name = re.split("[/:]", data.name)[0]
  return name if data.source == "tfds" and name in SETS else ""


def is_all_corruptions(data: DataConfig) -> bool:
  """Checks whether data.name refers to ImageNet-C without a config."""
  return data_set(data) == CORRUPTED and "/" not in data.name


def config_name(key: Key) -> str:
  """Returns the TFDS config of a corruption and severity."""
  corruption, severity = key
  return f"{corruption}_{severity}"


def corruption_data(data: DataConfig, key: Key) -> DataConfig:
  """Returns the data settings of one corruption and severity."""
  name, colon, version = data.name.partition(":")
  name = f"{name}/{config_name(key)}{colon}{version}"
  return dataclasses.replace(data, name=name)


def corruption_keys(data: DataConfig, names: Collection[str]) -> list[Key]:
  """Returns the corruptions of TFDS configs, in the order of tables."""
  known = {config_name(key): key for key in KEYS}
  for name in names:
    if name not in known:
      raise ConfigError(
        f"data.name={data.name!r} has a config {name!r}, which is not a "
        f"corruption of ImageNet-C: {nearest(name, known)}"
      )
  return [key for name, key in known.items() if name in names]


def note(data: DataConfig) -> str:
  """Returns a warning about comparing with published numbers, or ""."""
  if data_set(data) != CORRUPTED or data.eval_crop == 1:
    return ""
  return (
    f"the images of {CORRUPTED} are center crops already, and "
    f"data.eval_crop={data.eval_crop:g} crops them again: set "
    "--config.data.eval_crop=1 to compare with published numbers"
  )


@dataclasses.dataclass(frozen=True)
class CorruptionErrors:
  """Top-1 errors on all or some corruptions of ImageNet-C.

  Attributes:
    errors: error by corruption and severity, in 0..1.
  """

  errors: Mapping[Key, float]

  @property
  def missing(self) -> list[Key]:
    """The corruptions that the published means need but that are missing."""
    return [key for key in KEYS if key[0] in ALEXNET and key not in self.errors]

  def mean(self, corruption: str) -> float | None:
    """Averages over severities; None if one is missing."""
    errors = [
      self.errors.get((corruption, severity)) for severity in SEVERITIES
    ]
    known = [error for error in errors if error is not None]
    return float(np.mean(known)) if len(known) == len(SEVERITIES) else None

  def scalars(self) -> dict[str, float]:
    """Returns each error, the means without missing values, and the mCE."""
    result = {
      f"eval_error/{config_name(key)}": error
      for key, error in self.errors.items()
    }
    means = {
      name: mean
      for name in (*ALEXNET, *EXTRA)
      if (mean := self.mean(name)) is not None
    }
    result |= {f"eval_error_mean/{name}": mean for name, mean in means.items()}
    if not self.missing:
      normalized = [means[name] / alexnet for name, alexnet in ALEXNET.items()]
      result["eval_error"] = float(np.mean([means[name] for name in ALEXNET]))
      result["eval_mce"] = float(np.mean(normalized))
    return result

  def table(self) -> str:
    """Formats one row per corruption and one column per severity."""
    header = "".join(f"{severity:>8}" for severity in SEVERITIES)
    lines = [f"{'top-1 error, % at severity':<28}{header}{'mean':>8}"]
    for corruption in dict.fromkeys(name for name, _ in KEYS):
      keys = [(corruption, severity) for severity in SEVERITIES]
      if any(key in self.errors for key in keys):
        errors = [
          *(self.errors.get(key) for key in keys),
          self.mean(corruption),
        ]
        cells = "".join(f"{_percent(error):>8}" for error in errors)
        lines.append(f"{corruption:<28}{cells}")
    return "\n".join([*lines, self._conclusion()])

  def csv_file(self, images: Mapping[Key, int]) -> bytes:
    """Formats one line per corruption and severity."""
    header = ("corruption", "severity", "images", "top1_error")
    rows = ((*key, images[key], error) for key, error in self.errors.items())
    return atomic_write.csv_rows([header, *rows])

  def _conclusion(self) -> str:
    missing = self.missing
    if missing:
      first = ", ".join(map(config_name, missing[:3]))
      return (
        f"no mean over corruptions: {len(missing)} of "
        f"{len(ALEXNET) * len(SEVERITIES)} are not prepared ({first}"
        f"{', ...' if len(missing) > 3 else ''})"
      )
    found = self.scalars()
    return (
      f"mean over the {len(ALEXNET)} corruptions of the benchmark: error "
      f"{_percent(found['eval_error'])} %, mCE (relative to AlexNet) "
      f"{_percent(found['eval_mce'])} %"
    )


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.1f}"
