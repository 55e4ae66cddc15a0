"""Images as users have them: paths, folders, Pillow images, arrays, lists."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from mae_jax.api import arguments
from mae_jax.config import DataConfig
from mae_jax.data import image_files, image_headers, image_io
from mae_jax.data.image_files import Images
from mae_jax.utils.errors import ConfigError

# One image or several: a path of a file or a folder; a Pillow image; an array
# [H, W], [H, W, C] or [N, H, W, C] of uint8 (NumPy, JAX, PyTorch); or a
# sequence of these.
ImageInput = Any

_BYTES = (bytes, bytearray, memoryview)


def prepared(
  given: ImageInput, data: DataConfig, preprocess: bool
) -> tuple[Images, DataConfig]:
  """Returns images, and how to prepare them.

  Args:
    given: see ImageInput; without `preprocess` an array [N, H, W, C].
    data: how evaluation prepares images.
    preprocess: whether to do so; otherwise pixels stay as they are.

  Raises:
    ConfigError: as `as_images`, or if pixels that should stay as they are have
      another shape than the network takes.
  """
  if preprocess:
    return as_images(given, data), data
  wanted = (*data.image_size, data.channels)
  shape = getattr(given, "shape", None)
  if shape is None or len(shape) != 4 or tuple(shape[1:]) != wanted:
    found = f"a {type(given).__name__}" if shape is None else f"{tuple(shape)}"
    sides = ", ".join(map(str, wanted))
    raise ConfigError(
      f"preprocess=False takes an array [N, {sides}], and images is {found}: "
      "leave it out to resize and crop images"
    )
  # Resizing to the size that an image has copies it.
  return as_images(given, data), dataclasses.replace(data, eval_fit="squash")


def as_images(given: ImageInput, data: DataConfig) -> Images:
  """Converts images to what networks are run over.

  Args:
    given: see ImageInput.
    data: settings of reading files.

  Returns:
    The images. Those that are no files are named by their numbers.

  Raises:
    ConfigError: if there is no image, a path does not exist, or an array has
      another type, shape or number of channels.
  """
  parts = _parts(given, data, "images")
  if not parts:
    raise ConfigError("images is empty: give at least one image")
  if len(parts) == 1 and isinstance(parts[0], Images):
    return parts[0]
  names: list[str] = []
  places: list[tuple[Images | np.ndarray, int]] = []
  for part in parts:
    found = part.names if isinstance(part, Images) else [str(len(names))]
    names += found
    places += [(part, index) for index in range(len(found))]

  def read(number: int) -> np.ndarray:
    part, index = places[number]
    return part.read(index) if isinstance(part, Images) else part

  return Images(names, read)


def _parts(
  given: ImageInput, data: DataConfig, what: str
) -> list[Images | np.ndarray]:
  """Returns opened paths, and [H, W, C] of each array."""
  if isinstance(given, str | os.PathLike):
    return [image_files.open_images(arguments.path(what, given), data)]
  if isinstance(given, Image.Image):
    try:
      return [image_io.to_pixels(given, image_headers.Reading.of(data))]
    except ConfigError as error:
      raise ConfigError(f"{what} is {error}") from error.__cause__
  if getattr(getattr(given, "dtype", None), "kind", "") in ("O", "U"):
    given = np.asarray(given).tolist()  # a column of paths
  if isinstance(given, Sequence) and not isinstance(given, _BYTES):
    return [
      part
      for number, each in enumerate(given)
      for part in _parts(each, data, f"images[{number}]")
    ]
  if not hasattr(given, "__array__"):
    way_out = "give"
    if isinstance(given, _BYTES) or hasattr(given, "read"):
      way_out = "use PIL.Image.open(io.BytesIO(data)) of an image's bytes, or"
    elif isinstance(given, Iterator):
      way_out = "use list(images), or give"
    raise ConfigError(
      f"{what} is a {type(given).__name__}: {way_out} a path, a folder, a "
      "Pillow image, an array of uint8 [H, W, C] or [N, H, W, C], or a list of "
      "these"
    )
  if isinstance(given, jax.core.Tracer):
    raise ConfigError(
      f"{what} is traced by jax.jit, jax.grad or jax.vmap, in which only "
      "Model.apply works: use model.apply(model.params, images)"
    )
  try:
    array = np.asarray(given)
  except (TypeError, RuntimeError) as error:  # PyTorch's, with the way out
    raise ConfigError(f"{what} is no array for NumPy: {error}") from error
  if data.value_range and array.dtype.kind in "uif":
    try:
      array = image_io.scale(array, data.value_range)
    except ConfigError as error:
      raise ConfigError(f"{what}: {error}") from None
  elif array.dtype != np.uint8:
    raise ConfigError(
      f"{what} has dtype {array.dtype}, whose range is not known: give uint8 "
      "from 0 to 255, for instance (255 * images).round().astype(np.uint8)"
    )
  if array.ndim not in (2, 3, 4) or 0 in array.shape:
    raise ConfigError(
      f"{what} has shape {array.shape}: give [H, W], [H, W, C] or [N, H, W, C]"
    )
  if array.ndim == 2:
    array = array[..., None]
  found = array.shape[-1]
  if found != data.channels and {found, data.channels} != {1, 3}:
    hint = ""
    if data.channels in array.shape[-3:-1] and found not in (1, 3):
      axes = (0, 2, 3, 1) if array.ndim == 4 else (1, 2, 0)
      hint = f"; channels come last: use np.transpose(images, {axes})"
    elif found in (2, 4):
      hint = (
        "; if the last is alpha, give Pillow images, as "
        "PIL.Image.fromarray(image), or drop it: images[..., :-1]"
      )
    elif array.ndim == 3:
      hint = "; use images[..., None] of a stack of gray images"
    raise ConfigError(
      f"{what} has shape {array.shape}, which is {found} channels, and the "
      f"network takes {data.channels}{hint}"
    )
  whole = array if array.ndim == 4 else array[None]
  return [image_io.with_channels(each, data.channels) for each in whole]
