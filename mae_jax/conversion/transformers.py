"""Directories of Hugging Face transformers: ViTMAE, ViT and BEiT.

A classifier that averages its tokens is written as a BEiT with our positions,
because transformers' ViT takes the class token. `config.json` states the
network, and `preprocessor_config.json` how to preprocess images.
`model.safetensors` holds the weights; several files with an index, or
`pytorch_model.bin`, can replace it.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.conversion import (
  infer_architecture,
  json_fields,
  model_card,
  model_info,
  name_maps,
  preprocessing,
  tensor_files,
)
from mae_jax.conversion.weight_format import OUT, WeightFormat
from mae_jax.conversion.weights import Weights
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
_BEIT = "beit"
MODEL_TYPES = ("vit_mae", "vit", _BEIT)
_BLOCK: name_maps.Names = {
  "norm1": "layernorm_before",
  "attn/qkv": (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
  ),
  "attn/proj": "attention.output.dense",
  "norm2": "layernorm_after",
  "mlp/fc1": "intermediate.dense",
  "mlp/fc2": "output.dense",
}
# As in files on the Hub.
NAMES: name_maps.Names = {
  "model/encoder/cls_token": "vit.embeddings.cls_token",
  "model/encoder/pos_embed": "vit.embeddings.position_embeddings",
  "model/encoder/patch_embed": "vit.embeddings.patch_embeddings.projection",
  **name_maps.blocks("model/encoder", "vit.encoder.layer", _BLOCK),
  "model/encoder/norm": "vit.layernorm",
  "model/decoder/mask_token": "decoder.mask_token",
  "model/decoder/pos_embed": "decoder.decoder_pos_embed",
  "model/decoder/embed": "decoder.decoder_embed",
  **name_maps.blocks("model/decoder", "decoder.decoder_layers", _BLOCK),
  "model/decoder/norm": "decoder.decoder_norm",
  "model/decoder/pred": "decoder.decoder_pred",
  "model/fc_norm": "vit.pooler.layernorm",
  "model/head": "classifier",
}
# Settings of a BEiT that computes what our classifiers do.
_MEAN_POOLING = {
  "use_mean_pooling": True,
  "use_absolute_position_embeddings": True,
  "use_relative_position_bias": False,
  "use_shared_relative_position_bias": False,
  "layer_scale_init_value": 0.0,
}
# Other names of the same tensors, as substitutions to apply in this order.
_ALIASES = (
  name_maps.WRAPPERS,
  # ViTModel, the encoder alone, has no prefix.
  (r"^(embeddings|encoder|layers|layernorm|pooler)\b", r"vit.\1"),
  (r"^beit\.", "vit."),
  # Modules of transformers 5, and decoders in files of transformers 5.23.
  (r"^vit\.layers\.", "vit.encoder.layer."),
  (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
  (r"\.attention\.q_proj\.", ".attention.attention.query."),
  (r"\.attention\.k_proj\.", ".attention.attention.key."),
  (r"\.attention\.v_proj\.", ".attention.attention.value."),
  (r"\.attention\.o_proj\.", ".attention.output.dense."),
  (r"^(vit|decoder)(.*)\.mlp\.fc1\.", r"\1\2.intermediate.dense."),
  (r"^(vit|decoder)(.*)\.mlp\.fc2\.", r"\1\2.output.dense."),
)
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


class Transformers(WeightFormat):
  """Directories of transformers' ViTMAE, ViT and BEiT."""

  names = NAMES
  aliases = _ALIASES
  ignored = (
    (r"^vit\.pooler\.dense\.", "the pooler, which a MAE does not have"),
  )
  optional_biases = r"\.attention\.attention\.(query|key|value)\.bias$"

  def matches(self, path: pathlib.Path, found: tensor_files.Tensors) -> bool:
    """Checks the `config.json`, without which nothing can be read."""
    if path.is_dir():
      content = json_fields.read(path / CONFIG)
      return isinstance(content, dict) and "model_type" in content
    if any(
      name.startswith(("vit.", "beit.", "embeddings.")) for name in found.shapes
    ):
      raise ConfigError(
        f"{path} has transformers' tensor names, and needs the config.json of "
        f"`save_pretrained`: put it into {path.parent} and name that directory"
      )
    return False

  def describe(
    self,
    found: tensor_files.Header,
    path: pathlib.Path,
    base: model_info.ModelInfo | None,
  ) -> model_info.ModelInfo:
    """Reads model info; see `WeightFormat.describe`."""
    config = _DEFAULTS | json_fields.read(path / CONFIG)
    if config["model_type"] not in MODEL_TYPES:
      raise ConfigError(
        f"{path / CONFIG} has model_type={config['model_type']!r}; supported "
        f"are {', '.join(MODEL_TYPES)}"
      )
    is_beit = config["model_type"] == _BEIT
    if is_beit:
      _check_beit(config, path)
    known = infer_architecture.read(found.shapes, NAMES, str(path))
    known |= _config(config, known, path)
    weight = found.shapes.get(f"{NAMES['model/head']}.weight")
    if weight:
      known |= {
        "kind": model_info.CLASSIFIER,
        "classes": weight[0],
        "class_names": _class_names(config, weight[0], path),
      }
    known |= _preprocessor(path / PREPROCESSOR, known["image_size"], base)
    if base is None:
      pooling = "mean" if is_beit else "cls"
      return model_info.ModelInfo(pooling=pooling, **known)
    return dataclasses.replace(base, **known)

  def check(self, weights: Weights) -> None:
    """Raises ConfigError if transformers has no such network."""
    found = weights.info
    assert found.image_size
    square = found.image_size[0] == found.image_size[1]
    if _is_mean(found) and not square:
      raise ConfigError(
        f"{weights.what} averages its tokens (classify.pooling=mean), which in "
        "transformers only BeitForImageClassification does, for square images, "
        f"and its images are of {found.image_size}: convert with --to=timm, or "
        "serve it with python -m mae_jax export, also as --format=onnx"
      )
    if found.patch_size[0] != found.patch_size[1] or (
      found.kind == model_info.MAE and not square
    ):
      raise ConfigError(
        f"{weights.what} has images of {found.image_size} and patches of "
        f"{found.patch_size}; transformers needs square patches, and ViTMAE "
        "square images: convert with --to=facebook"
      )

  def reader_notes(self, found: model_info.ModelInfo, out: str) -> list[str]:
    """Lists differences in pixels; `config.json` states all settings."""
    return preprocessing.transformers_notes(found)

  def tensors(
    self, weights: Weights
  ) -> tuple[list[tuple[str, tuple[int, ...]]], Iterator[np.ndarray]]:
    """Lists tensors; for BEiT under its names, and without biases of keys.

    Such a bias adds one number to all logits of a query, and a softmax ignores
    it.
    """
    specs, values = super().tensors(weights)
    if not _is_mean(weights.info):
      return specs, values
    kept = [not name.endswith(".key.bias") for name, _ in specs]
    renamed = [
      (re.sub(r"^vit\.", f"{_BEIT}.", name), shape)
      for name, shape in itertools.compress(specs, kept)
    ]
    return renamed, itertools.compress(values, kept)

  def write(
    self, weights: Weights, out: str, dtype: np.dtype, card: str
  ) -> list[str]:
    """Writes a directory."""
    content = files(weights.info, dtype.name)
    with atomic_write.atomic_folder(out, lambda _: False, OUT) as directory:
      for file, values in content.items():
        (directory / file).write_text(json.dumps(values, indent=2) + "\n")
      (directory / model_card.FILE).write_text(card, "utf-8")
      # ViTModel, the encoder alone, has no prefix.
      prefix = "vit." if weights.info.kind == model_info.ENCODER else ""
      path = str(directory / "model.safetensors")
      self.write_safetensors(weights, path, dtype, prefix)
    (architecture,) = content[CONFIG]["architectures"]
    return [
      f"load it with transformers.{architecture}.from_pretrained({out!r})"
    ]


