"""Builds feature extractors: an encoder up to a block, and a pooling."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from mae_jax import conversion
from mae_jax.config import Config, DataConfig, from_config_dict, lookup, to_dict
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.models import classifiers, factory, mae, patchify, transformer, vit
from mae_jax.train import init_from
from mae_jax.utils import storage
from mae_jax.utils.errors import ConfigError

POOLS: dict[str, Callable[[mae.Tokens], jax.Array]] = {
  "mean": mae.POOLINGS["mean"],
  "cls": mae.POOLINGS["cls"],
  "all": lambda tokens: jnp.concatenate(  # [B, 1 + L, D]
    [tokens.cls[:, None], tokens.patches], axis=1
  ),
}


@dataclasses.dataclass(frozen=True)
class ImageFunction:
  """A network as a function of images, for tools and exports.

  Attributes:
    apply: maps `params` and uint8 images [B, H, W, C] to float32 [B, ...].
    params: its parameters, on the devices.
    data: how images are prepared.
    output: name of the result: features or logits.
    info: more about the network, as JSON content.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  data: DataConfig
  output: str
  info: Mapping[str, Any]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return (*self.data.image_size, self.data.channels)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one image's result."""
    images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.uint8)
    return jax.eval_shape(self.apply, self.params, images).shape[1:]


@dataclasses.dataclass(frozen=True)
class FeatureExtractor(ImageFunction):
  """An encoder up to a block, and a pooling of its tokens.

  Attributes:
    encoder: the network, up to `layer`.
    layer: the last block that is applied, from 1.
  """

  encoder: mae.Encoder
  layer: int


def from_checkpoint(
  checkpoint: epath.PathLike,
  mesh: Mesh,
  *,
  pool: str = "mean",
  layer: int | None = None,
  image_size: tuple[int, int] | None = None,
  dtype: str | None = None,
  platform: str | None = None,
) -> FeatureExtractor:
  """Builds the feature extractor of a checkpoint.

  Args:
    checkpoint: a workdir, a checkpoint, or weights.
    mesh: the devices.
    pool: a name in POOLS.
    layer: the block after which tokens are taken, from 1; None for the last,
      whose tokens pass the final norm.
    image_size: height and width; None for the checkpoint's.
    dtype: dtype of activations, a name in `factory.DTYPES`; None for the
      checkpoint's.
    platform: the platform to run on, as in `factory.masked_autoencoder`; None
      for the mesh's.

  Raises:
    ConfigError: if there is no checkpoint, or a setting does not fit it.
  """
  pooled = lookup(POOLS, pool, "--pool")
  with storage.os_errors(checkpoint):
    # The newest checkpoint of a running run may change between two readings.
    step = conversion.locate(checkpoint)
    found = load_model.load(step, mesh)
    config = _with_size(found.config, image_size)
    encoder = found.encoder
    parts = {"encoder": found.encoder_params}
    if config.data.image_size != found.config.data.image_size:
      encoder = encoder.clone(learned_positions=True)
      parts["encoder"] = _with_positions(step, encoder, config.data, mesh)
  model = dataclasses.replace(config.model, dtype=dtype or config.model.dtype)
  encoder = factory.with_computation(
    encoder.clone(config=dataclasses.replace(encoder.config, frozen=0)),
    dataclasses.replace(config, model=model),
    platform or mesh.devices.flat[0].platform,
  )
  layer = encoder.config.depth if layer is None else layer
  trained = classifiers.inference_params(found.params)
  # fc_norm belongs to mean pooling after the last block.
  if (
    layer == encoder.config.depth and pool == "mean" and vit.FC_NORM in trained
  ):
    parts[vit.FC_NORM] = trained[vit.FC_NORM]
  encoder, parts["encoder"] = _first_blocks(encoder, parts["encoder"], layer)

  def apply(params: Any, pixels: jax.Array) -> jax.Array:
    x = patchify.normalize(pixels, config.data.mean, config.data.std)
    tokens: Any = encoder.apply({"params": params["encoder"]}, x)
    out: Any = pooled(tokens)
    if vit.FC_NORM in params:
      norm = transformer.layer_norm(vit.FC_NORM, encoder.config.norm_eps)
      out = norm.apply({"params": params[vit.FC_NORM]}, out)
    return out

  info = {"pool": pool, "layer": layer}
  return FeatureExtractor(
    jax.jit(apply), parts, config.data, "features", info, encoder, layer
  )


def _with_size(config: Config, image_size: tuple[int, int] | None) -> Config:
  if image_size is None:
    return config
  data = dataclasses.replace(config.data, image_size=image_size)
  changed = dataclasses.replace(config, data=data)
  try:
    changed = from_config_dict(to_dict(changed))
    factory.encoder(changed)
  except ConfigError as error:
    text = re.sub(r"(config\.)?data\.image_size", "--image_size", str(error))
    raise ConfigError(text) from None
  return changed


def _with_positions(
  step: epath.Path, encoder: mae.Encoder, data: DataConfig, mesh: Mesh
) -> Any:
  """Loads the encoder with positions for images of another size."""
  blank = jnp.zeros((1, *data.image_size, data.channels))
  like = jax.eval_shape(encoder.init, jax.random.key(0), blank)["params"]
  like = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    like,
    sharding.state_shardings(mesh, like),
  )
  grid = patchify.grid_size(data.image_size, encoder.patch_size)
  return init_from.load_encoder(step, like, mesh, grid, encoder)


def _first_blocks(
  encoder: mae.Encoder, params: Any, layer: int
) -> tuple[mae.Encoder, Any]:
  """Cuts the encoder after a block; only the last block keeps the norm."""
  if not 1 <= layer <= encoder.config.depth:
    raise ConfigError(
      f"--layer={layer}: the encoder has blocks 1 to {encoder.config.depth}"
    )
  final_norm = encoder.final_norm and layer == encoder.config.depth
  stack = jax.tree.map(lambda leaf: leaf[:layer], params["stack"])
  config = dataclasses.replace(encoder.config, depth=layer)
  return encoder.clone(config=config, final_norm=final_norm), {
    name: leaf for name, leaf in params.items() if name != "norm" or final_norm
  } | {"stack": stack}
