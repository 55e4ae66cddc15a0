"""The network that gives features: an encoder up to a block, and a pooling."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
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
class Extractor:
  """What gives the features.

  Attributes:
    apply: from `params` and uint8 images [B, H, W, C] to float32 [B, ...].
    params: on the devices; those of the encoder are in "encoder".
    encoder: the network, up to `layer`.
    data: how images are prepared.
    layer: the last block that is applied, from 1.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  encoder: mae.Encoder
  data: DataConfig
  layer: int

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one image's features."""
    size = (1, *self.data.image_size, self.data.channels)
    blank = jax.ShapeDtypeStruct(size, jnp.uint8)
    return jax.eval_shape(self.apply, self.params, blank).shape[1:]


def from_checkpoint(
  checkpoint: epath.PathLike,
  mesh: Mesh,
  *,
  pool: str = "mean",
  layer: int | None = None,
  image_size: tuple[int, int] | None = None,
  dtype: str | None = None,
  platform: str | None = None,
) -> Extractor:
  """Makes what the flags of the same names say of a checkpoint.

  Args:
    checkpoint: see `dialects.load_any`.
    mesh: the devices.
    pool: a name in POOLS.
    layer: the block whose tokens are wanted, from 1. After the last one, which
      None is too, they pass the norm that is behind it.
    image_size: height and width; None for the checkpoint's.
    dtype: of activations, a name in `build.DTYPES`; None for the checkpoint's.
    platform: what it will run on, see `build.computed`; None for the mesh's.

  Raises:
    ConfigError: if there is no checkpoint, or it cannot do what is wanted.
  """
  pooled = lookup(POOLS, pool, "--pool")
  with storage.os_errors(checkpoint):
    # Of a run that goes on, the second reading might find another.
    step = conversion.locate(checkpoint)
    found = load_model.load(step, mesh)
    config = _with_size(found.run.config, image_size)
    encoder = found.encoder.clone(frozen=0)
    parts = {"encoder": found.encoder_params}
    if config.data.image_size != found.run.config.data.image_size:
      encoder = encoder.clone(learned_positions=True)
      parts["encoder"] = _with_positions(step, encoder, config.data, mesh)
  model = dataclasses.replace(config.model, dtype=dtype or config.model.dtype)
  encoder = factory.with_computation(
    encoder,
    dataclasses.replace(config, model=model),
    platform or mesh.devices.flat[0].platform,
  )
  layer = encoder.depth if layer is None else layer
  trained = classifiers.inference_params(found.params)
  # What is averaged before its norm is known by nothing but this pooling.
  if layer == encoder.depth and pool == "mean" and vit.FC_NORM in trained:
    parts[vit.FC_NORM] = trained[vit.FC_NORM]
  encoder, parts["encoder"] = _first_blocks(encoder, parts["encoder"], layer)

  def apply(params: Any, pixels: jax.Array) -> jax.Array:
    x = patchify.normalize(pixels, config.data.mean, config.data.std)
    tokens: Any = encoder.apply({"params": params["encoder"]}, x)
    out: Any = pooled(tokens)
    if vit.FC_NORM in params:
      norm = transformer.layer_norm(vit.FC_NORM, encoder.norm_eps)
      out = norm.apply({"params": params[vit.FC_NORM]}, out)
    return out

  return Extractor(jax.jit(apply), parts, encoder, config.data, layer)


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
  """The encoder's parameters, with positions for images of another size."""
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
  """The encoder up to a block, without the norm unless it is the last one."""
  if not 1 <= layer <= encoder.depth:
    raise ConfigError(
      f"--layer={layer}: the encoder has blocks 1 to {encoder.depth}"
    )
  final_norm = encoder.final_norm and layer == encoder.depth
  stack = jax.tree.map(lambda leaf: leaf[:layer], params["stack"])
  return encoder.clone(depth=layer, final_norm=final_norm), {
    name: leaf for name, leaf in params.items() if name != "norm" or final_norm
  } | {"stack": stack}