def _is_mean(found: model_info.ModelInfo) -> bool:
  return model_card.transformers_class(found) == model_card.MEAN_POOLING


def _check_beit(config: Mapping[str, Any], path: pathlib.Path) -> None:
  """Refuses a BEiT that computes more than our classifiers."""
  for name, wanted in _MEAN_POOLING.items():
    if config.get(name) != wanted:
      raise ConfigError(
        f"{path / CONFIG} has {name}={config.get(name)}; of BEiT only "
        f"{name}={wanted} is supported, as convert --to=transformers writes it"
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
    result |= {
      "decoder": dataclasses.replace(
        decoder, heads=config["decoder_num_attention_heads"]
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


def _preprocessor(
  path: pathlib.Path,
  image_size: tuple[int, int],
  base: model_info.ModelInfo | None,
) -> dict[str, Any]:
  if not path.is_file():
    return {}
  content = json_fields.read(path)
  if not isinstance(content, dict):
    return {}
  result: dict[str, Any] = {}
  if base is None:  # otherwise the run's settings are exact
    found = preprocessing.from_transformers(content, image_size, path)
    result = found.fields()
  content = {"rescale_factor": 1 / 255} | content
  factor = json_fields.number(content, "rescale_factor", path)
  if content.get("do_rescale") is False or abs(factor * 255 - 1) > 1e-6:
    return result  # pixels are not in [0, 1]: the user must give mean and std
  if content.get("do_normalize") is False:
    content |= {"image_mean": 0.0, "image_std": 1.0}
  if content.get("image_mean") is None or content.get("image_std") is None:
    return result
  return result | {
    "mean": json_fields.numbers(content, "image_mean", path),
    "std": json_fields.numbers(content, "image_std", path),
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
    "architectures": [model_card.transformers_class(found)],
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
  if _is_mean(found):
    config |= _MEAN_POOLING | {"model_type": _BEIT, "drop_path_rate": 0.0}

  def channels(values: tuple[float, ...]) -> list[float]:
    return list(values * found.channels if len(values) == 1 else values)

  preprocessor = {
    **preprocessing.to_transformers(found),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": channels(found.mean),
    "image_std": channels(found.std),
  }
  return {CONFIG: config, PREPROCESSOR: preprocessor}
