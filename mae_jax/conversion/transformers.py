"""Directories of Hugging Face transformers: ViTMAE and ViT.

`config.json` states the network, and `preprocessor_config.json` how to
preprocess images. `model.safetensors` holds the weights; several files with an
index, or `pytorch_model.bin`, can replace it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mae_jax.conversion import (
  infer_architecture,
  json_fields,
  model_info,
  name_maps,
  tensor_files,
)
from mae_jax.models import architecture as variants
from mae_jax.utils.errors import ConfigError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
MODEL_TYPES = ("vit_mae", "vit")
# Values of settings that a config.json omits.
_DEFAULTS = {
  "num_attention_heads": 12,
  "decoder_num_attention_heads": 16,
  "image_size": 224,
  "layer_norm_eps": 1e-12,
  "hidden_act": "gelu",
  "norm_pix_loss": False,
  "mask_ratio": 0.75,
}
# By transformers' names; export writes the first name of each of ours.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}


def is_config(content: Any) -> bool:
  """Checks whether the content of a config.json is transformers'."""
  return isinstance(content, dict) and "model_type" in content


def describe(
  found: tensor_files.Header,
  path: pathlib.Path,
  base: model_info.ModelInfo | None,
) -> model_info.ModelInfo:
  """Reads a directory's model info; arguments as in `facebook.describe`."""
  config = _DEFAULTS | json_fields.read(path / CONFIG)
  if config["model_type"] not in MODEL_TYPES:
    raise ConfigError(
      f"{path / CONFIG} has model_type={config['model_type']!r}; supported are "
      f"{' and '.join(MODEL_TYPES)}"
    )
  known = infer_architecture.read(
    found.shapes, name_maps.TRANSFORMERS, str(path)
  )
  known |= _config(config, known, path)
  weight = found.shapes.get(f"{name_maps.TRANSFORMERS['model/head']}.weight")
  if weight:
    known |= {
      "kind": model_info.CLASSIFIER,
      "classes": weight[0],
      "class_names": _class_names(config, weight[0], path),
    }
  known |= _preprocessor(path / PREPROCESSOR)
  if base is None:
    return model_info.ModelInfo(pooling="cls", **known)
  return dataclasses.replace(
    base, **{key: value for key, value in known.items() if key != "eval_crop"}
  )


def _config(
  config: Mapping[str, Any], known: dict[str, Any], path: pathlib.Path
) -> dict[str, Any]:
  act, file = config["hidden_act"], path / CONFIG
  if not isinstance(act, str) or act not in ACTIVATIONS:
    raise ConfigError(
      f"{file} has hidden_act={act!r}; supported are "
      f"{', '.join(sorted(ACTIVATIONS))}"
    )
  size = config["image_size"]
  if isinstance(size, list) and len(size) != 2:
    raise ConfigError(
      f"{file} has image_size={size}, which is not one number or two: download "
      "it again, or correct it"
    )
  result: dict[str, Any] = {
    "assumed": frozenset(),
    "heads": config["num_attention_heads"],
    "image_size": tuple(size) if isinstance(size, list) else (size, size),
    "norm_eps": json_fields.number(config, "layer_norm_eps", file),
    "activation": ACTIVATIONS[act],
  }
  decoder = known["decoder"]
  if decoder is not None:
    heads = config["decoder_num_attention_heads"]
    result |= {
      "decoder": variants.Dims(
        decoder.width, decoder.depth, heads, decoder.mlp_dim
      ),
      "norm_pix": bool(config["norm_pix_loss"]),
      "mask_ratio": json_fields.number(config, "mask_ratio", file),
    }
  return result


def _class_names(
  config: Mapping[str, Any], classes: int, path: pathlib.Path
) -> tuple[str, ...]:
  """Reads names from `id2label`; classes without a name get default names."""
  labels = json_fields.mapping(config, "id2label", path / CONFIG)
  found = [labels.get(str(number)) for number in range(classes)]
  if not any(found):
    return ()
  defaults = model_info.default_class_names(classes)
  return tuple(
    str(name or default) for name, default in zip(found, defaults, strict=True)
  )


def _preprocessor(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  content = json_fields.read(path)
  if not isinstance(content, dict):
    return {}
  content = {"rescale_factor": 1 / 255} | content
  factor = json_fields.number(content, "rescale_factor", path)
  if content.get("do_rescale") is False or abs(factor * 255 - 1) > 1e-6:
    return {}  # pixels are not in [0, 1]: the user must give mean and std
  if content.get("do_normalize") is False:
    content |= {"image_mean": 0.0, "image_std": 1.0}
  if content.get("image_mean") is None or content.get("image_std") is None:
    return {}
  return {
    "mean": json_fields.numbers(content, "image_mean", path),
    "std": json_fields.numbers(content, "image_std", path),
    # Images are resized without a crop.
    "eval_crop": 1.0,
  }


def files(found: model_info.ModelInfo, dtype: str) -> dict[str, dict[str, Any]]:
  """Returns the JSON files beside the weights, as content by file name.

  Args:
    found: info of a network that transformers supports.
    dtype: dtype of the weights, as PyTorch names it.
  """
  assert found.image_size is not None
  assert found.mean is not None
  assert found.std is not None
  height, width = found.image_size
  activation_names = {
    ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())
  }
  config: dict[str, Any] = {
    "architectures": [
      {
        model_info.ENCODER: "ViTModel",
        model_info.MAE: "ViTMAEForPreTraining",
        model_info.CLASSIFIER: "ViTForImageClassification",
      }[found.kind]
    ],
    "model_type": "vit_mae" if found.kind == model_info.MAE else "vit",
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": activation_names[found.activation],
    "hidden_dropout_prob": 0.0,
    "hidden_size": found.width,
    "image_size": height if height == width else [height, width],
    "initializer_range": 0.02,
    "intermediate_size": found.mlp_dim,
    "layer_norm_eps": found.norm_eps,
    "num_attention_heads": found.heads,
    "num_channels": found.channels,
    "num_hidden_layers": found.depth,
    "patch_size": found.patch_size[0],
    "qkv_bias": True,
    "dtype": dtype,
  }
  if found.decoder is not None:
    config |= {
      "decoder_hidden_size": found.decoder.width,
      "decoder_intermediate_size": found.decoder.mlp_dim,
      "decoder_num_attention_heads": found.decoder.heads,
      "decoder_num_hidden_layers": found.decoder.depth,
      "mask_ratio": found.mask_ratio,
      "norm_pix_loss": bool(found.norm_pix),
    }
  if found.kind == model_info.CLASSIFIER:
    labels = found.class_names or model_info.default_class_names(found.classes)
    config |= {
      "id2label": {str(i): name for i, name in enumerate(labels)},
      "label2id": {name: i for i, name in enumerate(labels)},
    }

  def channels(values: tuple[float, ...]) -> list[float]:
    return list(values * found.channels if len(values) == 1 else values)

  preprocessor = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": height, "width": width},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": channels(found.mean),
    "image_std": channels(found.std),
  }
  return {CONFIG: config, PREPROCESSOR: preprocessor}
