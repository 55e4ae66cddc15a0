"""Services of the demo page: one for autoencoders, one for classifiers.

Methods take and return JSON content, and raise `HttpError`.
"""

import base64
import collections
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from PIL import Image
from sklearn import datasets

from mae_jax import conversion
from mae_jax.config import DataConfig, MeshConfig
from mae_jax.data import image_headers, image_io
from mae_jax.distributed import sharding
from mae_jax.evals import image_metrics, load_model, reconstruction
from mae_jax.models import classifiers, masking
from mae_jax.tools import (
  image_stream,
  predict,
  reconstruction_figures,
  reconstructor,
  web,
)
from mae_jax.tools import photo as photos
from mae_jax.tools.demo import precompile
from mae_jax.tools.web import HttpError
from mae_jax.utils import colormaps, image_grid, storage
from mae_jax.utils.errors import ConfigError, abbreviate

MAX_PIXELS = 64 << 20
_MAX_IMAGES = 16  # in memory
_TOP = 10  # classes to show
_STOPS = 9  # of the color scale


def _field(
  request: dict[str, Any],
  name: str,
  kind: Any,
  wanted: str,
  fits: Callable[[Any], bool] = lambda value: True,
) -> Any:
  """Returns a field of a JSON object; checks that it exists and its value."""
  if name not in request:
    raise HttpError(f"{name} is missing: write {wanted}")
  value = request[name]
  if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
    raise HttpError(f"{name}={abbreviate(value)} is not {wanted}")
  return value


class Service:
  """The images that were uploaded; the network is that of a subclass.

  Attributes:
    path: the path of requests about an image.
  """

  path: str

  def __init__(self, name: str, data: DataConfig, network: str):
    """Prepares a service.

    Args:
      name: name of the checkpoint.
      data: how images are prepared.
      network: description of the network.
    """
    self._data = data
    self._title = f"{name} ({network})"
    # The oldest first. Threads share it: its methods are atomic.
    self._images: collections.OrderedDict[str, photos.Photo] = (
      collections.OrderedDict()
    )

  def close(self) -> None:
    """Stops all threads."""

  def model(self) -> dict[str, Any]:
    """Returns the properties of the network that the page needs."""
    return {
      "title": self._title,
      "height": self._data.image_size[0],
      "width": self._data.image_size[1],
    }

  def answer(self, request: Any) -> dict[str, Any]:
    """Answers a request about an image, which is JSON content."""
    raise NotImplementedError

  def add(self, data: bytes) -> dict[str, Any]:
    """Adds an image from the bytes of a file."""
    return self._keep(web.decode(data, self._data, MAX_PIXELS))

  def example(self) -> dict[str, Any]:
    """Adds a sample image, at least as large as the model's input."""
    data = self._data
    if data.channels not in (1, 3):
      raise HttpError(
        f"there is no sample image of {data.channels} channels: drop a .npy"
        " file",
        HTTPStatus.NOT_FOUND,
      )
    if data.image_size[0] < 32:
      digit = secrets.choice(datasets.load_digits().images)
      image = Image.fromarray(np.round(digit / 16 * 255).astype(np.uint8))
    else:
      name = secrets.choice(("astronaut", "chelsea", "coffee", "rocket"))
      image = Image.fromarray(getattr(skimage.data, name)())
    whole = np.asarray(image.convert("L" if data.channels == 1 else "RGB"))
    return self._keep(whole.reshape(*whole.shape[:2], data.channels))

  def _photo(self, request: Any) -> photos.Photo:
    """Returns the image that a request names."""
    if not isinstance(request, dict):
      raise HttpError(f"{abbreviate(request)} is not an object with an image")
    photo = self._images.get(
      _field(request, "image", str, "the name that /image returned")
    )
    if photo is None:
      raise HttpError(
        "this image is no longer in memory: drop it again", HTTPStatus.NOT_FOUND
      )
    return photo

  def _keep(self, whole: np.ndarray) -> dict[str, Any]:
    photo = photos.fit(whole, self._data)
    name = secrets.token_hex(8)
    # Only the resized image: photographs are large.
    self._images[name] = photos.Photo(photo.picture, photo.box, photo.shown)
    while len(self._images) > _MAX_IMAGES:
      self._images.popitem(last=False)
    return {"image": name, "shown": _uri(photo.picture)}


