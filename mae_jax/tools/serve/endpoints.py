"""Endpoints: what the server answers about an image, and its parameters."""

import abc
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import check_name
from mae_jax.data import image_io
from mae_jax.evals import load_model, reconstruction
from mae_jax.models import masking
from mae_jax.tools import feature_extractor, predict, reconstructor, web
from mae_jax.tools.serve.batching import Arrays, Program
from mae_jax.utils.errors import ConfigError, abbreviate

JSON = "application/json"
PNG = "image/png"
PICTURES = ("pasted", "masked", "original")


class Content(NamedTuple):
  """The body of an answer, and its media type."""

  body: bytes
  kind: str


class Parameter(NamedTuple):
  """A parameter of a request's query.

  Attributes:
    default: its value if a request leaves it out.
    read: reads a value, or raises ValueError.
    wanted: the values, for errors.
  """

  default: Any
  read: Callable[[str], Any]
  wanted: str


def _whole(default: int, low: int, high: int) -> Parameter:
  def read(text: str) -> int:
    if not low <= (value := int(text)) <= high:
      raise ValueError
    return value

  return Parameter(default, read, f"a whole number from {low} to {high}")


def _among(
  known: Sequence[Any], kind: type = str, default: Any = None, more: str = ""
) -> Parameter:
  def read(text: str) -> Any:
    return known[known.index(kind(text))]

  wanted = f"one of {', '.join(map(str, known))}{more}"
  return Parameter(known[0] if default is None else default, read, wanted)


