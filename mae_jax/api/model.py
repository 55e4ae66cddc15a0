"""A network with its weights, as notebooks and programs use it."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from PIL import Image

from mae_jax.api import arguments, hints, library, share
from mae_jax.api.images import ImageInput, prepared
from mae_jax.api.network import Network
from mae_jax.api.results import (
  Attention,
  Features,
  LayerFeatures,
  Predictions,
  Reconstruction,
)
from mae_jax.config import DataConfig, MeshConfig
from mae_jax.data import image_io
from mae_jax.data.image_files import Images
from mae_jax.distributed import sharding
from mae_jax.evals import attention_rollout
from mae_jax.tools import image_stream, predict
from mae_jax.tools import photo as photos
from mae_jax.tools.reconstructor import Reconstructor
from mae_jax.utils.errors import ConfigError


class Model(Network):
  """A masked autoencoder, an encoder or a classifier, with its weights.

  Make one with `from_pretrained`, `create_model` or `Run.model`. Methods that
  take images accept a path, a folder, a Pillow image, an array of uint8 [H, W],
  [H, W, C] or [N, H, W, C], or a list of these. They resize and crop all as in
  evaluation, also arrays of the network's size, unless `preprocess=False`.
  Results are NumPy arrays. Methods may be called from several threads.

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

  @overload
  def features(
    self,
    images: ImageInput,
    pool: str = ...,
    layers: None = ...,
    image_size: int | tuple[int, int] | None = ...,
    batch_size: int = ...,
    preprocess: bool = ...,
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
    preprocess: bool = ...,
    progress: bool = ...,
  ) -> LayerFeatures: ...

  def features(
    self,
    images: ImageInput,
    pool: str = "mean",
    layers: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    preprocess: bool = True,
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
      preprocess: False takes an array [N, H, W, C] of the network's size as it
        is.
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
      chosen = None if layers is None else arguments.layers(layers)
      if image_size is not None:
        image_size = arguments.size("image_size", image_size)
      extractor = self._extractor(pool, chosen, image_size)
      source, data = prepared(images, extractor.data, preprocess)
      out, good = self._run(
        extractor.apply, extractor.params, source, data, batch_size
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
    preprocess: bool = True,
    progress: bool = False,
  ) -> Predictions:
    """Predicts the most likely classes.

    Args:
      images: the images.
      top: classes an image.
      batch_size: images at a time.
      preprocess: False takes an array [N, H, W, C] of the network's size as it
        is.
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
      top = arguments.integer("top", top, 1)
      source, data = prepared(images, self.config.data, preprocess)
      k = min(top, len(self.class_names))
      best = self._kept(
        self._functions,
        ("best", k),
        lambda: predict.best_classes(self._loaded.classifier, k),
      )
      (labels, values), good = self._run(
        best, self.params, source, data, batch_size
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
    preprocess: bool = True,
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
      preprocess: False takes an array [N, H, W, C] of the network's size as it
        is.
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
      seed = arguments.seed(seed)
      ratio = network.mask_ratio
      if mask_ratio is not None:
        ratio = arguments.fraction("mask_ratio", mask_ratio)
      given = None if mask is None else arguments.mask(mask, self.grid)
      source, data = prepared(images, network.data, preprocess)
      found = list(photos.open_photos(source, data))
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
      size = arguments.integer("batch_size", batch_size, 1)
      painted = np.concatenate(
        [
          network.paint(
            shown[k : k + size], hidden[k : k + size]
          ).reconstruction
          for k in range(0, len(shown), size)
        ]
      )
    return Reconstruction(
      names,
      image_io.to_bytes(shown),
      hidden.reshape(-1, *network.grid),
      painted,
    )

  def attention(
    self,
    images: ImageInput,
    layer: int | None = None,
    query: tuple[int, int] | None = None,
    preprocess: bool = True,
    progress: bool = False,
  ) -> Attention:
    """Computes the attention of one block to each patch.

    Args:
      images: the images; unreadable ones are left out, with a warning.
      layer: number of the block, from 1; None for the last.
      query: row and column of the patch whose attention is wanted, from 0; None
        for the class token.
      preprocess: False takes an array [N, H, W, C] of the network's size as it
        is.
      progress: draw a progress bar.

    Raises:
      ConfigError: if an argument cannot work, or no image can be read.
    """
    with self._quiet(progress):
      chosen = None
      if layer is not None:
        chosen = (arguments.integer("layer", layer),)
      extractor = self._extractor("all", chosen, None)
      token = arguments.token(query, self.grid)
      watch = self._kept(
        self._functions,
        ("attention", extractor.layer),
        lambda: attention_rollout.attention_function(
          extractor.encoder, extractor.data
        ),
      )
      source, data = prepared(images, extractor.data, preprocess)
      names, shown, heads, rollouts = [], [], [], []
      for _, name, photo in photos.open_photos(source, data):
        seen = watch(extractor.params["encoder"], photo.shown)
        names.append(name)
        shown.append(photo.picture)
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
        mean pooling, also of rectangles, else transformers.
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
      batch_size=arguments.integer("batch_size", batch_size, 1),
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *stream)

  @property
  def _reconstructor(self) -> Reconstructor:
    if self._loaded.decoder is None:
      raise ConfigError(
        f"this network is of kind {self.kind} and has no decoder, without "
        "which nothing is reconstructed: load a checkpoint of pre-training, or "
        "weights that hold both parts"
      )

    def make() -> Reconstructor:
      devices = list(self._mesh.devices.flat)[:1]
      mesh = sharding.make_mesh(MeshConfig(), devices)
      params = jax.device_put(self.params, sharding.replicated(mesh))
      loaded = dataclasses.replace(self._loaded, params=params)
      return Reconstructor(loaded, mesh)

    found: Reconstructor = self._kept(self._holders, "reconstructor", make)
    return found
