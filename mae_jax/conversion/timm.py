"""Weights of timm's vision_transformer.py, as `.safetensors` or `.bin`.

Names are the reference's, without a decoder. A `config.json` beside the
weights, as on the Hub, states how to preprocess images.
"""

import pathlib
from typing import Any

import numpy as np

from mae_jax.conversion import (
  facebook,
  json_fields,
  model_info,
  tensor_files,
)
from mae_jax.conversion.weight_format import WeightFormat
from mae_jax.conversion.weights import Weights
from mae_jax.utils.errors import ConfigError

CONFIG = "config.json"


class Timm(WeightFormat):
  """timm's format, which has no decoder."""

  names = facebook.NAMES
  suffix = ".safetensors"
  decoder = False

  def matches(self, path: pathlib.Path, found: tensor_files.Tensors) -> bool:
    """Checks the `config.json`; a file without one may be timm's."""
    if path.is_dir():
      return _is_config(json_fields.read(path / CONFIG))
    return True

  def describe(
    self,
    found: tensor_files.Header,
    path: pathlib.Path,
    base: model_info.ModelInfo | None,
  ) -> model_info.ModelInfo:
    """Reads model info; see `WeightFormat.describe`."""
    known = facebook.read_shapes(found, path)
    if base is not None:
      return facebook.merge(base, known)
    return model_info.ModelInfo(**(known | _config(path, known)))

  def write(self, weights: Weights, out: str, dtype: np.dtype) -> list[str]:
    """Writes a `.safetensors` file."""
    self.write_safetensors(weights, out, dtype)
    return [f"load it with {create_model(weights.info, out)}"]


def _is_config(content: Any) -> bool:
  return isinstance(content, dict) and "architecture" in content


def _config(path: pathlib.Path, known: dict[str, Any]) -> dict[str, Any]:
  directory = path if path.is_dir() else path.parent
  file = directory / CONFIG
  if not file.is_file():
    return {}
  content = json_fields.read(file)
  if not _is_config(content):
    return {}
  preprocessing = json_fields.mapping(content, "pretrained_cfg", file)
  pool = content.get("global_pool", preprocessing.get("global_pool", "token"))
  if known["classes"] and pool == "avg" and known["pooling"] == "cls":
    raise ConfigError(
      f"{file} averages normalized tokens (global_pool=avg without fc_norm), "
      "which no classifier of this project does: convert only the encoder with "
      "--encoder_only"
    )
  result: dict[str, Any] = {
    name: json_fields.numbers(preprocessing, name, file)
    for name in ("mean", "std")
    if preprocessing.get(name) is not None
  }
  if preprocessing.get("crop_pct") is not None:
    result["eval_crop"] = json_fields.number(preprocessing, "crop_pct", file)
  names = preprocessing.get("label_names", content.get("label_names"))
  if known["classes"] and isinstance(names, list) and names:
    if len(names) != known["classes"]:
      raise ConfigError(
        f"{file} has {len(names)} label_names, but the head has "
        f"{known['classes']} classes: correct the names, or remove them"
      )
    result["class_names"] = tuple(names)
  return result


def create_model(found: model_info.ModelInfo, file: str) -> str:
  """Returns Python code that loads a file of these weights strictly."""
  assert found.image_size
  size = {"B": "base", "L": "large", "H": "huge", "S": "small", "Ti": "tiny"}
  named = size.get(found.size)
  patch = found.patch_size[0] if len(set(found.patch_size)) == 1 else None
  known = {
    ("tiny", 16),
    ("small", 16),
    ("base", 16),
    ("large", 16),
    ("huge", 14),
  }
  arguments: dict[str, Any] = {}
  if (named, patch) in known:
    model = f"vit_{named}_patch{patch}_224"
  else:
    model = "vit_base_patch16_224"
    arguments = {
      "patch_size": patch or found.patch_size,
      "embed_dim": found.width,
      "depth": found.depth,
      "num_heads": found.heads,
      "mlp_ratio": found.mlp_dim / found.width,
    }
  if found.image_size != (224, 224):
    arguments["img_size"] = found.image_size
  if found.channels != 3:
    arguments["in_chans"] = found.channels
  arguments["num_classes"] = found.classes
  arguments["global_pool"] = (
    "avg" if found.classes and found.pooling == "mean" else "token"
  )
  text = "".join(f", {key}={value!r}" for key, value in arguments.items())
  if found.norm_eps != 1e-6:
    text += f", norm_layer=partial(torch.nn.LayerNorm, eps={found.norm_eps:g})"
  if found.activation != "gelu":
    text += f", act_layer=...  # {found.activation}"
  return f'timm.create_model("{model}"{text}, checkpoint_path={file!r})'
