"""An encoder out of any checkpoint, made to fit the network that trains."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints
from mae_jax import config as config_lib
from mae_jax.models import (
  build,
  classifiers,
  mae,
  patches,
  positions,
  variants,
)


def load_encoder(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  grid: tuple[int, int],
  encoder: mae.Encoder,
) -> Any:
  """The encoder of a pre-trained or fine-tuned checkpoint.

  Averaged parameters are preferred. Positions are those of the checkpoint, the
  fixed table if it has no others, interpolated if the grid of patches is
  another one. A final norm that is not wanted is left out.

  Args:
    path: a workdir, its `checkpoints`, or one step's directory.
    like: the encoder's tree wanted, of ShapeDtypeStructs with shardings.
    mesh: the devices.
    grid: rows and columns of patches of the images to come.
    encoder: the network that is to have it.

  Returns:
    The tree `like`, filled.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or its encoder is of
      another architecture.
  """
  params, run = checkpoints.load_any(path, mesh)
  found = dict(classifiers.trained(params)["encoder"])
  if "norm" not in like:
    found.pop("norm", None)
  elif "norm" not in found:
    raise config_lib.ConfigError(
      f"the encoder of {path} was fine-tuned with mean pooling and has no "
      "final norm, which is needed here: start from the pre-trained one, or "
      "fine-tune with --config.classify.pooling=mean"
    )
  if "pos_embed" in like:
    found["pos_embed"] = _positions(found, run.config, grid)
  checkpoints.check_shapes(path, {"encoder": found}, {"encoder": like})
  check_network(path, run, encoder)
  return jax.tree.map(
    lambda leaf, to: jax.device_put(leaf, to.sharding), found, dict(like)
  )


def check_network(
  path: epath.PathLike, run: checkpoints.Run, encoder: mae.Encoder
) -> None:
  """Compares what the shapes of parameters do not tell.

  Raises:
    ConfigError: if heads, patches, norms or activations of the run differ.
  """
  before = build.encoder(run.config)
  for name in ("heads", "patch_size", "norm_eps", "activation"):
    old, new = getattr(before, name), getattr(encoder, name)
    if old != new:
      raise config_lib.ConfigError(
        f"the encoder of {path} has model.{name}={old}, not {new}: set "
        f"--config.model.{name}={str(old).replace(' ', '')}"
      )


def _positions(
  encoder: Any, config: config_lib.Config, grid: tuple[int, int]
) -> np.ndarray:
  """[1, 1 + L, D] on the new grid, from what the checkpoint has."""
  _, square = variants.parse(config.model.variant)
  patch_size = config.model.patch_size or (square, square)
  before = patches.grid_size(config.data.image_size, patch_size)
  if "pos_embed" in encoder:
    table = np.asarray(jax.device_get(encoder["pos_embed"]))
  else:
    own = encoder["cls_token"].shape[-1]
    table = np.asarray(positions.with_cls(positions.sincos_2d(before, own)))
  resized = positions.resize(table[:, 1:], before, grid)
  return np.concatenate([table[:, :1], resized], axis=1)
