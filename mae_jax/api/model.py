"""A network with its weights, as notebooks and programs use it."""

import contextlib
import dataclasses
import functools
import numbers
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from mae_jax import checkpoints
from mae_jax.api import hints, library, share
from mae_jax.api.images import ImageInput, as_images
from mae_jax.api.results import (
  Attention,
  Features,
  LayerFeatures,
  Predictions,
  Reconstruction,
)
from mae_jax.config import Config, DataConfig, MeshConfig, check_name
from mae_jax.data.image_files import Images
from mae_jax.distributed import sharding
from mae_jax.evals import attention_rollout, load_model
from mae_jax.models import classifiers, mae, patchify
from mae_jax.tools import feature_extractor, image_stream, predict
from mae_jax.tools import photo as photos
from mae_jax.tools.reconstructor import Reconstructor
from mae_jax.utils.errors import ConfigError, abbreviate


class Model:
  """A masked autoencoder, an encoder or a classifier, with its weights.

  Make one with `from_pretrained`, `create_model` or `Run.model`. Methods that
  take images accept a path, a folder, a Pillow image, an array of uint8 [H, W],
  [H, W, C] or [N, H, W, C], or a list of these. They resize and crop all as in
  evaluation; `apply` takes pixels that are prepared already. Results are NumPy
  arrays. Methods may be called from several threads.

  Attributes:
    kind: "autoencoder", "encoder", "classifier" or "linear_probe".
    config: settings of the run that trained it, or placeholders.
    notes: what was reported while it was loaded.

  Example:
    >>> import mae_jax
    >>> model = mae_jax.from_pretrained("digits")
    >>> model
    Model(autoencoder, 4 blocks of width 64, 8 x 8 x 1 pixels, 232 k parameters)
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
    self._extractors: dict[Any, feature_extractor.FeatureExtractor] = {}
    # Compiled functions that hold no parameters, by name and number.
    self._functions: dict[tuple[str, int], Any] = {}

  @property
  def params(self) -> Any:
    """Parameters by role, a tree of JAX arrays; may be set to other values.

    `params["model"]` has "encoder", and "decoder" or "head".
    """
    return self._loaded.params

  @params.setter
  def params(self, params: Any) -> None:
    _check_params(params)
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
      self._extractors.clear()
      self.__dict__.pop("_reconstructor", None)

  def __copy__(self) -> "Model":
    """Copies the model; the copy's `params` may be set apart."""
    return Model(self._loaded, self._mesh, self.notes)

  def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
    """Copies the model with its arrays, which then may be donated."""
    params = jax.tree.map(jnp.copy, self.params)
    loaded = dataclasses.replace(self._loaded, params=params)
    return Model(loaded, self._mesh, self.notes)

  def __reduce__(self) -> tuple[Any, ...]:
    """Pickles the model without its devices, for another process."""
    loaded = dataclasses.replace(
      self._loaded,
      path=os.fspath(self._loaded.path),
      params=jax.device_get(self.params),
    )
    return _unpickled, (loaded, self.notes)

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

  def normalize(self, images: jax.Array) -> jax.Array:
    """Normalizes pixels for `module`.

    Args:
      images: [B, H, W, C] from 0 to 255.

    Returns:
      float32 [B, H, W, C] with the network's mean and deviation.
    """
    data = self.config.data
    return patchify.normalize(jnp.asarray(images), data.mean, data.std)

  def apply(self, params: Any, images: jax.Array) -> jax.Array:
    """Computes logits, or features: a pure function, for `jit` and `grad`.

    Args:
      params: a tree like `model.params`.
      images: [B, H, W, C] from 0 to 255, uint8 or float, of `image_size`.

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
    _check_params(params)
    if not isinstance(images, jax.Array | np.ndarray):
      raise ConfigError(
        f"images is a {type(images).__name__}: give a NumPy or JAX array, as "
        "numpy.asarray(images)"
      )
    _check_axes(images)
    wanted = (*self.image_size, self.channels)
    if images.ndim != 4 or images.shape[1:] != wanted:
      raise ConfigError(
        f"images has shape {tuple(images.shape)}: this network takes [B, "
        f"{', '.join(map(str, wanted))}]"
      )
    if not images.shape[0]:
      raise ConfigError("images is empty: give at least one image")
    if self._loaded.has_head:
      return self._loaded.classifier.logits(params, images)
    extractor = self._extractor("mean", None, None)
    return extractor.apply(extractor.select(params), images)

  @overload
  def features(
    self,
    images: ImageInput,
    pool: str = ...,
    layers: None = ...,
    image_size: int | tuple[int, int] | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
  ) -> Features: ...

  @overload
  def features(
    self,
    images: ImageInput,
    pool: str = ...,
    layers: Sequence[int] = ...,
    image_size: int | tuple[int, int] | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
  ) -> LayerFeatures: ...

  def features(
    self,
    images: ImageInput,
    pool: str = "mean",
    layers: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
  ) -> Features | LayerFeatures:
    """Computes features of the encoder. Nothing is masked or random.

    Args:
      images: the images.
      pool: "mean" of the patch tokens, "cls" token, "all" tokens with the class
        token first, or "grid", the patch tokens as [rows, columns, D].
      layers: the blocks after which tokens are taken, from 1, all in one pass.
        Only tokens of the last block pass the encoder's final norm.
      image_size: height and width, or one number for both; None for the
        network's. Positions are interpolated.
      batch_size: images at a time.
      progress: draw a progress bar.

    Returns:
      Features with `values` [N, D] ("all": [N, 1 + L, D], "grid": [N, rows,
      columns, D]) and `names`; with `layers`, a dict of values by block.

    Raises:
      ConfigError: if an argument cannot work, or no image can be read.

    Example:
      >>> import mae_jax
      >>> import numpy as np
      >>> model = mae_jax.from_pretrained("digits")
      >>> images = np.zeros((3, 8, 8, 1), np.uint8)
      >>> model.features(images).values.shape
      (3, 64)
      >>> maps = model.features(images, pool="grid", layers=[2, 4])
      >>> {layer: values.shape for layer, values in maps.items()}
      {2: (3, 4, 4, 64), 4: (3, 4, 4, 64)}
    """
    with self._quiet(progress):
      chosen = None if layers is None else _checked_layers(layers)
      if image_size is not None:
        image_size = library.size("image_size", image_size)
      extractor = self._extractor(pool, chosen, image_size)
      source = as_images(images, extractor.data)
      out, good = self._run(
        extractor.apply, extractor.params, source, extractor.data, batch_size
      )
    values = out if len(extractor.layers) > 1 else (out,)
    for each in values:
      each[~good] = np.nan
    if layers is None:
      return Features(values[0], source.names, good)
    by_layer = dict(zip(extractor.layers, values, strict=True))
    return LayerFeatures(by_layer, source.names, good)

  def predict(
    self,
    images: ImageInput,
    top: int = 5,
    batch_size: int = 64,
    progress: bool = False,
  ) -> Predictions:
    """Predicts the most likely classes.

    Args:
      images: the images.
      top: classes an image.
      batch_size: images at a time.
      progress: draw a progress bar.

    Raises:
      ConfigError: if the network has no head, an argument cannot work, or no
        image can be read.
    """
    with self._quiet(progress):
      if not self._loaded.has_head:
        raise ConfigError(
          f"this network is an {self.kind} without a head, so it cannot "
          "predict classes: fine-tune it, or fit a classifier on its features"
        )
      top = library.integer("top", top, 1)
      source = as_images(images, self.config.data)
      k = min(top, len(self.class_names))
      best = self._function(
        "best", k, lambda: predict.best_classes(self._loaded.classifier, k)
      )
      (labels, values), good = self._run(
        best, self.params, source, self.config.data, batch_size
      )
    values[~good] = np.nan
    return Predictions(source.names, labels, values, self.class_names)

  def reconstruct(
    self,
    images: ImageInput,
    mask_ratio: float | None = None,
    seed: int = 0,
    strategy: str = "random",
    mask: np.ndarray | None = None,
    batch_size: int = 16,
    progress: bool = False,
  ) -> Reconstruction:
    """Masks patches of images and reconstructs them.

    The mean and deviation of normalized patches are estimated from visible
    patches around them.

    Args:
      images: the images; unreadable ones are left out, with a warning.
      mask_ratio: share of masked patches; None for that of training.
      seed: of the masks, which also depend on the number of an image.
      strategy: "random", "block" or "grid".
      mask: bool [rows, columns], True for masked patches of every image, in
        place of the three arguments above.
      batch_size: images at a time.
      progress: draw a progress bar.

    Raises:
      ConfigError: if the network has no decoder, an argument cannot work, or no
        image can be read.

    Example:
      >>> import mae_jax
      >>> import numpy as np
      >>> model = mae_jax.from_pretrained("digits")
      >>> images = np.zeros((3, 8, 8, 1), np.uint8)
      >>> found = model.reconstruct(images, mask_ratio=0.75, seed=1)
      >>> found.reconstruction.shape, found.mask.shape
      ((3, 8, 8, 1), (3, 4, 4))
    """
    with self._quiet(progress):
      network = self._reconstructor
      ratio = network.mask_ratio if mask_ratio is None else mask_ratio
      seed = library.seed(seed)
      if not isinstance(ratio, numbers.Real):
        raise ConfigError(
          f"mask_ratio={abbreviate(ratio)} is a {type(ratio).__name__}: give a "
          "number above 0 and below 1"
        )
      if not 0 < ratio < 1:
        raise ConfigError(f"mask_ratio={ratio} must be above 0 and below 1")
      given = None if mask is None else self._given_mask(mask)
      source = as_images(images, network.data)
      found = list(photos.open_photos(source, network.data))
      names = [name for _, name, _ in found]
      shown = np.stack([photo.shown for _, _, photo in found])
      hidden = np.stack(
        [
          network.masks(strategy, ratio, 1, seed, index)[0]
          if given is None
          else given
          for index, _, _ in found
        ]
      )
      size = library.integer("batch_size", batch_size, 1)
      painted = np.concatenate(
        [
          network.paint(
            shown[k : k + size], hidden[k : k + size]
          ).reconstruction
          for k in range(0, len(shown), size)
        ]
      )
    return Reconstruction(
      names, shown, hidden.reshape(-1, *network.grid), painted
    )

  def attention(
    self,
    images: ImageInput,
    layer: int | None = None,
    query: tuple[int, int] | None = None,
    progress: bool = False,
  ) -> Attention:
    """Computes the attention of one block to each patch.

    Args:
      images: the images; unreadable ones are left out, with a warning.
      layer: number of the block, from 1; None for the last.
      query: row and column of the patch whose attention is wanted, from 0; None
        for the class token.
      progress: draw a progress bar.

    Raises:
      ConfigError: if an argument cannot work, or no image can be read.
    """
    with self._quiet(progress):
      chosen = None
      if layer is not None:
        chosen = (library.integer("layer", layer),)
      extractor = self._extractor("all", chosen, None)
      token = self._token(query)
      watch = self._function(
        "attention",
        extractor.layer,
        lambda: attention_rollout.attention_function(
          extractor.encoder, extractor.data
        ),
      )
      source = as_images(images, extractor.data)
      names, shown, heads, rollouts = [], [], [], []
      for _, name, photo in photos.open_photos(source, extractor.data):
        seen = watch(extractor.params["encoder"], photo.shown)
        names.append(name)
        shown.append(photo.shown)
        heads.append(seen.weights[-1][:, token, 1:])
        rollouts.append(attention_rollout.rollout(seen.weights))
    return Attention(
      names,
      np.stack(shown),
      np.stack(heads).reshape(len(names), -1, *self.grid),
      np.stack(rollouts).reshape(len(names), *self.grid),
      extractor.layer,
    )

  @library.explained(**hints.SAVE)
  def save_pretrained(
    self,
    path: str | os.PathLike[str],
    format: str = "transformers",
    dtype: str | None = None,
  ) -> None:
    """Saves the network for this project or another one.

    Args:
      path: what is written, which must not exist yet: a folder (jax,
        transformers, timm), a .safetensors (timm), or a .pth (facebook).
      format: "transformers", "timm", "facebook" or "jax", a checkpoint of this
        project. `notes` gets what the other program must know.
      dtype: "float32", "bfloat16" or "float16"; None as loaded.

    Raises:
      ConfigError: if the format cannot hold the network, or `path` exists.

    Example:
      >>> import os, tempfile
      >>> import mae_jax
      >>> model = mae_jax.from_pretrained("digits")
      >>> path = os.path.join(tempfile.mkdtemp(), "vit_digits")
      >>> model.save_pretrained(path)
      >>> mae_jax.from_pretrained(path).kind
      'autoencoder'
    """
    with self._quiet():
      weights = share.weights_of(self._loaded, self.params)
      self.notes += share.save(weights, path, format, dtype)

  def push_to_hub(
    self,
    repo_id: str,
    *,
    format: str | None = None,
    license: str | None = None,
    results: Mapping[str, float] | None = None,
    picture: Image.Image | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
  ) -> str:
    """Uploads the network with a model card to the Hugging Face Hub.

    Args:
      repo_id: "ORGANIZATION/NAME"; made if it does not exist.
      format: "transformers" or "timm"; None for timm if it is a classifier with
        mean pooling, which transformers does not have, else transformers.
      license: as the Hub names it, for instance "apache-2.0"; None for that of
        the weights that training started from.
      results: results of evaluation by name, for the card.
      picture: for the card, for instance `reconstruct(...).sheet()`.
      private: whether a new repository is private; None for the default.
      token: a token that may write; None for the one of `hf auth login`.
      commit_message: first line of the commit.

    Returns:
      The address of the repository.

    Raises:
      ConfigError: if the license of the weights is unknown and none is given,
        the format cannot hold the network, or the Hub refuses.
    """
    with self._quiet():
      return share.push(
        share.weights_of(self._loaded, self.params),
        repo_id,
        format or share.default_format(self._loaded),
        license=license,
        results=results,
        picture=picture,
        private=private,
        token=token,
        commit_message=commit_message,
      )

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
    key = pool, layers, image_size
    # Kept, so it must not hold values of a `jit` that this is called in.
    with self._lock, jax.ensure_compile_time_eval():
      if key not in self._extractors:
        self._extractors[key] = feature_extractor.extractor(
          self._loaded,
          self._mesh,
          pool=pool,
          layers=layers,
          image_size=image_size,
        )
      return self._extractors[key]

  def _function(self, name: str, number: int, make: Callable[[], Any]) -> Any:
    """Returns the function of this name, made once: JAX compiles it then."""
    with self._lock:
      if (name, number) not in self._functions:
        self._functions[name, number] = make()
      return self._functions[name, number]

  def _run(
    self,
    apply: Callable[[Any, jax.Array], Any],
    params: Any,
    source: Images,
    data: DataConfig,
    batch_size: int,
  ) -> tuple[Any, np.ndarray]:
    """Applies a function to all images.

    Returns:
      Its tree of results [N, ...], and bool [N], False for unreadable images.
    """
    stream = image_stream.stream(
      apply,
      params,
      source,
      data,
      mesh=self._mesh,
      batch_size=library.integer("batch_size", batch_size, 1),
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *stream)

  @functools.cached_property
  def _reconstructor(self) -> Reconstructor:
    if self._loaded.decoder is None:
      raise ConfigError(
        f"this network is of kind {self.kind} and has no decoder, without "
        "which nothing is reconstructed: load a checkpoint of pre-training, or "
        "weights that hold both parts"
      )
    mesh = sharding.make_mesh(MeshConfig(), list(self._mesh.devices.flat)[:1])
    params = jax.device_put(self.params, sharding.replicated(mesh))
    loaded = dataclasses.replace(self._loaded, params=params)
    return Reconstructor(loaded, mesh)

  def _given_mask(self, mask: np.ndarray) -> np.ndarray:
    array = np.asarray(mask, bool)
    if array.shape != self.grid:
      raise ConfigError(
        f"mask has shape {array.shape}, but the patches have {self.grid}: give "
        "True for each masked patch, in rows and columns"
      )
    if array.all() or not array.any():
      raise ConfigError(
        "mask must leave some patches visible and mask others: it has "
        f"{array.sum()} of {array.size}"
      )
    return array.reshape(-1)

  def _token(self, query: tuple[int, int] | None) -> int:
    if query is None:
      return 0
    try:
      row, column = (library.integer("query", each) for each in query)
    except TypeError:
      raise ConfigError(
        f"query={abbreviate(query)} is a {type(query).__name__}: give a row "
        "and a column"
      ) from None
    rows, columns = self.grid
    if not (0 <= row < rows and 0 <= column < columns):
      raise ConfigError(
        f"query={query}: the image has {rows} rows and {columns} columns of "
        "patches; the first is (0, 0)"
      )
    return 1 + row * columns + column


def _unpickled(loaded: load_model.LoadedModel, notes: list[str]) -> Model:
  """Puts a pickled model on all devices of this process."""
  mesh = sharding.make_mesh(MeshConfig())
  shardings = sharding.state_shardings(mesh, loaded.params)
  params = jax.device_put(loaded.params, shardings)
  platform = mesh.devices.flat[0].platform
  return Model(
    dataclasses.replace(loaded, params=params, platform=platform), mesh, notes
  )


def _checked_layers(layers: Any) -> tuple[int, ...]:
  if isinstance(layers, str) or not hasattr(layers, "__iter__"):
    raise ConfigError(
      f"layers={abbreviate(layers)} is a {type(layers).__name__}: give numbers "
      "of blocks, as [4]"
    )
  return tuple(library.integer("layers", each) for each in layers)


def _check_params(params: Any) -> None:
  if not isinstance(params, Mapping) or classifiers.MODEL not in params:
    parts = " with " + ", ".join(params) if isinstance(params, Mapping) else ""
    raise ConfigError(
      f"params is a {type(params).__name__}{abbreviate(parts)[1:-1]}: give a "
      "tree like model.params, which has parameters by role"
    )


def _check_axes(images: Any) -> None:
  """Refuses meshes of explicit axes: networks state no shardings."""
  where = jax.typeof(images).sharding.mesh, jax.sharding.get_abstract_mesh()
  for mesh in where:
    if mesh.explicit_axes:
      raise ConfigError(
        f"images or jax.set_mesh have a mesh of explicit axes "
        f"{', '.join(mesh.explicit_axes)}: make it with "
        "axis_types=(jax.sharding.AxisType.Auto,) for each axis"
      )