class Endpoint(abc.ABC):
  """A path that answers about one image.

  Attributes:
    name: the last part of the path.
    parameters: the parameters of the query.
    programs: what runs on the device, by name.
    info: more about the endpoint, as JSON content.
  """

  name: str
  parameters: Mapping[str, Parameter]
  programs: Mapping[str, Program]
  info: Mapping[str, Any]

  def options(self, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Reads the parameters of a query.

    Raises:
      HttpError: if one is unknown, repeated or wrong.
    """
    found = {name: each.default for name, each in self.parameters.items()}
    for number, (name, text) in enumerate(query):
      if name not in found:
        raise web.HttpError(
          f"{abbreviate(name)} is not a parameter of {self.name}: known are "
          f"{', '.join(found)}"
        )
      if name in (before for before, _ in query[:number]):
        raise web.HttpError(f"{name} is given twice")
      parameter = self.parameters[name]
      try:
        found[name] = parameter.read(text)
      except ValueError:
        raise web.HttpError(
          f"{name}={abbreviate(text)} is not {parameter.wanted}"
        ) from None
    return found

  @abc.abstractmethod
  def prepare(
    self, shown: np.ndarray, options: Mapping[str, Any]
  ) -> tuple[str, Arrays]:
    """Returns a program's name and its arrays for an image [H, W, C]."""

  @abc.abstractmethod
  def answer(
    self, row: Any, arrays: Arrays, options: Mapping[str, Any], accept: str
  ) -> Content:
    """Makes an answer of the program's row; `accept` is the header."""


class Predict(Endpoint):
  """The most likely classes of a classifier."""

  name = "predict"

  def __init__(self, found: load_model.LoadedModel, blank: np.ndarray):
    self._names = found.class_names
    count = len(self._names)
    self.parameters = {"top": _whole(min(5, count), 1, count)}
    # All classes in order: the first ones are those of a smaller `top`.
    best = predict.best_classes(found.classifier, count)

    def apply(pixels: np.ndarray) -> Any:
      return jax.device_get(best(found.params, jnp.asarray(pixels)))

    self.programs = {self.name: Program(apply, (blank,))}
    self.info = {"class_names": list(self._names)}

  def prepare(
    self, shown: np.ndarray, options: Mapping[str, Any]
  ) -> tuple[str, Arrays]:
    """Returns the image."""
    return self.name, (shown,)

  def answer(
    self, row: Any, arrays: Arrays, options: Mapping[str, Any], accept: str
  ) -> Content:
    """Names the classes, best first."""
    labels, shares = (each[: options["top"]].tolist() for each in row)
    return to_json(
      {
        "classes": [
          {"label": label, "name": self._names[label], "probability": share}
          for label, share in zip(labels, shares, strict=True)
        ]
      }
    )


class Features(Endpoint):
  """The encoder's features."""

  name = "features"

  def __init__(
    self,
    found: load_model.LoadedModel,
    mesh: Mesh,
    pools: Sequence[str],
    blank: np.ndarray,
  ):
    self.parameters = {
      "pool": _among(pools, more="; the server's flag --pool chooses them")
    }
    extractors = {
      pool: feature_extractor.extractor(found, mesh, pool=pool)
      for pool in pools
    }
    self.programs = {
      f"{self.name} {pool}": Program(_runner(each), (blank,))
      for pool, each in extractors.items()
    }
    self.info = {
      "shapes": {pool: list(each.shape) for pool, each in extractors.items()}
    }

  def prepare(
    self, shown: np.ndarray, options: Mapping[str, Any]
  ) -> tuple[str, Arrays]:
    """Returns the image."""
    return f"{self.name} {options['pool']}", (shown,)

  def answer(
    self, row: Any, arrays: Arrays, options: Mapping[str, Any], accept: str
  ) -> Content:
    """Returns the features as nested lists."""
    return to_json(
      {"pool": options["pool"], "features": row.astype(np.float32).tolist()}
    )


def _runner(extractor: feature_extractor.FeatureExtractor) -> Any:
  return lambda pixels: jax.device_get(
    extractor.apply(extractor.params, pixels)
  )


class Reconstruct(Endpoint):
  """Masked patches and their reconstruction by an autoencoder.

  Each number of visible patches needs a program of its own. So the server has a
  few mask ratios, and no request compiles anything.
  """

  name = "reconstruct"

  def __init__(
    self,
    network: reconstructor.Reconstructor,
    ratios: Sequence[float],
    blank: np.ndarray,
  ):
    self._network = network
    ratios = ratios or (network.mask_ratio,)
    self.parameters = {
      "mask_ratio": _among(
        ratios, float, more="; the server's flag --mask_ratio chooses them"
      ),
      "seed": _whole(0, 0, 2**31 - 1),
      "strategy": _among(tuple(masking.STRATEGIES), default="random"),
      "statistics": _among(reconstruction.STATISTICS),
      "picture": _among(PICTURES),
    }
    self.programs = {
      f"{self.name} {ratio}": Program(
        network.predict, (blank, network.masks("random", ratio, 1, 0)[0])
      )
      for ratio in ratios
    }
    self.info = {
      "mask_ratios": list(ratios),
      "grid": list(network.grid),
      "normalized": network.normalized,
    }

  def prepare(
    self, shown: np.ndarray, options: Mapping[str, Any]
  ) -> tuple[str, Arrays]:
    """Returns the image and its mask."""
    ratio = options["mask_ratio"]
    try:
      masks = self._network.masks(
        options["strategy"], ratio, 1, options["seed"]
      )
    except ConfigError as error:
      # Messages of the reconstructor name flags; a request has none.
      raise web.HttpError(str(error).replace("--", "")) from None
    return f"{self.name} {ratio}", (shown, masks[0])

  def answer(
    self, row: Any, arrays: Arrays, options: Mapping[str, Any], accept: str
  ) -> Content:
    """Draws one picture, or all of them in JSON."""
    shown, hidden = arrays
    painted = self._network.draw(
      shown[None], row[None], hidden[None], options["statistics"]
    )
    original = image_io.to_bytes(shown)[None]
    draw = {
      "pasted": lambda: painted.pasted(original),
      "masked": lambda: painted.masked(original),
      "original": lambda: original,
    }
    if JSON not in accept:
      return Content(web.png(draw[options["picture"]]()[0]), PNG)
    rows = hidden.reshape(self._network.grid)
    return to_json(
      {name: options[name] for name in self.parameters if name != "picture"}
      | {
        "masked": rows.astype(int).tolist(),
        "pictures": {
          name: base64.b64encode(web.png(make()[0])).decode()
          for name, make in draw.items()
        },
      }
    )


def open_endpoints(
  found: load_model.LoadedModel,
  mesh: Mesh,
  pools: Sequence[str],
  ratios: Sequence[float],
) -> list[Endpoint]:
  """Returns the endpoints that a network has.

  Args:
    found: the network, with its decoder if it has one.
    mesh: one device.
    pools: names in `feature_extractor.POOLS`.
    ratios: mask ratios; () for that of training.

  Raises:
    ConfigError: if a flag does not fit the network.
  """
  for pool in pools:
    check_name(feature_extractor.POOLS, pool, "--pool")
  if ratios and found.decoder is None:
    raise ConfigError(
      f"--mask_ratio={','.join(map(str, ratios))} is for networks that "
      f"reconstruct, and {found.path} has no decoder: leave the flag out"
    )
  image = feature_extractor.extractor(found, mesh).image
  blank: np.ndarray = np.zeros(image.shape, image.dtype)
  endpoints: list[Endpoint] = [Features(found, mesh, pools, blank)]
  if found.has_head:
    endpoints.append(Predict(found, blank))
  if found.decoder is not None:
    network = reconstructor.Reconstructor(found, mesh)
    endpoints.append(Reconstruct(network, ratios, blank))
  return endpoints


def to_json(content: Any) -> Content:
  """Returns JSON content.

  Raises:
    ValueError: if a number is not finite, which JSON cannot say.
  """
  return Content(json.dumps(content, allow_nan=False).encode(), JSON)
