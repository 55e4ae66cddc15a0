"""Networks out of checkpoints, built as the run that saved them says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mae_jax import checkpoints, dialects
from mae_jax import config as config_lib
from mae_jax.models import build, classifiers, mae


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds.

  Attributes:
    params: by role, on the devices.
    run: that saved them.
    encoder: the network that gives features.
    classifier: the same with its head; None if there is none.
  """

  params: dict[str, Any]
  run: checkpoints.Run
  encoder: mae.Encoder
  classifier: classifiers.Classifier | None

  @property
  def encoder_params(self) -> Any:
    """Those of `encoder`."""
    return classifiers.trained(self.params)["encoder"]


def load(
  path: epath.PathLike, mesh: Mesh, hints: dialects.Hints = dialects.NO_HINTS
) -> Restored:
  """Reads a checkpoint of any task, or weights of another program.

  Args:
    path: see `dialects.load_any`.
    mesh: the devices.
    hints: what is known of the network besides.

  Raises:
    ConfigError: if there is no checkpoint, or it is damaged.
  """
  hints = dataclasses.replace(hints, no_decoder=True)
  params, run = dialects.load_any(path, mesh, hints)
  platform = mesh.devices.flat[0].platform
  task = run.config.task
  if task == "pretrain":
    model = build.encoder(run.config, platform)
    # Weights from elsewhere may have positions of their own.
    own = "pos_embed" in params[classifiers.MODEL]["encoder"]
    return Restored(params, run, model.clone(learned_positions=own), None)
  built = classifiers.CLASSIFIERS[task](
    run.config, len(run.class_names), platform
  )
  like = jax.eval_shape(built.init, jax.random.key(0))
  checkpoints.check_shapes(path, params, like)
  return Restored(params, run, built.encoder, built)


def load_autoencoder(
  path: epath.PathLike, mesh: Mesh, hints: dialects.Hints = dialects.NO_HINTS
) -> tuple[mae.MaskedAutoencoder, Any, checkpoints.Run]:
  """Reads a checkpoint of pre-training, or such weights of another program.

  Args:
    path: see `dialects.load_any`.
    mesh: the devices.
    hints: what is known of the network besides.

  Returns:
    The network, its variables on the devices, and the run that saved them.

  Raises:
    ConfigError: if there is none, it is damaged, or it has no decoder.
  """
  params, run = dialects.load_any(path, mesh, hints)
  found = params.get(classifiers.MODEL, {})
  if run.config.task != "pretrain" or "decoder" not in found:
    raise config_lib.ConfigError(
      f"{path} has no decoder, without which nothing is reconstructed: name a "
      "checkpoint of pre-training, or weights that hold both "
      "(mae_pretrain_vit_base_full.pth, or a ViTMAEForPreTraining)"
    )
  model = build.masked_autoencoder(run.config, mesh.devices.flat[0].platform)
  # Weights from elsewhere may have positions of their own.
  model = model.clone(
    encoder=model.encoder.clone(
      learned_positions="pos_embed" in found["encoder"]
    ),
    decoder=model.decoder.clone(
      learned_positions="pos_embed" in found["decoder"]
    ),
  )
  return model, mae.variables(params), run


def load_classifier(
  path: epath.PathLike, mesh: Mesh, hints: dialects.Hints = dialects.NO_HINTS
) -> Restored:
  """As `load`, where a head is needed.

  Raises:
    ConfigError: also if the checkpoint has no head.
  """
  restored = load(path, mesh, hints)
  if restored.classifier is None:
    raise config_lib.ConfigError(
      f"{path} has no head: it is of a run of task={restored.run.config.task}. "
      "Fine-tune or probe it first (--config=configs/finetune_vit_b.py "
      f"--config.init_from={path}), and name that run's workdir; what its "
      "features are worth as they are, task=evaluate tells with "
      "--config.eval.measure=features"
    )
  return restored
