"""Writes weights in any format, reading one tensor at a time where possible.

A feature that the format cannot hold raises an error with a way out, or adds a
note.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

import numpy as np

from mae_jax import checkpoints
from mae_jax.config import lookup
from mae_jax.conversion import (
  formats,
  hub,
  model_card,
  model_info,
  name_maps,
  provenance,
  run_config,
  tensor_files,
)
from mae_jax.conversion.weight_format import OUT, WeightFormat
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
  card: model_card.Card | None = None,
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
    card: the model card of a folder; None for that of `make_card`.

  Returns:
    Notes about tensors left out and settings the reader must know.

  Raises:
    ConfigError: if the format cannot hold the network, or `out` exists.
  """
  check_out(out, weight_format)
  if weight_format == formats.JAX:
    if dtype not in (None, "float32"):
      raise ConfigError(
        f"--dtype={dtype}: checkpoints of this project are float32, which "
        "holds the values of every other dtype: leave --dtype out"
      )
    _write_jax(_with_progress(weights, progress), out)
    return weights.notes
  form = lookup(formats.FORMATS, weight_format, "--to")
  if weights.info.kind == model_info.MAE:
    _check_objective(weights)
  converted = _convertible(weights, form)
  stored = converted.dtype if dtype is None else DTYPES[dtype]
  text = ""
  if weight_format in model_card.LIBRARIES:
    text = model_card.write(card or _make_card(weights, converted, form))
  written = form.write(_with_progress(converted, progress), out, stored, text)
  return (*_notes(converted, form, out), *written)


def make_card(
  weights: Weights,
  weight_format: str,
  *,
  repo_id: str = "",
  license: str | None = None,
  results: Mapping[str, float] | None = None,
  picture: str = "",
) -> model_card.Card:
  """Returns the model card of weights that `write` writes to a folder.

  Args:
    weights: the weights, before they are converted.
    weight_format: "transformers" or "timm".
    repo_id: "ORG/NAME" on the Hub; "" for a local folder.
    license: license as the Hub names it, such as "apache-2.0"; None for that of
      the weights that the network started from.
    results: results of evaluation by name.
    picture: name of a picture that is saved in the folder; "" for none.

  Raises:
    ConfigError: if the Hub has no library for the format, or the format cannot
      hold the network.
  """
  if weight_format not in model_card.LIBRARIES:
    raise ConfigError(
      f"{weight_format} has no folders for the Hub: use "
      f"{' or '.join(model_card.LIBRARIES)}"
    )
  form = formats.FORMATS[weight_format]
  return dataclasses.replace(
    _make_card(weights, _convertible(weights, form), form),
    repo_id=repo_id,
    license=license,
    results=results or {},
    picture=picture,
  )


def _make_card(
  weights: Weights, converted: Weights, form: WeightFormat
) -> model_card.Card:
  return model_card.Card(
    info=converted.info,
    run=converted.run,
    weight_format=str(form),
    origin=provenance.trace(weights.run),
    notes=_notes(converted, form, ""),
  )


def _notes(weights: Weights, form: WeightFormat, out: str) -> tuple[str, ...]:
  """Returns what a reader of converted weights must know."""
  scaled = []
  if weights.run.config.data.value_range:
    low, high = weights.run.config.data.value_range
    scaled = [
      f"data.value_range={low:g},{high:g}: pixels of {low:g} become 0 and "
      f"those of {high:g} become 1, before mean and std; {form} does not do "
      "this, so prepare images yourself"
    ]
  return (*weights.notes, *form.reader_notes(weights.info, out), *scaled)


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
        "other program supports: convert only its encoder (--encoder_only of "
        "python -m mae_jax convert)"
      )


def _with_progress(weights: Weights, progress: Progress) -> Weights:
  def read(path: str) -> np.ndarray:
    array = weights.read(path)
    progress(array.size)
    return array

  return dataclasses.replace(weights, read=read)


def check_out(out: str, weight_format: str) -> None:
  """Raises ConfigError if weights of this format cannot be written to `out`."""
  form = formats.FORMATS.get(weight_format)
  if form and not form.writable:
    raise ConfigError(
      f"--to={weight_format}: files of this format are only read; use --to=timm"
    )
  suffix = form.suffix if form else ""
  may_be_folder = form is not None and form.folder
  if may_be_folder and not out.endswith(formats.PICKLES):
    suffix = ""
  if not out.endswith(suffix):
    raise ConfigError(
      f"{OUT}={out} does not end in {suffix}, as files for {weight_format} "
      f"must: use {os.path.splitext(out)[0]}{suffix}"
    )
  if hub.is_hub(out):
    raise ConfigError(
      f"{OUT}={out} is on the Hub: write to a local folder, then push it (see "
      "docs/guides/convert_share.md)"
    )
  if form and storage.is_remote(out):
    raise ConfigError(
      f"{OUT}={out} is in a bucket, where only checkpoints of this project "
      "can be written: write to a local path, then copy it"
    )
  if storage.absolute(out).exists():
    raise ConfigError(
      f"{OUT}={out} exists already: use another path, or remove it first"
    )


def _convertible(weights: Weights, form: WeightFormat) -> Weights:
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
    if not form.batch_norm:
      weights = fold_batch_norm(weights)
  form.check(weights)
  if found.kind == model_info.MAE and not form.decoder:
    weights = _without_decoder(weights, form)
  return add_position_tables(_with_provenance(weights))


def _with_provenance(weights: Weights) -> Weights:
  """Adds source and license, as a file does not name the run's `init_from`."""
  origin = {**weights.run.origin, **provenance.trace(weights.run)}
  return dataclasses.replace(
    weights, run=dataclasses.replace(weights.run, origin=origin)
  )


def _without_decoder(weights: Weights, form: WeightFormat) -> Weights:
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
      f"left out: the decoder ({count / 1e6:.3g} M parameters), which {form} "
      "does not have",
    ),
  )


def _write_jax(weights: Weights, out: str) -> None:
  writer = checkpoints.ArrayWriter(weights.read)
  if storage.is_remote(out):
    writer.write(out, weights.shapes, weights.run)
    weights.finish()
    return
  with atomic_write.atomic_folder(out, lambda _: False, OUT) as directory:
    writer.write(directory, weights.shapes, weights.run)
    weights.finish()
