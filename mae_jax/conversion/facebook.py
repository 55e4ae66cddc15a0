"""The reference's own `.pth` files: `{"model": state_dict, "args": ...}`."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any

from mae_jax.conversion import (
  infer_architecture,
  model_info,
  name_maps,
  tensor_files,
)


def describe(
  found: tensor_files.Header,
  path: pathlib.Path,
  base: model_info.ModelInfo | None,
) -> model_info.ModelInfo:
  """Reads model info from a `.pth` file of the reference.

  Args:
    found: names, shapes and extra content of the file.
    path: the file, for messages.
    base: model info from this project's metadata, if the file has any.
  """
  known = infer_architecture.read(found.shapes, name_maps.FACEBOOK, str(path))
  known |= head_fields(found)
  if base is None:
    # The reference always normalizes pixels this way.
    if known["channels"] == 3:
      known |= model_info.IMAGENET
      known["assumed"] |= model_info.IMAGENET.keys()
    return model_info.ModelInfo(**(known | _arguments(found.extra)))
  return merge(base, known)


def merge(
  base: model_info.ModelInfo, known: dict[str, Any]
) -> model_info.ModelInfo:
  """Updates the metadata's info with what the tensors show."""
  unknown = {"heads", "image_size", "decoder", "assumed"}
  changes = {key: value for key, value in known.items() if key not in unknown}
  decoder = known["decoder"]
  if decoder is not None and base.decoder is not None:
    decoder = dataclasses.replace(decoder, heads=base.decoder.heads)
  changes["decoder"] = decoder
  if not known["classes"]:
    changes["class_names"] = ()
  return dataclasses.replace(base, **changes)


def head_fields(found: tensor_files.Header) -> dict[str, Any]:
  """Reads the fields that a head's tensors show."""
  for kind, path in (
    (model_info.CLASSIFIER, "model/head"),
    (model_info.PROBE, "head"),
  ):
    weight = found.shapes.get(f"{name_maps.FACEBOOK[path]}.weight")
    if weight:
      mean = f"{name_maps.FACEBOOK['model/fc_norm']}.weight" in found.shapes
      return {
        "kind": kind,
        "classes": weight[0],
        "pooling": "mean" if mean else "cls",
      }
  return {"classes": 0}


def _arguments(extra: Any) -> dict[str, Any]:
  """Reads the training script's saved command line."""
  args = extra.get("args")
  if not isinstance(args, argparse.Namespace):
    return {}
  result = {}
  if isinstance(getattr(args, "norm_pix_loss", None), bool):
    result["norm_pix"] = args.norm_pix_loss
  if isinstance(getattr(args, "mask_ratio", None), float):
    result["mask_ratio"] = args.mask_ratio
  return result
