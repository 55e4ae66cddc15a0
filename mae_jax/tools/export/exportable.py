"""Builds the exported function: an encoder with pooling, or a classifier."""

from __future__ import annotations

import dataclasses

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax.config import MeshConfig
from mae_jax.distributed import sharding
from mae_jax.evals import load_model
from mae_jax.models import classifiers, factory
from mae_jax.tools import feature_extractor
from mae_jax.tools.feature_extractor import ImageFunction


def features(
  step: epath.Path,
  *,
  dtype: str,
  pool: str | None,
  layer: int | None,
  image_size: tuple[int, int] | None,
) -> ImageFunction:
  """Returns the encoder; arguments as in `feature_extractor.from_checkpoint`.

  Raises:
    ConfigError: if a setting does not fit the checkpoint.
  """
  return feature_extractor.from_checkpoint(
    step,
    cpu_mesh(),
    pool=pool or "mean",
    layer=layer,
    image_size=image_size,
    dtype=dtype,
    platform=factory.ANY_PLATFORM,
  )


def classifier(step: epath.Path, *, dtype: str) -> ImageFunction:
  """Returns the encoder with its head.

  Raises:
    ConfigError: if there is no head.
  """
  found = load_model.load(step, cpu_mesh(), head=True)
  model = dataclasses.replace(found.config.model, dtype=dtype)
  config = dataclasses.replace(found.config, model=model)
  found = dataclasses.replace(
    found, config=config, platform=factory.ANY_PLATFORM
  )
  params = found.params
  if (
    classifiers.AVERAGED in params
  ):  # exports use the averaged parameters alone
    params = {classifiers.MODEL: classifiers.inference_params(params)}
  info = {"class_names": list(found.class_names)}
  logits = found.classifier.logits
  return ImageFunction(logits, params, config.data, "logits", info)


def cpu_mesh() -> Mesh:
  """Returns a mesh of one CPU device; its traced programs run anywhere."""
  return sharding.make_mesh(MeshConfig(), jax.local_devices(backend="cpu")[:1])
