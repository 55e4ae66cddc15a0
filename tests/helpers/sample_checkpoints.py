"""Small networks of every kind, as checkpoints of this project."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from mae_jax import checkpoints
from mae_jax.checkpoints import checksums
from mae_jax.config import Config
from mae_jax.models import classifiers, factory
from tests.helpers import tiny

SIZE, PATCH = 24, 6
CLASSES = ("cat", "dog", "eel", "fox", "gnu")
MODEL = {
  "variant": f"Ti/{PATCH}",
  "width": 48,
  "depth": 2,
  "heads": 4,
  "mlp_dim": 80,
  "decoder_width": 32,
  "decoder_depth": 2,
  "decoder_heads": 2,
  "norm_eps": 1e-6,
}
DATA = {
  "image_size": (SIZE, SIZE),
  "channels": 3,
  "mean": (0.485, 0.456, 0.406),
  "std": (0.229, 0.224, 0.225),
  "eval_crop": 0.9,
}
# Kinds of networks, by task and pooling.
KINDS = {
  "encoder": ("pretrain", "mean"),
  "mae": ("pretrain", "mean"),
  "raw": ("pretrain", "mean"),
  "mean": ("finetune", "mean"),
  "cls": ("finetune", "cls"),
  "probe": ("linprobe", "cls"),
}


def config(kind: str, **sections: Any) -> Config:
  """Returns settings that differ from all defaults, to test conversion."""
  task, pooling = KINDS[kind]
  sections = {
    "task": task,
    "data": DATA,
    "model": MODEL,
    "objective": {
      "mask_ratio": 0.6,
      "target": "raw" if kind == "raw" else "norm_pix",
    },
    "classify": {"pooling": pooling, "head_std": 0.03},
  } | sections
  return tiny.config(**sections)


def params(kind: str, settings: Config, seed: int = 0) -> Any:
  """Samples parameters by role, with plausible statistics for a probe."""
  if KINDS[kind][0] == "pretrain":
    tree = tiny.random_params(tiny.shapes(settings), seed)
    if kind == "encoder":
      del tree["decoder"]
    return {"model": tree}
  network = classifiers.CLASSIFIERS[settings.task](
    settings, len(CLASSES), "cpu"
  )
  tree = tiny.random_params(
    jax.eval_shape(network.init, jax.random.key(0)), seed
  )
  if kind == "probe":
    tree["stats"]["var"] = np.abs(tree["stats"]["var"]) + np.float32(0.3)
  return tree


def save(
  path: pathlib.Path, kind: str, seed: int = 0, **sections: Any
) -> pathlib.Path:
  """Writes a checkpoint of a kind in KINDS."""
  settings = config(kind, **sections)
  names = CLASSES if kind in ("mean", "cls", "probe") else ()
  run = checkpoints.CheckpointMetadata(
    settings, {"name": "photos", "examples": 7}, names
  )
  save_tree(path, params(kind, settings, seed), run)
  return path


def save_tree(
  path: pathlib.Path, tree: Any, run: checkpoints.CheckpointMetadata
) -> None:
  """Writes a tree by role."""
  flat = checksums.flatten(tree)
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  checkpoints.ArrayWriter(lambda name: flat[name]).write(path, shapes, run)


def autoencoder(settings: Config):
  """Builds the network of a config."""
  return factory.masked_autoencoder(settings)


def in_bfloat16(tree: Any) -> Any:
  """Rounds float32 values to bfloat16."""
  return jax.tree.map(
    lambda x: np.asarray(jax.numpy.asarray(x, "bfloat16"), np.float32), tree
  )


def with_model_settings(settings: Config, **model: Any) -> Config:
  """Returns a config with other settings of the model."""
  model_section = dataclasses.replace(settings.model, **model)
  return dataclasses.replace(settings, model=model_section)
