"""Builds feature extractors: an encoder up to a block, and a pooling."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from mae_jax.config import DataConfig, lookup
from mae_jax.data import image_headers
from mae_jax.evals import load_model
from mae_jax.models import (
  classifiers,
  factory,
  mae,
  patchify,
  transformer,
  vit,
)
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

Grid = tuple[int, int]
# By name; each maps tokens and the rows and columns of patches to features.
POOLS: dict[str, Callable[[mae.Tokens, Grid], jax.Array]] = {
  "mean": lambda tokens, grid: mae.POOLINGS["mean"](tokens),  # [B, D]
  "cls": lambda tokens, grid: mae.POOLINGS["cls"](tokens),  # [B, D]
  "all": lambda tokens, grid: jnp.concatenate(  # [B, 1 + L, D]
    [tokens.cls[:, None], tokens.patches], axis=1
  ),
  "grid": lambda tokens, grid: tokens.patches.reshape(  # [B, rows, columns, D]
    tokens.patches.shape[0], *grid, -1
  ),
}


@dataclasses.dataclass(frozen=True)
class ImageFunction:
  """A network as a function of images, for tools and exports.

  Attributes:
    apply: maps `params` and `inputs` [B, ...] to float32 [B, ...].
    params: its parameters, on the devices.
    data: how images are prepared.
    output: name of the result: features or logits.
    info: more about the network, as JSON content.
  """

  apply: Callable[..., jax.Array]
  params: Any
  data: DataConfig
  output: str
  info: Mapping[str, Any]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return (*self.data.image_size, self.data.channels)

  @property
  def image(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an image."""
    dtype = image_headers.Reading.of(self.data).dtype
    return jax.ShapeDtypeStruct(self.image_shape, dtype)

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one example of each argument, by name."""
    return {"images": self.image}

  @property
  def reference(self) -> Callable[..., jax.Array]:
    """The network's own computation of `apply`, which exports must equal."""
    return self.apply

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one image's result; with several results that of the last."""
    images = jax.ShapeDtypeStruct((1, *self.image_shape), self.image.dtype)
    out = jax.eval_shape(self.apply, self.params, images)
    return jax.tree.leaves(out)[-1].shape[1:]


@dataclasses.dataclass(frozen=True)
class FeatureExtractor(ImageFunction):
  """An encoder up to a block, and a pooling of its tokens.

  Attributes:
    encoder: the network, up to the last of `layers`.
    layers: the blocks after which tokens are taken, from 1, in order. With
      several, `apply` returns a tuple.
    select: takes the parameters that `apply` needs from those by role.
  """

  encoder: mae.Encoder
  layers: tuple[int, ...]
  select: Callable[[Any], dict[str, Any]]

  @property
  def layer(self) -> int:
    """The last block that is applied."""
    return self.layers[-1]


def from_checkpoint(
  checkpoint: epath.PathLike,
  mesh: Mesh,
  *,
  layer: int | None = None,
  layers: Sequence[int] | None = None,
  **options: Any,
) -> FeatureExtractor:
  """Builds the feature extractor of a checkpoint.

  Args:
    checkpoint: a workdir, a checkpoint, or weights.
    mesh: the devices.
    layer: the block after which tokens are taken, from 1; None for the last,
      whose tokens pass the final norm.
    layers: several such blocks, in place of `layer`.
    **options: further arguments of `extractor`.

  Raises:
    ConfigError: if there is no checkpoint, or a setting does not fit it.
  """
  with storage.os_errors(checkpoint):
    found = load_model.load(checkpoint, mesh)
  if layer is not None:
    layers = (layer,)
  return extractor(found, mesh, layers=layers, **options)


def extractor(
  found: load_model.LoadedModel,
  mesh: Mesh,
  *,
  pool: str = "mean",
  layers: Sequence[int] | None = None,
  image_size: tuple[int, int] | None = None,
  dtype: str | None = None,
  platform: str | None = None,
) -> FeatureExtractor:
  """Builds the feature extractor of a network.

  Args:
    found: the network.
    mesh: the devices.
    pool: a name in POOLS.
    layers: the blocks after which tokens are taken, from 1; None for the last,
      whose tokens pass the final norm.
    image_size: height and width; None for the checkpoint's.
    dtype: dtype of activations, a name in `factory.DTYPES`; None for the
      checkpoint's.
    platform: the platform to run on, as in `factory.masked_autoencoder`; None
      for the mesh's.

  Raises:
    ConfigError: if a setting does not fit the network.
  """
  pooled = lookup(POOLS, pool, "--pool")
  resized = load_model.resize(found, image_size, mesh)
  positions = {}
  if resized is not found:
    positions = {"pos_embed": resized.encoder_params["pos_embed"]}
  config, encoder = resized.config, resized.encoder
  grid = patchify.grid_size(config.data.image_size, encoder.patch_size)
  depth = encoder.config.depth
  chosen = _checked_layers(layers, depth)
  last_block = chosen[-1] == depth
  model = dataclasses.replace(config.model, dtype=dtype or config.model.dtype)
  encoder = factory.with_computation(
    encoder.clone(
      config=dataclasses.replace(encoder.config, frozen=0, depth=chosen[-1]),
      final_norm=encoder.final_norm and last_block,
    ),
    dataclasses.replace(config, model=model),
    platform or mesh.devices.flat[0].platform,
  )

  def select(params: Any) -> dict[str, Any]:
    trained = classifiers.inference_params(params)
    parts = {"encoder": {**trained["encoder"], **positions}}
    if not last_block:
      parts["encoder"]["stack"] = jax.tree.map(
        lambda leaf: leaf[: chosen[-1]], trained["encoder"]["stack"]
      )
    if not encoder.final_norm:
      parts["encoder"].pop("norm", None)
    # fc_norm belongs to mean pooling after the last block.
    if last_block and pool == "mean" and vit.FC_NORM in trained:
      parts[vit.FC_NORM] = trained[vit.FC_NORM]
    return parts

  def apply(params: Any, pixels: jax.Array) -> Any:
    x = patchify.normalize(pixels, config.data.mean, config.data.std)
    inner = chosen if len(chosen) > 1 else ()
    tokens: Any = encoder.apply({"params": params["encoder"]}, x, layers=inner)
    *out, last = [pooled(t, grid) for t in (tokens if inner else [tokens])]
    if vit.FC_NORM in params:
      norm = transformer.layer_norm(vit.FC_NORM, encoder.config.norm_eps)
      last = norm.apply({"params": params[vit.FC_NORM]}, last)
    return (*out, last) if inner else last

  return FeatureExtractor(
    jax.jit(apply),
    select(found.params),
    config.data,
    "features",
    {"pool": pool, "layer": chosen[-1]},
    encoder,
    chosen,
    select,
  )


def _checked_layers(
  layers: Sequence[int] | None, depth: int
) -> tuple[int, ...]:
  if layers is None:
    return (depth,)
  flag = "layer" if len(layers) == 1 else "layers"
  for layer in layers:
    if not 1 <= layer <= depth:
      raise ConfigError(
        f"--{flag}={layer}: the encoder has blocks 1 to {depth}"
      )
  if not layers:
    raise ConfigError("layers=() names no block: leave it out for the last one")
  return tuple(sorted(set(layers)))
