"""Photographs that come with scikit-learn and scikit-image, no download."""

import importlib.util
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mae_jax.config import DataConfig
from mae_jax.data.sources import base
from mae_jax.utils.errors import ConfigError

TRAIN = (
  "astronaut.png", "brick.png", "camera.png", "china.jpg", "coffee.png",
  "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
  "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
EVAL = ("chelsea.png", "flower.jpg")
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
TILE = 160  # pixels, height and width
_SHORT_SIDE = 256  # pixels, to which a photograph is resized before tiling
_STRIDE = 48  # pixels between two tiles


def open_photos(data: DataConfig, split: base.Split) -> base.Arrays:
  """Opens overlapping tiles of twelve photographs, or of two held-out ones.

  There are no labels, and `data.train_split` is ignored.

  Raises:
    ConfigError: if data.channels is neither 1 nor 3.
  """
  base.check_color(data)
  names = TRAIN if split == "train" else EVAL
  mode = "L" if data.channels == 1 else "RGB"
  tiles = np.stack(
    [tile for name in names for tile in _tiles(_photo(name, mode))]
  ).reshape(-1, TILE, TILE, data.channels)
  # Other versions of the packages may have other photographs by these names.
  pixels = base.digest([tiles.tobytes()])
  return base.Arrays.create(tiles, {"images": len(tiles), "pixels": pixels})


def _path(name: str) -> pathlib.Path:
  """Finds a photograph without importing the package that contains it."""
  for package, folder in _FOLDERS.items():
    spec = importlib.util.find_spec(package)
    assert spec is not None
    for place in spec.submodule_search_locations or ():
      path = pathlib.Path(place, folder, name)
      if path.exists():
        return path
  raise ConfigError(
    f"data.source=photos needs {name}, which the installed scikit-learn and "
    "scikit-image do not have: install the versions of constraints.txt"
  )


def _photo(name: str, mode: str) -> np.ndarray:
  """Reads a photograph, uint8 [H, W] or [H, W, 3]."""
  with Image.open(_path(name)) as file:
    image = file.convert(mode)
  scale = _SHORT_SIDE / min(image.size)
  width, height = (round(scale * side) for side in image.size)
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _tiles(photo: np.ndarray) -> Iterator[np.ndarray]:
  height, width = photo.shape[:2]
  for top in range(0, height - TILE + 1, _STRIDE):
    for left in range(0, width - TILE + 1, _STRIDE):
      yield photo[top : top + TILE, left : left + TILE]
