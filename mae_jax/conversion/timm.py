"""Weights of timm's vision_transformer.py: `.safetensors`, `.bin` or a folder.

Names are the reference's, without a decoder. In a folder, as on the Hub, a
`config.json` beside the weights states the network and how to preprocess
images.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.conversion import (
  facebook,
  hub,
  json_fields,
  model_card,
  model_info,
  preprocessing,
  run_config,
  tensor_files,
)
from mae_jax.conversion.weight_format import OUT, WeightFormat
from mae_jax.conversion.weights import Weights
from mae_jax.models import transformer
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SIZES = {"B": "base", "L": "large", "H": "huge", "S": "small", "Ti": "tiny"}
# Widths of the networks that timm has, by size and patch.
_NAMED = {
  ("tiny", 16): 192,
  ("small", 16): 384,
  ("base", 16): 768,
  ("large", 16): 1024,
  ("huge", 14): 1280,
}


class Timm(WeightFormat):
  """timm's format, which has no decoder."""

  names = facebook.NAMES
  unsupported = facebook.UNSUPPORTED
  optional_biases = facebook.QKV_BIAS
  ignored = ((r"^mask_token$", "the mask token of its training"),)
  suffix = ".safetensors"
  folder = True
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

  def provenance(self, path: pathlib.Path) -> dict[str, str]:
    """Reads the license of the `config.json`; see `WeightFormat.provenance`."""
    file, content = _read_config(path)
    cfg = json_fields.mapping(content, "pretrained_cfg", file)
    license, source = cfg.get("license"), cfg.get("hf_hub_id")
    if not isinstance(license, str) or not model_card.is_plain(license):
      return {}
    known = isinstance(source, str) and source
    return {
      "source": f"{hub.SCHEME}{source}" if known else "",
      "license": license,
    }

  def write(
    self, weights: Weights, out: str, dtype: np.dtype, card: str
  ) -> list[str]:
    """Writes a `.safetensors` file, or a folder for any other name."""
    if out.endswith(self.suffix):
      self.write_safetensors(weights, out, dtype)
      return [f"load it with {create_model(weights.info, out)}"]
    content = hub_config(weights.info)
    license = run_config.provenance(weights.run).get("license")
    if license not in (None, "unknown"):
      content["pretrained_cfg"]["license"] = license
    with atomic_write.atomic_folder(out, lambda _: False, OUT) as directory:
      text = json.dumps(content, indent=2) + "\n"
      (directory / CONFIG).write_text(text)
      (directory / model_card.FILE).write_text(card, "utf-8")
      self.write_safetensors(weights, str(directory / WEIGHTS), dtype)
    path = f"local-dir:{os.path.abspath(out)}"
    notes = [f"load it with timm.create_model({path!r}, pretrained=True)"]
    name, exact = _architecture(weights.info)
    if not exact:
      notes.append(
        f"timm has no name for this size: {CONFIG} says {name}, the nearest, "
        "and model_args all sizes, which timm uses"
      )
    return notes

  def reader_notes(self, found: model_info.ModelInfo, out: str) -> list[str]:
    """Lists settings that timm does not find in the file or folder."""
    if out.endswith(self.suffix):
      notes = super().reader_notes(found, out)
    else:
      notes = self.eps_notes(found)
    return [*notes, *preprocessing.timm_notes(found)]


def _is_config(content: Any) -> bool:
  return isinstance(content, dict) and "architecture" in content


