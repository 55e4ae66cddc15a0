"""Writes weights in any format, reading one tensor at a time where possible.

A feature that the format cannot hold raises an error with a way out, or adds a
note.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mae_jax import checkpoints
from mae_jax.config import lookup
from mae_jax.conversion import (
  formats,
  import_weights,
  model_info,
  name_maps,
  run_config,
  tensor_files,
  timm,
  transformers,
)
from mae_jax.conversion.weights import (
  Weights,
  add_position_tables,
  fold_batch_norm,
)
from mae_jax.utils import atomic_write, storage
from mae_jax.utils.errors import ConfigError

# By the values of --dtype.
DTYPES: dict[str, np.dtype] = {
  "float32": np.dtype(np.float32),
  "bfloat16": tensor_files.BFLOAT16,
  "float16": np.dtype(np.float16),
}
Progress = Callable[[int], object]


def write(
  weights: Weights,
  weight_format: str,
  out: str,
  dtype: str | None = None,
  progress: Progress = lambda _: None,
) -> tuple[str, ...]:
  """Writes weights.

  Args:
    weights: the weights to write.
    weight_format: a name in `formats.FORMAT_NAMES`.
    out: a file or directory that does not exist yet; it appears when it is
      complete.
    dtype: a name in DTYPES; None for the dtype of the stored weights. A
      checkpoint of this project is always float32.
    progress: called with the number of values of each array.

  Returns:
    Notes about tensors left out and settings the reader must know.

  Raises:
    ConfigError: if the format cannot hold the network, or `out` exists.
  """
  make = lookup(_WRITERS, weight_format, "--to")
  check_out(out, weight_format)
  stored = weights.dtype if dtype is None else DTYPES[dtype]
  notes = weights.notes
  if weight_format != formats.JAX:
    if weights.info.kind == model_info.MAE:
      _check_objective(weights)
    weights = _convertible(weights, weight_format)
    notes = weights.notes + _reader_notes(weights, weight_format)
  elif dtype not in (None, "float32"):
    raise ConfigError(
      f"--dtype={dtype}: checkpoints of this project are float32, which holds "
      "the values of every other dtype: leave --dtype out"
    )
  return notes + tuple(make(_with_progress(weights, progress), out, stored))


def _check_objective(weights: Weights) -> None:
  """Refuses an autoencoder whose objective other programs do not support."""
  for name, supported in (
    ("masked_input", ["dropped"]),
    ("target", list(model_info.TARGETS)),
  ):
    value = getattr(weights.run.config.objective, name)
    if value not in supported:
      raise ConfigError(
        f"{weights.what} was trained with objective.{name}={value}, which no "
        "other program supports: convert only its encoder (--encoder_only)"
      )


def _with_progress(weights: Weights, progress: Progress) -> Weights:
  def read(path: str) -> np.ndarray:
    array = weights.read(path)
    progress(array.size)
    return array

  return dataclasses.replace(weights, read=read)


_FLAG = "OUT"
_SUFFIX = {"facebook": ".pth", "timm": ".safetensors"}


def check_out(out: str, weight_format: str) -> None:
  """Raises ConfigError if weights of this format cannot be written to `out`."""
  suffix = _SUFFIX.get(weight_format)
  if suffix and not out.endswith(suffix):
    raise ConfigError(
      f"{_FLAG}={out} does not end in {suffix}, as files for {weight_format} "
      f"must: use {os.path.splitext(out)[0]}{suffix}"
    )
  if weight_format != formats.JAX and storage.is_remote(out):
    raise ConfigError(
      f"{_FLAG}={out} is in a bucket, where only checkpoints of this project "
      "can be written: write to a local path, then copy it"
    )
  if storage.absolute(out).exists():
    raise ConfigError(
      f"{_FLAG}={out} exists already: use another path, or remove it first"
    )


def _convertible(weights: Weights, weight_format: str) -> Weights:
  """Converts weights to what the format can hold."""
  found = weights.info
  if found.kind == model_info.PROBE:
    if found.pooling != "cls":
      raise ConfigError(
        f"{weights.what} is a linear probe with classify.pooling="
        f"{found.pooling}, which no other format can hold: probe with "
        "--config.classify.pooling=cls, or serve it with python -m "
        "mae_jax export"
      )
    if weight_format != "facebook":
      weights = fold_batch_norm(weights)
  if weight_format == "transformers":
    _check_transformers(weights)
  if found.kind == model_info.MAE and weight_format == "timm":
    weights = _without_decoder(weights)
  return add_position_tables(weights)


def _check_transformers(weights: Weights) -> None:
  found = weights.info
  if found.kind == model_info.CLASSIFIER and found.pooling == "mean":
    raise ConfigError(
      f"{weights.what} averages its tokens (classify.pooling=mean), but "
      "transformers' ViTForImageClassification uses the class token: convert "
      "with --to=timm, or fine-tune with --config.classify.pooling=cls"
    )
  assert found.image_size
  square = found.image_size[0] == found.image_size[1]
  if found.patch_size[0] != found.patch_size[1] or (
    found.kind == model_info.MAE and not square
  ):
    raise ConfigError(
      f"{weights.what} has images of {found.image_size} and patches of "
      f"{found.patch_size}; transformers needs square patches, and ViTMAE "
      "square images: convert with --to=facebook"
    )


def _without_decoder(weights: Weights) -> Weights:
  prefix = "model/decoder/"
  count = name_maps.num_parameters(weights.shapes, prefix)
  found = model_info.with_overrides(
    weights.info, model_info.ModelOverrides(no_decoder=True)
  )
  return dataclasses.replace(
    weights,
    info=found,
    run=run_config.to_run(found, weights.what, weights.run),
    shapes={
      k: v for k, v in weights.shapes.items() if not k.startswith(prefix)
    },
    notes=(
      *weights.notes,
      f"left out: the decoder ({count / 1e6:.3g} M parameters), which timm "
      "does not have",
    ),
  )


def _reader_notes(weights: Weights, weight_format: str) -> tuple[str, ...]:
  """Lists settings that the reading program assumes wrongly."""
  found, notes = weights.info, []
  if weight_format != "transformers":
    if found.norm_eps != 1e-6:
      notes.append(
        f"LayerNorm's eps is {found.norm_eps:g}, which {weight_format} does "
        "not read from the file: pass norm_layer=partial(nn.LayerNorm, "
        f"eps={found.norm_eps:g})"
      )
    if found.activation != "gelu":
      notes.append(
        f"the activation is {found.activation}, which {weight_format} does not "
        "read from the file: pass act_layer"
      )
  if weight_format == "facebook" and found.mean != model_info.IMAGENET["mean"]:
    notes.append(
      f"pixels are normalized with mean {found.mean} and std {found.std}, "
      "which the reference does not read from the file"
    )
  return tuple(notes)


def _tensors(
  weights: Weights, names: name_maps.Names
) -> tuple[list[tuple[str, tuple[int, ...]]], Iterator[np.ndarray]]:
  """Returns names and shapes of all tensors, and lazily read values."""
  found = weights.info
  patch = (*found.patch_size, found.channels)
  pieces = dict(name_maps.all_pieces(weights.shapes, names, patch))
  specs = [(x.name, x.foreign_shape) for part in pieces.values() for x in part]

  def values() -> Iterator[np.ndarray]:
    for path, part in pieces.items():
      array = weights.read(path)
      for piece in part:
        yield piece.to_foreign(array)
      del array  # before the next one is read
    weights.finish()

  return specs, values()


def _metadata(weights: Weights) -> dict[str, str]:
  return {
    import_weights.METADATA: json.dumps(run_config.to_metadata(weights.run))
  }


def _write_jax(weights: Weights, out: str, dtype: np.dtype) -> Sequence[str]:
  writer = checkpoints.ArrayWriter(weights.read)
  if storage.is_remote(out):
    writer.write(out, weights.shapes, weights.run)
    weights.finish()
    return ()
  with atomic_write.atomic_folder(out, lambda _: False, _FLAG) as directory:
    writer.write(directory, weights.shapes, weights.run)
    weights.finish()
  return ()


def _write_facebook(
  weights: Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  torch = tensor_files.import_torch(out)
  specs, values = _tensors(weights, formats.FORMATS["facebook"].names)
  model = {
    name: tensor_files.as_torch(value, dtype, name)
    for (name, _), value in zip(specs, values, strict=True)
  }
  if weights.info.kind == model_info.PROBE:
    # PyTorch requires the counter; with a fixed momentum it has no effect.
    model["head.0.num_batches_tracked"] = torch.tensor(0)
  content: dict[str, Any] = {"model": model, **_metadata(weights)}
  if weights.info.kind == model_info.MAE:
    content["args"] = argparse.Namespace(
      norm_pix_loss=bool(weights.info.norm_pix),
      mask_ratio=weights.info.mask_ratio,
    )
  with atomic_write.atomic_file(out, _FLAG) as file, _raise_first_error():
    torch.save(content, file)
  return ()


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


def _write_safetensors(
  weights: Weights, weight_format: str, out: str, dtype: np.dtype
) -> None:
  specs, values = _tensors(weights, formats.FORMATS[weight_format].names)
  if weights.info.kind == model_info.ENCODER:  # ViTModel has no prefix
    specs = [(name.removeprefix("vit."), shape) for name, shape in specs]
  with atomic_write.atomic_file(out, _FLAG) as file:
    tensor_files.write_safetensors(
      file, specs, dtype, values, {"format": "pt"} | _metadata(weights)
    )


def _write_timm(weights: Weights, out: str, dtype: np.dtype) -> Sequence[str]:
  _write_safetensors(weights, "timm", out, dtype)
  return (f"load it with {timm.create_model(weights.info, out)}",)


def _write_transformers(
  weights: Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  name = next(name for name, value in DTYPES.items() if value == dtype)
  files = transformers.files(weights.info, name)
  with atomic_write.atomic_folder(out, lambda _: False, _FLAG) as directory:
    for file, content in files.items():
      (directory / file).write_text(json.dumps(content, indent=2) + "\n")
    _write_safetensors(
      weights, "transformers", str(directory / "model.safetensors"), dtype
    )
  (architecture,) = files[transformers.CONFIG]["architectures"]
  return (f"load it with transformers.{architecture}.from_pretrained({out!r})",)


_WRITERS: dict[str, Callable[[Weights, str, np.dtype], Sequence[str]]] = {
  formats.JAX: _write_jax,
  "facebook": _write_facebook,
  "transformers": _write_transformers,
  "timm": _write_timm,
}
