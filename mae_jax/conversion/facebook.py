"""The reference's own `.pth` files: `{"model": state_dict, "args": ...}`."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mae_jax.conversion import (
  infer_architecture,
  model_info,
  name_maps,
  tensor_files,
)
from mae_jax.conversion.weight_format import OUT, WeightFormat, metadata
from mae_jax.conversion.weights import Weights
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError

_BLOCK = {
  "norm1": "norm1",
  "attn/qkv": "attn.qkv",
  "attn/proj": "attn.proj",
  "norm2": "norm2",
  "mlp/fc1": "mlp.fc1",
  "mlp/fc2": "mlp.fc2",
}
# Also timm's names, which has no decoder and no BatchNorm.
NAMES: name_maps.Names = {
  "model/encoder/cls_token": "cls_token",
  "model/encoder/pos_embed": "pos_embed",
  "model/encoder/patch_embed": "patch_embed.proj",
  **name_maps.blocks("model/encoder", "blocks", _BLOCK),
  "model/encoder/norm": "norm",
  "model/decoder/mask_token": "mask_token",
  "model/decoder/pos_embed": "decoder_pos_embed",
  "model/decoder/embed": "decoder_embed",
  **name_maps.blocks("model/decoder", "decoder_blocks", _BLOCK),
  "model/decoder/norm": "decoder_norm",
  "model/decoder/pred": "decoder_pred",
  "model/fc_norm": "fc_norm",
  "model/head": "head",
  "head": "head.1",
  "stats/mean": "head.0.running_mean",
  "stats/var": "head.0.running_var",
}
QKV_BIAS = r"\.attn\.qkv\.bias$"  # timm's networks can lack it
# Tensors of other Vision Transformers of timm, and of the networks that use its
# names.
UNSUPPORTED = (
  (r"^(reg_token|register_tokens)$", "register tokens"),
  (r"^(dist_token$|head_dist\.)", "a distillation token"),
  (
    r"\.(lora_|base_layer\.)",
    "LoRA adapters that merge_and_unload() of PEFT merges",
  ),
  (r"^norm_pre\.", "a norm before its blocks"),
  (r"^blocks\.\d+\.attn\.[qk]_norm\.", "norms of queries and keys"),
  (r"^blocks\.\d+\.attn\.(norm|gate)\b", "a norm or gate in its attention"),
  (r"^blocks\.\d+\.mlp\.(w\d+|fc1_g|fc1_x|norm)\.", "other MLPs"),
  (r"rel_pos|relative_position", "relative positions"),
  (r"^attn_pool\.|(^|/)MAPHead_0/", "a head that attends to tokens"),
  (r"(^|/)(pre_logits|fc)\b", "a layer in front of its head"),
)
# Files that the authors published, and their license.
_PUBLISHED = re.compile(r"mae_(pretrain|visualize|finetuned)_vit_\w+\.pth")
_PUBLISHED_SOURCE = {
  "source": "https://github.com/facebookresearch/mae",
  "license": "cc-by-nc-4.0",
}
_COUNTER = "head.0.num_batches_tracked"


class Facebook(WeightFormat):
  """The reference's format, which timm's resembles."""

  names = NAMES
  unsupported = UNSUPPORTED
  optional_biases = QKV_BIAS
  ignored = ((rf"^{_COUNTER}$", "BatchNorm's counter of batches"),)
  suffix = ".pth"
  batch_norm = True

  def matches(self, path: pathlib.Path, found: tensor_files.Tensors) -> bool:
    """Checks for `["model"]`, or for a decoder."""
    reference = (
      isinstance(found, tensor_files.PickledTensors) and found.reference
    )
    return not path.is_dir() and (
      reference or infer_architecture.has_decoder(found.shapes, NAMES)
    )

  def describe(
    self,
    found: tensor_files.Header,
    path: pathlib.Path,
    base: model_info.ModelInfo | None,
  ) -> model_info.ModelInfo:
    """Reads model info; see `WeightFormat.describe`."""
    known = read_shapes(found, path)
    if base is not None:
      return merge(base, known)
    # The reference always normalizes pixels this way.
    if known["channels"] == 3:
      known |= model_info.IMAGENET
      known["assumed"] |= model_info.IMAGENET.keys()
    return model_info.ModelInfo(**(known | _arguments(found.extra)))

  def reader_notes(self, found: model_info.ModelInfo, out: str) -> list[str]:
    """Lists settings that the reference does not find in the file."""
    notes = super().reader_notes(found, out)
    if found.mean != model_info.IMAGENET["mean"]:
      notes.append(
        f"pixels are normalized with mean {found.mean} and std {found.std}, "
        "which the reference does not read from the file"
      )
    return notes

  def write(
    self, weights: Weights, out: str, dtype: np.dtype, card: str
  ) -> list[str]:
    """Writes a `.pth` file."""
    torch = tensor_files.import_torch(out)
    specs, values = self.tensors(weights)
    model = {
      name: tensor_files.as_torch(value, dtype, name)
      for (name, _), value in zip(specs, values, strict=True)
    }
    if weights.info.kind == model_info.PROBE:
      # PyTorch requires the counter; with a fixed momentum it has no effect.
      model[_COUNTER] = torch.tensor(0)
    content: dict[str, Any] = {"model": model, **metadata(weights)}
    if weights.info.kind == model_info.MAE:
      content["args"] = argparse.Namespace(
        norm_pix_loss=bool(weights.info.norm_pix),
        mask_ratio=weights.info.mask_ratio,
      )
    with atomic_write.atomic_file(out, OUT) as file, _raise_first_error():
      torch.save(content, file)
    return []


def published(name: str) -> dict[str, str]:
  """Returns source and license of a file that the authors published, or {}."""
  return dict(_PUBLISHED_SOURCE) if _PUBLISHED.fullmatch(name) else {}


def read_shapes(
  found: tensor_files.Header, path: pathlib.Path
) -> dict[str, Any]:
  """Reads the fields of `model_info.ModelInfo` that tensors show."""
  known = infer_architecture.read(found.shapes, NAMES, str(path))
  known["classes"] = 0
  fc_norm = f"{NAMES['model/fc_norm']}.weight" in found.shapes
  heads = (f"{NAMES['head']}.weight", f"{NAMES['model/head']}.weight")
  if fc_norm and not any(head in found.shapes for head in heads):
    raise ConfigError(
      f"{path} averages tokens before its only norm (fc_norm) and has no head: "
      "an encoder needs its final norm (norm), and a classifier its head; get "
      "the file with one of them"
    )
  for kind, head in (
    (model_info.PROBE, "head"),
    (model_info.CLASSIFIER, "model/head"),
  ):
    weight = found.shapes.get(f"{NAMES[head]}.weight")
    if weight:
      known |= {
        "kind": kind,
        "classes": weight[0],
        "pooling": "mean" if fc_norm else "cls",
      }
  return known


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


@contextlib.contextmanager
def _raise_first_error() -> Iterator[None]:
  """Raises the original error if PyTorch then fails to close its archive."""
  try:
    yield
  except RuntimeError as error:
    first: BaseException = error
    while first.__context__ is not None:
      first = first.__context__
    raise first from None
