"""Makes networks with random weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mae_jax.api import arguments, hints, library, load
from mae_jax.api.model import Model
from mae_jax.api.names import image_size_of, variant_of
from mae_jax.conversion import model_info, run_config
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.models import architecture, classifiers, factory
from mae_jax.utils.errors import ConfigError


@library.public
@library.explained(**hints.CREATE)
def create_model(
  name: str,
  *,
  num_classes: int = 0,
  image_size: int | tuple[int, int] | None = None,
  channels: int = 3,
  width: int | None = None,
  depth: int | None = None,
  heads: int | None = None,
  mlp_dim: int | None = None,
  decoder: bool = True,
  pooling: str = "mean",
  norm_pix: bool = True,
  mask_ratio: float = 0.75,
  decoder_width: int = 512,
  decoder_depth: int = 8,
  decoder_heads: int = 16,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  class_names: Sequence[str] = (),
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Model:
  """Makes a network with random weights.

  Args:
    name: one of `list_models`, another patch size as "vit_b4", or timm's name
      as "vit_base_patch16_224".
    num_classes: makes a classifier; 0 for an autoencoder.
    image_size: height and width, or one number for both; None for that of
      timm's name, or 224.
    channels: channels of an image.
    width: width of tokens; None for that of the name.
    depth: number of blocks; None for that of the name.
    heads: attention heads; None for those of the name.
    mlp_dim: hidden width of the MLP; None for that of the name, or four times
      a `width` that is given.
    decoder: False makes an encoder alone.
    pooling: features for a classifier's head: "mean" or "cls".
    norm_pix: whether the decoder predicts normalized patches.
    mask_ratio: share of masked patches.
    decoder_width: width of the decoder.
    decoder_depth: blocks of the decoder.
    decoder_heads: attention heads of the decoder.
    mean: of pixels in [0, 1], one for each channel; None for ImageNet's, or 0.5
      where there are not three channels.
    std: standard deviation of pixels; None as `mean`.
    class_names: names of a classifier's classes.
    seed: of the weights.
    mesh: the devices; None for all.

  Raises:
    ConfigError: if a name is not known, or sizes do not fit together.

  Example:
    >>> import mae_jax
    >>> model = mae_jax.create_model("vit_ti16", image_size=32, num_classes=10)
    >>> model.kind, model.grid
    ('classifier', (2, 2))
  """
  dims, patch = architecture.parse(variant_of(name))
  num_classes = arguments.integer("num_classes", num_classes, 0)
  channels = arguments.integer("channels", channels, 1)
  seed = arguments.seed(seed)
  if image_size is None:
    image_size = image_size_of(name)
  sides = arguments.size("image_size", image_size)
  if width is not None:
    dims = dataclasses.replace(dims, width=width, mlp_dim=4 * width)
  given = {"depth": depth, "heads": heads, "mlp_dim": mlp_dim}
  dims = dataclasses.replace(
    dims, **{key: x for key, x in given.items() if x is not None}
  )
  kind = model_info.MAE if decoder else model_info.ENCODER
  if num_classes:
    kind = model_info.CLASSIFIER
  usual: dict[str, tuple[float, ...]] = {**model_info.IMAGENET}
  if channels != 3:
    usual = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
  info = model_info.ModelInfo(
    kind=kind,
    **dataclasses.asdict(dims),
    patch_size=(patch, patch),
    channels=channels,
    image_size=sides,
    decoder=architecture.Dims(
      decoder_width, decoder_depth, decoder_heads, 4 * decoder_width
    )
    if kind == model_info.MAE
    else None,
    norm_pix=norm_pix if kind == model_info.MAE else None,
    mask_ratio=mask_ratio,
    mean=usual["mean"] if mean is None else arguments.per_channel("mean", mean),
    std=usual["std"] if std is None else arguments.per_channel("std", std),
    pooling=pooling,
    classes=num_classes,
    class_names=tuple(class_names),
  )
  model_info.check_distinct(class_names)
  if class_names and len(class_names) != num_classes:
    raise ConfigError(
      f"class_names has {len(class_names)} names for num_classes={num_classes}"
    )
  metadata = run_config.to_run(info, name)
  mesh = load.mesh_of(mesh)
  platform = mesh.devices.flat[0].platform
  config, key = metadata.config, jax.random.key(seed)
  built: dict[str, Any] = {"decoder": None}
  if kind == model_info.CLASSIFIER:
    make = classifiers.CLASSIFIERS[config.task]
    network = make(config, num_classes, platform)
    init, built["encoder"] = (lambda: network.init(key)), network.encoder
  else:
    model = factory.masked_autoencoder(config, platform)
    built["encoder"] = model.encoder
    if kind == model_info.MAE:
      built["decoder"] = model.decoder
    blank = jnp.zeros((1, *config.data.image_size, channels))

    def init() -> dict[str, Any]:
      params = model.init({"params": key, "mask": key}, blank)["params"]
      return {
        classifiers.MODEL: {
          part: params[part] for part in built if built[part] is not None
        }
      }

  shapes = jax.eval_shape(init)
  where = sharding.state_shardings(mesh, shapes)
  params = jax.jit(init, out_shardings=where)()
  loaded = load_model.LoadedModel(
    name, params, metadata, config, platform, **built
  )
  return Model(loaded, mesh)
