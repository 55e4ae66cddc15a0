"""A network with its parameters, as functions of JAX arrays."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax.api import arguments, hints, library
from mae_jax.config import Config, MeshConfig, check_name
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.models import classifiers, mae, patchify
from mae_jax.tools import feature_extractor
from mae_jax.utils.errors import ConfigError


class Network:
  """A network with its parameters: what `Model` is in JAX.

  Attributes:
    config: settings of the run that trained it, or placeholders.
    notes: what was reported while it was loaded.
  """

  def __init__(
    self,
    loaded: load_model.LoadedModel,
    mesh: Mesh,
    notes: Sequence[str] = (),
  ):
    """Wraps a loaded network; use `from_pretrained` or `create_model`."""
    self._loaded, self._mesh = loaded, mesh
    self.config: Config = loaded.metadata.config
    self.notes = list(notes)
    self._lock = threading.Lock()
    # Compiled functions that hold no parameters, by name and number, and
    # objects that hold some.
    self._functions: dict[tuple[str, int], Any] = {}
    self._holders: dict[Any, Any] = {}

  @property
  def params(self) -> Any:
    """Parameters by role, a tree of JAX arrays; may be set to other values.

    `params["model"]` has "encoder", and "decoder" or "head".
    """
    return self._loaded.params

  @params.setter
  def params(self, params: Any) -> None:
    arguments.check_params(params)
    try:
      checkpoints.check_shapes("", params, self.params)
    except ConfigError as error:
      text = str(error).partition("the model: ")[2]
      raise ConfigError(
        f"params has other arrays than this model: {text}"
      ) from None
    shardings = sharding.state_shardings(self._mesh, params)
    placed = jax.device_put(params, shardings)
    with self._lock:
      self._loaded = dataclasses.replace(self._loaded, params=placed)
      self._holders.clear()

  def __copy__(self) -> Self:
    """Copies the model; the copy's `params` may be set apart."""
    return type(self)(self._loaded, self._mesh, self.notes)

  def __deepcopy__(self, memo: dict[int, Any]) -> Self:
    """Copies the model with its arrays, which then may be donated."""
    params = jax.tree.map(jnp.copy, self.params)
    loaded = dataclasses.replace(self._loaded, params=params)
    return type(self)(loaded, self._mesh, self.notes)

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles the model without its devices, for another process."""
    loaded = dataclasses.replace(
      self._loaded,
      path=os.fspath(self._loaded.path),
      params=jax.device_get(self.params),
    )
    return _unpickled, (type(self), loaded, self.notes)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Explains how to apply a model; it cannot be called."""
    raise ConfigError(
      "a model cannot be called: use model.features(images) or "
      "model.predict(images), or model.apply(model.params, images) in JAX"
    )

  if not TYPE_CHECKING:  # otherwise mypy would know every name

    def __getattr__(self, name: str) -> Any:
      """Explains the names that other libraries have."""
      hint = f": {hints.MODEL[name]}" if name in hints.MODEL else ""
      raise AttributeError(
        f"{type(self).__name__!r} object has no attribute {name!r}{hint}"
      )

  @property
  def kind(self) -> str:
    """The kind of network."""
    if self._loaded.has_head:
      probe = self.config.task == "linprobe"
      return "linear_probe" if probe else "classifier"
    return "autoencoder" if self._loaded.decoder is not None else "encoder"

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of a classifier's classes; () for other networks."""
    return self._loaded.class_names if self._loaded.has_head else ()

  @property
  def image_size(self) -> tuple[int, int]:
    """Height and width of its images in pixels."""
    return self.config.data.image_size

  @property
  def channels(self) -> int:
    """Channels of its images."""
    return self.config.data.channels

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches."""
    encoder = self._loaded.encoder
    return patchify.grid_size(self.image_size, encoder.patch_size)

  @property
  def num_params(self) -> int:
    """Number of parameters, of all roles."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))

  def __repr__(self) -> str:
    encoder = self._loaded.encoder.config
    size = " x ".join(map(str, (*self.image_size, self.channels)))
    count = self.num_params
    number = f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"
    return (
      f"Model({self.kind}, {encoder.depth} blocks of width {encoder.width}, "
      f"{size} pixels, {number} parameters)"
    )

  @property
  def module(self) -> Any:
    """The Linen module; it takes float images that `normalize` has made.

    A `MaskedAutoencoder`, an `Encoder`, or a `VisionTransformer`. A linear
    probe's is its encoder. `variables` are its variables.
    """
    if self.kind == "autoencoder":
      return self._loaded.autoencoder
    if self.kind == "classifier":
      classifier = self._loaded.classifier
      assert isinstance(classifier, classifiers.FineTuned)
      return classifier.model
    return self._loaded.encoder

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of `module`, for `module.apply(variables, images)`."""
    if self.kind == "autoencoder":
      return mae.apply_variables(self.params)
    trained = classifiers.inference_params(self.params)
    if self.kind == "classifier":
      return {"params": trained}
    return {"params": trained["encoder"]}

  def nnx(self) -> Any:
    """Returns `module` as an NNX module that holds the weights.

    It takes what `normalize` makes; methods of the Linen module are methods of
    the result.

    Example:
      >>> import mae_jax
      >>> import numpy as np
      >>> model = mae_jax.from_pretrained("digits")
      >>> images = np.zeros((2, 8, 8, 1), np.uint8)
      >>> tokens = model.nnx().features(model.normalize(images))
      >>> tokens.patches.shape
      (2, 16, 64)
    """
    net = nnx.bridge.ToNNX(self.module, rngs=nnx.Rngs(0))
    attributes = nnx.bridge.variables.linen_vars_to_nnx_attrs(self.variables)
    for name, value in attributes.items():
      setattr(net, name, nnx.data(value))
    return net

  def resized(self, image_size: int | tuple[int, int]) -> Self:
    """Returns this network for images of another size.

    Positions are interpolated, as in fine-tuning at another size.

    Args:
      image_size: height and width, or one number for both.

    Raises:
      ConfigError: if patches do not fit into such images.

    Example:
      >>> import mae_jax
      >>> model = mae_jax.from_pretrained("digits").resized((12, 16))
      >>> model.image_size, model.grid
      ((12, 16), (6, 8))
    """
    with self._quiet():
      size = arguments.size("image_size", image_size)
      found = load_model.resize(self._loaded, size, self._mesh, "image_size")
      metadata = dataclasses.replace(found.metadata, config=found.config)
      loaded = dataclasses.replace(found, metadata=metadata)
      return type(self)(loaded, self._mesh, self.notes)

  def normalize(self, images: jax.Array) -> jax.Array:
    """Normalizes pixels for `module`.

    Args:
      images: [B, H, W, C] from 0 to 255, or values as in the files of a network
        that was trained with `data.value_range`.

    Returns:
      float32 [B, H, W, C] with the network's mean and deviation.
    """
    data = self.config.data
    return patchify.normalize(self._scaled(images), data.mean, data.std)

  def _scaled(self, images: jax.Array) -> jax.Array:
    """Scales values in `data.value_range` to 0 to 255, as `image_io.scale`."""
    images = jnp.asarray(images)
    if not self.config.data.value_range:
      return images
    low, high = self.config.data.value_range
    share = (images.astype(jnp.float32) - low) / (high - low)
    return 255 * share.clip(0, 1)

  def apply(self, params: Any, images: jax.Array) -> jax.Array:
    """Computes logits, or features: a pure function, for `jit` and `grad`.

    Args:
      params: a tree like `model.params`.
      images: [B, H, W, C] of `image_size`, values as in `normalize`.

    Returns:
      float32 logits [B, classes] of a classifier or a probe; of another
      network, the mean [B, D] of the patch tokens.

    Example:
      >>> import jax
      >>> import mae_jax
      >>> import numpy as np
      >>> model = mae_jax.from_pretrained("digits")
      >>> images = np.zeros((2, 8, 8, 1), np.uint8)
      >>> jax.jit(model.apply)(model.params, images).shape
      (2, 64)
    """
    arguments.check_params(params)
    arguments.check_pixels(images, (*self.image_size, self.channels))
    images = self._scaled(images)
    if self._loaded.has_head:
      return self._loaded.classifier.logits(params, images)
    extractor = self._extractor("mean", None, None)
    return extractor.apply(extractor.select(params), images)

  @contextlib.contextmanager
  def _quiet(self, progress: bool = False) -> Iterator[None]:
    """Runs a method as a library, whatever the caller has set in JAX."""
    try:
      context = jax.set_mesh(self._mesh)
    except ValueError:  # JAX's way to say that it is tracing
      raise ConfigError(
        "inside jax.jit, jax.grad and jax.vmap only Model.apply works: use "
        "model.apply(model.params, images)"
      ) from None
    with context, library.quiet(self.notes, progress):
      yield

  def _extractor(
    self,
    pool: str,
    layers: tuple[int, ...] | None,
    image_size: tuple[int, int] | None,
  ) -> feature_extractor.FeatureExtractor:
    check_name(feature_extractor.POOLS, pool, "pool")

    def make() -> feature_extractor.FeatureExtractor:
      return feature_extractor.extractor(
        self._loaded,
        self._mesh,
        pool=pool,
        layers=layers,
        image_size=image_size,
      )

    extractor: feature_extractor.FeatureExtractor = self._kept(
      self._holders, (pool, layers, image_size), make
    )
    return extractor

  def _kept(
    self, kept: dict[Any, Any], key: Any, make: Callable[[], Any]
  ) -> Any:
    """Returns what was made for this key; makes it the first time."""
    # It must not hold values of a `jit` that this is called in.
    with self._lock, jax.ensure_compile_time_eval():
      if key not in kept:
        kept[key] = make()
      return kept[key]


def _unpickled(
  kind: type[Network], loaded: load_model.LoadedModel, notes: list[str]
) -> Network:
  """Puts a pickled model on all devices of this process."""
  mesh = sharding.make_mesh(MeshConfig())
  shardings = sharding.state_shardings(mesh, loaded.params)
  params = jax.device_put(loaded.params, shardings)
  platform = mesh.devices.flat[0].platform
  placed = dataclasses.replace(loaded, params=params, platform=platform)
  return kind(placed, mesh, notes)