def _read_config(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the file of the `config.json` of weights, and its content or {}."""
  file = (path if path.is_dir() else path.parent) / CONFIG
  content = json_fields.read(file) if file.is_file() else {}
  return file, content if _is_config(content) else {}


def _config(path: pathlib.Path, known: dict[str, Any]) -> dict[str, Any]:
  file, content = _read_config(path)
  if not content:
    return {}
  cfg = json_fields.mapping(content, "pretrained_cfg", file)
  pool = content.get("global_pool", cfg.get("global_pool", "token"))
  if known["classes"] and pool == "avg" and known["pooling"] == "cls":
    raise ConfigError(
      f"{file} averages normalized tokens (global_pool=avg without fc_norm), "
      "which no classifier of this project does: convert only the encoder "
      "(--encoder_only of python -m mae_jax convert)"
    )
  result = _model_args(json_fields.mapping(content, "model_args", file))
  result |= {
    name: json_fields.numbers(cfg, name, file)
    for name in ("mean", "std")
    if cfg.get(name) is not None
  }
  size = result.get("image_size", known["image_size"]) or _input_size(cfg)
  result["image_size"] = size
  result |= preprocessing.from_timm(cfg, size, file).fields()
  names = cfg.get("label_names", content.get("label_names"))
  if known["classes"] and isinstance(names, list) and names:
    if len(names) != known["classes"]:
      raise ConfigError(
        f"{file} has {len(names)} label_names, but the head has "
        f"{known['classes']} classes: correct the names, or remove them"
      )
    result["class_names"] = tuple(names)
  return result


def _input_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
  match cfg.get("input_size"):
    case [int(), int() as height, int() as width]:
      return height, width
  return None


def _model_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the facts that no tensor shows."""
  result: dict[str, Any] = {}
  heads, size = arguments.get("num_heads"), arguments.get("img_size")
  if isinstance(heads, int):
    result["heads"] = heads
  if isinstance(size, int):
    result["image_size"] = (size, size)
  elif isinstance(size, list) and len(size) == 2:
    result["image_size"] = tuple(size)
  activation = arguments.get("act_layer")
  if activation in transformer.ACTIVATIONS:
    result["activation"] = activation
  return result


def _architecture(found: model_info.ModelInfo) -> tuple[str, bool]:
  """Returns timm's name of a network, and whether it has this size.

  Another size is named as the nearest in width, since timm has no name without
  a size.
  """
  size = _SIZES.get(found.size)
  patch = found.patch_size[0]
  exact = len(set(found.patch_size)) == 1 and (size, patch) in _NAMED
  if not exact:
    size, patch = min(_NAMED, key=lambda x: abs(_NAMED[x] - found.width))
  return f"vit_{size}_patch{patch}_224", exact


def _arguments(found: model_info.ModelInfo) -> dict[str, Any]:
  """Returns arguments of timm's VisionTransformer for a size without a name."""
  square = len(set(found.patch_size)) == 1
  return {
    "patch_size": found.patch_size[0] if square else found.patch_size,
    "embed_dim": found.width,
    "depth": found.depth,
    "num_heads": found.heads,
    "mlp_ratio": found.mlp_dim / found.width,
  }


def _pool(found: model_info.ModelInfo) -> str:
  return "avg" if found.classes and found.pooling == "mean" else "token"


def hub_config(found: model_info.ModelInfo) -> dict[str, Any]:
  """Returns the `config.json` from which timm builds the network.

  Args:
    found: info of a network that timm supports.
  """
  assert found.image_size is not None
  # All dimensions are written, so that the name decides nothing.
  arguments = {
    "img_size": list(found.image_size),
    **_arguments(found),
    "in_chans": found.channels,
    "class_token": True,
    "global_pool": _pool(found),
  }
  if found.activation != "gelu":
    arguments["act_layer"] = found.activation
  content: dict[str, Any] = {
    "architecture": _architecture(found)[0],
    "num_classes": found.classes,
    "num_features": found.width,
    "global_pool": _pool(found),
    "model_args": arguments,
    "pretrained_cfg": {
      "custom_load": False,
      "fixed_input_size": True,
      **_preparation(found),
      "num_classes": found.classes,
      "pool_size": None,
      "first_conv": "patch_embed.proj",
      "classifier": "head",
    },
  }
  default = model_info.default_class_names(found.classes)
  if found.classes and tuple(found.class_names) not in ((), default):
    content["label_names"] = list(found.class_names)
  return content


def _preparation(found: model_info.ModelInfo) -> dict[str, Any]:
  """Returns the fields of a pretrained_cfg that prepare images."""
  assert found.image_size is not None
  assert found.mean is not None
  assert found.std is not None

  def channels(values: tuple[float, ...]) -> list[float]:
    return list(values * found.channels if len(values) == 1 else values)

  return {
    "input_size": [found.channels, *found.image_size],
    **preprocessing.to_timm(found),
    "mean": channels(found.mean),
    "std": channels(found.std),
  }


def create_model(found: model_info.ModelInfo, file: str) -> str:
  """Returns Python code that loads a file of these weights strictly.

  timm.data.resolve_model_data_config then returns our preparation of images,
  not that of timm's network with this name.
  """
  assert found.image_size
  model, exact = _architecture(found)
  arguments = {} if exact else _arguments(found)
  if found.image_size != (224, 224):
    arguments["img_size"] = found.image_size
  if found.channels != 3:
    arguments["in_chans"] = found.channels
  arguments["num_classes"] = found.classes
  arguments["global_pool"] = _pool(found)
  if found.activation != "gelu":
    arguments["act_layer"] = found.activation
  text = "".join(f", {key}={value!r}" for key, value in arguments.items())
  if found.norm_eps != 1e-6:
    text += f", norm_layer=partial(torch.nn.LayerNorm, eps={found.norm_eps:g})"
  text += f", pretrained_cfg_overlay={_preparation(found)!r}"
  return f'timm.create_model("{model}"{text}, checkpoint_path={file!r})'