class Reconstruction(Service):
  """Masks patches and reconstructs them."""

  path = "/paint"

  def __init__(self, network: reconstructor.Reconstructor, name: str):
    """Starts the thread that compiles programs."""
    super().__init__(name, network.data, network.description)
    self._network = network
    length = network.grid[0] * network.grid[1]
    # With pixel noise, mask_ratio can leave no visible patch: clip it.
    usual = min(max(int(length * (1 - network.mask_ratio)), 1), length - 1)
    self._precompiler = precompile.Precompiler(self._compile, length, usual)

  def close(self) -> None:
    """Stops the thread that compiles programs."""
    self._precompiler.close()

  def model(self) -> dict[str, Any]:
    """Returns the properties of the network that the page needs."""
    network = self._network
    colors = colormaps.apply("magma", np.linspace(0, 1, _STOPS))
    return super().model() | {
      "kind": "reconstruction",
      "rows": network.grid[0],
      "columns": network.grid[1],
      "mask_ratio": network.mask_ratio,
      "normalized": network.normalized,
      "strategies": list(masking.STRATEGIES),
      "statistics": list(reconstruction.STATISTICS),
      "error_colors": np.round(255 * colors).astype(int).tolist(),
      "error_high": reconstruction_figures.ERROR,
    }

  def answer(self, request: Any) -> dict[str, Any]:
    """Masks patches of an image and reconstructs them.

    `request` has "image" and "statistics", and either "masked", a list of 0
    and 1 for each patch, or "strategy", "mask_ratio" and "seed".
    """
    photo = self._photo(request)
    names = " or ".join(reconstruction.STATISTICS)
    statistics = _field(request, "statistics", str, names)
    if statistics not in reconstruction.STATISTICS:
      raise HttpError(f"statistics={statistics!r} is not known: write {names}")
    hidden = (
      self._given_mask(request)
      if "masked" in request
      else self._sampled_mask(request)
    )
    if hidden.all():
      raise HttpError("all patches are masked: leave at least one visible")
    return self._reconstruct(photo.shown, hidden, statistics)

  def _given_mask(self, request: dict[str, Any]) -> np.ndarray:
    rows, columns = self._network.grid
    wanted = f"a list of {rows * columns} numbers, 1 for a masked patch"
    hidden = _field(request, "masked", list, wanted)
    if len(hidden) != rows * columns:
      raise HttpError(
        f"masked has {len(hidden)} entries for {rows} x {columns} patches: "
        f"write {wanted}"
      )
    for place, each in enumerate(hidden):
      if each not in (0, 1):
        raise HttpError(
          f"masked has {abbreviate(each)} at {place}, not 0 or 1: write "
          f"{wanted}"
        )
    return np.array(hidden, bool)

  def _sampled_mask(self, request: dict[str, Any]) -> np.ndarray:
    names = " or ".join(masking.STRATEGIES)
    strategy = _field(request, "strategy", str, f"{names}, or send masked")
    above = "a number above 0 and below 1"
    ratio = _field(  # rejects NaN too
      request, "mask_ratio", int | float, above, lambda x: 0 < x < 1
    )
    whole = "a whole number from 0 to below 2^32"
    seed = _field(request, "seed", int, whole, lambda x: 0 <= x < 1 << 32)
    try:
      return self._network.masks(strategy, ratio, 1, seed)[0]
    except ConfigError as error:
      # Messages of the reconstructor name flags; this request has none.
      raise HttpError(str(error).replace("--", "")) from None

  def _reconstruct(
    self, shown: np.ndarray, hidden: np.ndarray, statistics: str
  ) -> dict[str, Any]:
    with self._precompiler.serving(int((~hidden).sum())):
      painted = self._network.paint(
        shown[None], hidden[None], statistics=statistics
      )
    shown = image_io.to_bytes(shown)
    pasted = painted.pasted(shown[None])[0]
    # No loss trains the predictions of visible patches.
    whole = image_grid.Cell(painted.reconstruction[0], blank=~painted.hidden[0])
    score = None
    if hidden.any():
      found = image_metrics.score(pasted, shown, painted.hidden[0])
      score = [x if np.isfinite(x) else None for x in found]
    return {
      "masked": hidden.astype(int).tolist(),
      "pictures": {
        "reconstruction": _uri(whole.draw()),
        "pasted": _uri(pasted),
        "error": _uri(reconstruction_figures.error_map(pasted, shown)),
      },
      "score": score,
      "uses_truth": statistics == "true" and self._network.normalized,
    }

  def _compile(self, num_visible: int) -> None:
    data, (rows, columns) = self._network.data, self._network.grid
    dtype = image_headers.Reading.of(data).dtype
    blank: np.ndarray = np.zeros((1, *data.image_size, data.channels), dtype)
    self._network.predict(blank, np.arange(rows * columns)[None] >= num_visible)


class Classification(Service):
  """Predicts the most likely classes."""

  path = "/predict"

  def __init__(self, found: load_model.LoadedModel, name: str):
    """Prepares a network that has a head."""
    config = found.config
    super().__init__(name, config.data, found.description)
    self._params, self._names = found.params, found.class_names
    self._best = predict.best_classes(
      found.classifier, min(_TOP, len(self._names))
    )

  def model(self) -> dict[str, Any]:
    """Returns the properties of the network that the page needs."""
    return super().model() | {
      "kind": "classification", "num_classes": len(self._names),
    }  # fmt: skip

  def answer(self, request: Any) -> dict[str, Any]:
    """Returns the most likely classes of an image, best first."""
    shown = self._photo(request).shown[None]
    best = self._best(self._params, jnp.asarray(shown))
    labels, shares = jax.device_get(best)
    return {
      "classes": [
        {"name": self._names[label], "probability": float(share)}
        for label, share in zip(labels[0], shares[0], strict=True)
      ]
    }


def open_service(
  checkpoint: str,
  target: str | None = None,
  image_size: tuple[int, int] | None = None,
) -> Service:
  """Loads a classifier, or an encoder with its decoder.

  Args:
    checkpoint: a workdir, a checkpoint, or weights.
    target: norm_pix or raw, for weights that do not say what they predict.
    image_size: height and width; None for the checkpoint's.

  Raises:
    ConfigError: if there is no such checkpoint, or it has neither a head nor a
      decoder.
  """
  with storage.os_errors(checkpoint):
    conversion.locate(checkpoint)
    checkpoint, name = image_stream.title(checkpoint)
    task = conversion.read_metadata(checkpoint).config.task
  if task not in classifiers.CLASSIFIERS:
    network = reconstructor.load(
      checkpoint, target=target, image_size=image_size
    )
    return Reconstruction(network, name)
  if target is not None:
    raise ConfigError(
      f"--target={target} is for networks that reconstruct, and {checkpoint} "
      "is a classifier: leave the flag out"
    )
  mesh = sharding.make_mesh(MeshConfig(), sharding.devices()[:1])
  found = load_model.load(checkpoint, mesh, head=True)
  return Classification(load_model.resize(found, image_size, mesh), name)


def _uri(picture: np.ndarray) -> str:
  return f"data:image/png;base64,{base64.b64encode(web.png(picture)).decode()}"
