"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, no download."""

import numpy as np

from mae_jax.config import DataConfig
from mae_jax.data.sources import base
from mae_jax.utils.errors import ConfigError


def open_digits(data: DataConfig, split: base.Split) -> base.Arrays:
  """Opens 1,437 digits for training, or the 360 held-out digits, stratified.

  `data.train_split` is ignored.

  Raises:
    ConfigError: if data.channels is not 1.
  """
  if data.channels != 1:
    raise ConfigError(
      f"data.channels={data.channels}: the digits are gray; set "
      "--config.data.channels=1"
    )
  # Importing it takes half as long as TensorFlow, and only this source uses it.
  from sklearn import datasets, model_selection

  pixels, labels = datasets.load_digits(return_X_y=True)
  # Scales the 17 gray levels, 0..16, to the whole range of a byte.
  images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  rows = model_selection.train_test_split(
    np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
  )[0 if split == "train" else 1]
  names = tuple(str(digit) for digit in range(10))
  identity = {"images": len(rows)}
  return base.Arrays.create(images[rows], identity, names, labels[rows])
