"""Writes weights in any dialect, each tensor as it is read where that can be.

What a format has no place for is an error with the way out, or a note.
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
from etils import epath

from mae_jax import checkpoints
from mae_jax.config import lookup
from mae_jax.conversion import (
  formats,
  import_weights,
  run_config,
  tensor_files,
  timm,
  transformers,
)
from mae_jax.conversion import model_info as facts_lib
from mae_jax.conversion import name_maps as names_lib
from mae_jax.conversion import weights as weights_lib
from mae_jax.utils import atomic_write, storage
from mae_jax.utils.errors import ConfigError

# By their name on the command line.
DTYPES: dict[str, np.dtype] = {
  "float32": np.dtype(np.float32),
  "bfloat16": tensor_files.BFLOAT16,
  "float16": np.dtype(np.float16),
}
Progress = Callable[[int], object]


def write(
  weights: weights_lib.Weights,
  dialect: str,
  out: str,
  dtype: str | None = None,
  progress: Progress = lambda _: None,
) -> tuple[str, ...]:
  """Writes weights.

  Args:
    weights: what to write.
    dialect: a name in `table.NAMES`.
    out: a file or directory that is not there yet; it appears when it is whole.
    dtype: a name in DTYPES; None for the type that the weights are stored in.
      A checkpoint of ours is always of float32.
    progress: is told the bytes of each array.

  Returns:
    What was left out or is to be known, a line each.

  Raises:
    ConfigError: if the format cannot hold the network, or `out` is there.
  """
  make = lookup(_WRITERS, dialect, "--to")
  check_out(out, dialect)
  stored = weights.dtype if dtype is None else DTYPES[dtype]
  notes = weights.notes
  if dialect != formats.JAX:
    if weights.facts.kind == facts_lib.MAE:
      _check_usual(weights)
    weights = _fitting(weights, dialect)
    notes = weights.notes + _lost(weights, dialect)
  elif dtype not in (None, "float32"):
    raise ConfigError(
      f"--dtype={dtype}: checkpoints of this project are of float32, which "
      "holds the values of every other type: leave it out"
    )
  return notes + tuple(make(_watched(weights, progress), out, stored))


def _check_usual(weights: weights_lib.Weights) -> None:
  """Refuses an autoencoder that other programs would not run as it was trained.

  Raises:
    ConfigError: with the way to take the encoder alone.
  """
  for name, usual in (
    ("masked_input", ["dropped"]),
    ("target", list(facts_lib.TARGETS)),
  ):
    value = getattr(weights.run.config.objective, name)
    if value not in usual:
      raise ConfigError(
        f"{weights.what} was trained with objective.{name}={value}, which no "
        "other program knows: take its encoder alone (--encoder_only)"
      )


def _watched(
  weights: weights_lib.Weights, progress: Progress
) -> weights_lib.Weights:
  def read(path: str) -> np.ndarray:
    array = weights.read(path)
    progress(array.size)
    return array

  return dataclasses.replace(weights, read=read)


_FLAG = "OUT"
_SUFFIX = {"facebook": ".pth", "timm": ".safetensors"}


def check_out(out: str, dialect: str) -> None:
  """Raises ConfigError if `out` is no place to write the dialect to."""
  suffix = _SUFFIX.get(dialect)
  if suffix and not out.endswith(suffix):
    raise ConfigError(
      f"{_FLAG}={out} does not end in {suffix}, as files for {dialect} do: "
      f"name such a file, as {os.path.splitext(out)[0]}{suffix}"
    )
  if dialect != formats.JAX and storage.is_remote(out):
    raise ConfigError(
      f"{_FLAG}={out} is in a bucket, where only checkpoints of this project "
      "are written: name a path on a disk, and copy it"
    )
  if storage.absolute(out).exists():
    raise ConfigError(
      f"{_FLAG}={out} is there already: name another, or remove it first"
    )


def _fitting(weights: weights_lib.Weights, dialect: str) -> weights_lib.Weights:
  """What another dialect can hold of it."""
  found = weights.facts
  if found.kind == facts_lib.PROBE:
    if found.pooling != "cls":
      raise ConfigError(
        f"{weights.what} is a linear probe with classify.pooling="
        f"{found.pooling}, which no other format holds: probe with "
        "--config.classify.pooling=cls, or serve it with python -m "
        "mae_jax.tools.export"
      )
    if dialect != "facebook":
      weights = weights_lib.folded(weights)
  if dialect == "transformers":
    _check_transformers(weights)
  if found.kind == facts_lib.MAE and dialect == "timm":
    weights = _without_decoder(weights)
  return weights_lib.with_tables(weights)


def _check_transformers(weights: weights_lib.Weights) -> None:
  found = weights.facts
  if found.kind == facts_lib.CLASSIFIER and found.pooling == "mean":
    raise ConfigError(
      f"{weights.what} averages its tokens (classify.pooling=mean), and "
      "transformers' ViTForImageClassification takes the class token: write "
      "it with --to=timm, or fine-tune with --config.classify.pooling=cls"
    )
  assert found.image_size
  square = found.image_size[0] == found.image_size[1]
  if found.patch_size[0] != found.patch_size[1] or (
    found.kind == facts_lib.MAE and not square
  ):
    raise ConfigError(
      f"{weights.what} has images of {found.image_size} and patches of "
      f"{found.patch_size}; transformers has square patches, and ViTMAE square "
      "images: write it with --to=facebook"
    )


def _without_decoder(weights: weights_lib.Weights) -> weights_lib.Weights:
  prefix = "model/decoder/"
  count = names_lib.size(weights.shapes, prefix)
  found = facts_lib.with_overrides(
    weights.facts, facts_lib.ModelOverrides(no_decoder=True)
  )
  return dataclasses.replace(
    weights,
    facts=found,
    run=run_config.to_run(found, weights.what, weights.run),
    shapes={
      k: v for k, v in weights.shapes.items() if not k.startswith(prefix)
    },
    notes=(
      *weights.notes,
      f"left out: the decoder ({count / 1e6:.3g} M parameters), which timm has "
      "no place for",
    ),
  )


def _lost(weights: weights_lib.Weights, dialect: str) -> tuple[str, ...]:
  """What the program that reads the format assumes, and is not so."""
  found, notes = weights.facts, []
  if dialect != "transformers":
    if found.norm_eps != 1e-6:
      notes.append(
        f"LayerNorm's eps is {found.norm_eps:g}, which {dialect} does not read "
        "off the file: give it norm_layer=partial(nn.LayerNorm, "
        f"eps={found.norm_eps:g})"
      )
    if found.activation != "gelu":
      notes.append(
        f"the activation is {found.activation}, which {dialect} does not read "
        "off the file: give it the act_layer"
      )
  if dialect == "facebook" and found.mean != facts_lib.IMAGENET["mean"]:
    notes.append(
      f"pixels are normalized with mean {found.mean} and std {found.std}, "
      "which the reference does not read off the file"
    )
  return tuple(notes)


def _tensors(
  weights: weights_lib.Weights, names: names_lib.Names
) -> tuple[list[tuple[str, tuple[int, ...]]], Iterator[np.ndarray]]:
  """Names and shapes of all tensors, and their values as they are read."""
  found = weights.facts
  patch = (*found.patch_size, found.channels)
  pieces = dict(names_lib.all_pieces(weights.shapes, names, patch))
  specs = [(x.name, x.their_shape) for part in pieces.values() for x in part]

  def values() -> Iterator[np.ndarray]:
    for path, part in pieces.items():
      array = weights.read(path)
      for piece in part:
        yield piece.take(array)
      del array  # before the next one is read
    weights.finish()

  return specs, values()


def _metadata(weights: weights_lib.Weights) -> dict[str, str]:
  return {import_weights.METADATA: json.dumps(run_config.metadata(weights.run))}


def _write_jax(
  weights: weights_lib.Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  writer = checkpoints.ArrayWriter(weights.read)
  if storage.is_remote(out):
    writer.write(out, weights.shapes, weights.run)
    weights.finish()
    return ()
  with _folder(out) as directory:
    writer.write(directory, weights.shapes, weights.run)
    weights.finish()
  return ()


def _write_facebook(
  weights: weights_lib.Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  torch = tensor_files.import_torch(out)
  specs, values = _tensors(weights, formats.FORMATS["facebook"].names)
  model = {
    name: tensor_files.as_torch(value, dtype, name)
    for (name, _), value in zip(specs, values, strict=True)
  }
  if weights.facts.kind == facts_lib.PROBE:
    # PyTorch wants it; with a fixed momentum it counts for nothing.
    model["head.0.num_batches_tracked"] = torch.tensor(0)
  content: dict[str, Any] = {"model": model, **_metadata(weights)}
  if weights.facts.kind == facts_lib.MAE:
    content["args"] = argparse.Namespace(
      norm_pix_loss=bool(weights.facts.norm_pix),
      mask_ratio=weights.facts.mask_ratio,
    )
  with atomic_write.atomic_file(out, _FLAG) as file, _first_error():
    torch.save(content, file)
  return ()


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
  """Raises what came first, where PyTorch cannot close its archive after it."""
  try:
    yield
  except RuntimeError as error:
    first: BaseException = error
    while first.__context__ is not None:
      first = first.__context__
    raise first from None


def _write_safetensors(
  weights: weights_lib.Weights, dialect: str, out: str, dtype: np.dtype
) -> None:
  specs, values = _tensors(weights, formats.FORMATS[dialect].names)
  if weights.facts.kind == facts_lib.ENCODER:  # ViTModel has no prefix
    specs = [(name.removeprefix("vit."), shape) for name, shape in specs]
  with atomic_write.atomic_file(out, _FLAG) as file:
    tensor_files.write_safetensors(
      file, specs, dtype, values, {"format": "pt"} | _metadata(weights)
    )


def _write_timm(
  weights: weights_lib.Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  _write_safetensors(weights, "timm", out, dtype)
  return (f"it is loaded by {timm.create_model(weights.facts, out)}",)


def _write_transformers(
  weights: weights_lib.Weights, out: str, dtype: np.dtype
) -> Sequence[str]:
  name = next(name for name, value in DTYPES.items() if value == dtype)
  files = transformers.files(weights.facts, name)
  with _folder(out) as directory:
    for file, content in files.items():
      (directory / file).write_text(json.dumps(content, indent=2) + "\n")
    _write_safetensors(
      weights, "transformers", str(directory / "model.safetensors"), dtype
    )
  (architecture,) = files[transformers.CONFIG]["architectures"]
  return (
    f"it is loaded by transformers.{architecture}.from_pretrained({out!r})",
  )


def _folder(out: str) -> contextlib.AbstractContextManager[epath.Path]:
  return atomic_write.atomic_folder(out, lambda _: False, _FLAG)


_WRITERS: dict[
  str, Callable[[weights_lib.Weights, str, np.dtype], Sequence[str]]
] = {
  formats.JAX: _write_jax,
  "facebook": _write_facebook,
  "transformers": _write_transformers,
  "timm": _write_timm,
}
