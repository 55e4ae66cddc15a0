"""What is exported: a checkpoint's encoder, or the whole classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.config import DataConfig, MeshConfig
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.models import classifiers, factory
from mae_jax.tools import feature_extractor


@dataclasses.dataclass(frozen=True)
class Network:
  """A function of images.

  Attributes:
    apply: from `params` and uint8 images [B, H, W, C] to float32 [B, ...].
    params: on a CPU device.
    data: the images it is shown.
    output: what its values are called.
    facts: more about it, for other programs.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  data: DataConfig
  output: str
  facts: Mapping[str, Any]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    return (*self.data.image_size, self.data.channels)


def features(
  step: epath.Path,
  *,
  dtype: str,
  pool: str | None,
  layer: int | None,
  image_size: tuple[int, int] | None,
) -> Network:
  """The encoder of a checkpoint, see `extractor.from_checkpoint`.

  Raises:
    ConfigError: if it cannot do what is wanted.
  """
  pool = pool or "mean"
  found = feature_extractor.from_checkpoint(
    step,
    host(),
    pool=pool,
    layer=layer,
    image_size=image_size,
    dtype=dtype,
    platform=factory.ANY_PLATFORM,
  )
  facts = {"pool": pool, "layer": found.layer}
  return Network(found.apply, found.params, found.data, "features", facts)


def classifier(step: epath.Path, *, dtype: str) -> Network:
  """The encoder with its head.

  Raises:
    ConfigError: if there is no head.
  """
  found = load_model.load_classifier(step, host())
  run = found.run
  model = dataclasses.replace(run.config.model, dtype=dtype)
  config = dataclasses.replace(run.config, model=model)
  make = classifiers.CLASSIFIERS[config.task]
  built = make(config, len(run.class_names), factory.ANY_PLATFORM)
  params = found.params
  if classifiers.AVERAGED in params:  # the others have no further use
    params = {classifiers.MODEL: classifiers.inference_params(params)}
  facts = {"class_names": list(run.class_names)}
  return Network(built.logits, params, config.data, "logits", facts)


def host() -> Mesh:
  """One CPU device: what is traced there runs anywhere."""
  return sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
