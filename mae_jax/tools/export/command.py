"""Exports files that serve without mae_jax: `python -m mae_jax export`."""

import dataclasses
import gc
import importlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from mae_jax import conversion
from mae_jax.config import lookup
from mae_jax.data import prepare
from mae_jax.evals import load_model
from mae_jax.models import classifiers, factory
from mae_jax.tools import cli, feature_extractor
from mae_jax.tools.export import manifest, quantize, reconstruction, verify
from mae_jax.tools.feature_extractor import ImageFunction
from mae_jax.utils import atomic_write, console, storage
from mae_jax.utils.errors import ConfigError

# Modules of this package with `write` and `load`. Each is imported when it is
# chosen, because TensorFlow and ONNX are large, and may be missing.
FORMATS = ("stablehlo", "savedmodel", "onnx")
WHAT = ("classifier", "features", "reconstruction")


def write(
  checkpoint: cli.Path,
  out: cli.Path,
  *,
  format: str = "stablehlo",
  what: str | None = None,
  weights: str = "float32",
  dtype: str | None = None,
  pool: str | None = None,
  layer: int | None = None,
  image_size: cli.Size | None = None,
  fit: str | None = None,
) -> None:
  """Exports a network to StableHLO, SavedModel or ONNX.

  The folder holds a program from uint8 images [batch, H, W, C], of any batch
  size, to features, logits or reconstructions; its weights; and export.json,
  which describes it. The result is read from disk again and compared with the
  network.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    out: a folder on a disk; it appears when all is done and replaces an
      earlier export.
    format: stablehlo, for jax.export; savedmodel, for TensorFlow; or onnx.
    what: classifier, features, or reconstruction: the autoencoder, from images
      and a bool mask [batch, patches] (true = masked, any number) to images in
      the range of the input, with predictions in masked patches. By default
      classifier if the checkpoint has a head, else features.
    weights: how kernels are stored: float32, bfloat16, or int8 with a scale
      for each output channel. The program computes with float32.
    dtype: float32 or bfloat16 activations; by default the run's, for onnx
      float32.
    pool: mean of the patch tokens, cls token, all tokens with the class token
      first, or grid, the patch tokens as [rows, columns, D]; by default mean.
    layer: the block after which tokens are taken, 1 for the first; by default
      the last. Tokens of the last block pass the encoder's final norm, if it
      has one; earlier ones are raw. An encoder fine-tuned with mean pooling has
      no final norm: its last tokens are raw too, but their mean passes the norm
      before the head (fc_norm).
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated, as in fine-tuning.
    fit: crop or squash: how export.json says to prepare images; by default as
      in evaluation (data.eval_fit).

  Raises:
    ConfigError: if an option is wrong; `out` is unchanged.
    TrainingError: if the outputs of the export differ from the model's; `out`
      is unchanged.
  """
  began = time.monotonic()
  lookup(dict.fromkeys(FORMATS), format, "--format")
  lookup(dict.fromkeys(quantize.KINDS), weights, "--weights")
  if what is not None:
    lookup(dict.fromkeys(WHAT), what, "--what")
  if dtype is not None:
    lookup(factory.DTYPES, dtype, "--dtype")
  if fit is not None:
    lookup(dict.fromkeys(prepare.FITS), fit, "--fit")
  if pool is not None:
    lookup(feature_extractor.POOLS, pool, "--pool")
  with storage.os_errors(checkpoint):
    # Resolved once: while a run continues, a newer checkpoint can appear.
    step = conversion.locate(checkpoint)
    run = conversion.read_metadata(step)
  options = {"pool": pool, "layer": layer, "image_size": image_size, "fit": fit}
  what = _resolve_what(what, run.config.task, checkpoint, options)
  if format == "onnx":
    _check_onnx(dtype, what, run.config.objective.masked_input)
    dtype = "float32"
  dtype = dtype or run.config.model.dtype
  about = {
    "checkpoint": str(step),
    "task": run.config.task,
    "what": what,
    "format": format,
    "weights": weights,
    "activations": dtype,
  }
  with atomic_write.atomic_folder(out, manifest.is_export) as folder:
    lines = _fill(folder, step, about, options)
    files = filter(pathlib.Path.is_file, pathlib.Path(folder).rglob("*"))
    total = _megabytes(sum(each.stat().st_size for each in files))
  console.info(f"{out}: {total}, in {time.monotonic() - began:.1f} s")
  for line in lines:
    console.info(line)


def _fill(
  folder: epath.Path,
  step: epath.Path,
  about: dict[str, Any],
  options: dict[str, Any],
) -> list[str]:
  """Writes the export, compares it, and returns lines to print."""
  form = importlib.import_module(f"mae_jax.tools.export.{about['format']}")
  kind, dtype = about["weights"], about["activations"]
  platform = factory.ONNX if about["format"] == "onnx" else factory.ANY_PLATFORM
  network = _open(step, about["what"], dtype, platform, options)
  stored = quantize.store(network.params, kind)
  size = sum(each.nbytes for each in stored.values())
  atomic_write.check_space(str(folder), size)
  call = _caller(network.apply)
  inputs = verify.random_inputs(network.inputs)
  wanted = verify.values(_caller(network.reference), stored, inputs)
  exact = wanted
  if kind != "float32":
    exact = verify.values(network.reference, network.params, inputs)
  facts = about | manifest.describe(
    network, wanted[0].shape[1:], options["fit"]
  )
  facts |= form.write(folder, call, stored, network.inputs, network.output)
  # Frees the weights before they are read again. The functions of TensorFlow
  # are reference cycles, hence the collection.
  del network, stored
  gc.collect()
  serve = form.load(folder)
  apart = verify.check([serve(*each) for each in inputs], wanted, dtype)
  rounded = verify.difference(wanted, exact)
  measured = {"largest_difference": apart, "rounding_of_weights": rounded}
  manifest.write(folder, facts | measured)
  shape = ", ".join(map(str, facts["output"]["shape"]))
  lines = [
    f"{facts['output']['name']} [{shape}], {kind} weights of "
    f"{_megabytes(size)}",
    f"largest difference from the model's outputs: {apart:.1e} (largest output "
    f"{verify.largest(wanted):.3g})",
  ]
  if kind != "float32":
    lines.append(f"largest difference from float32 weights: {rounded:.1e}")
  return lines


def _open(
  step: epath.Path,
  what: str,
  dtype: str,
  platform: str,
  options: dict[str, Any],
) -> ImageFunction:
  with storage.os_errors(step):
    if what == "classifier":
      return _classifier(step, dtype, platform, options["image_size"])
    if what == "reconstruction":
      return reconstruction.from_checkpoint(
        step, options["image_size"], dtype, platform
      )
    return feature_extractor.from_checkpoint(
      step,
      verify.cpu_mesh(),
      pool=options["pool"] or "mean",
      layer=options["layer"],
      image_size=options["image_size"],
      dtype=dtype,
      platform=platform,
    )


def _classifier(
  step: epath.Path, dtype: str, platform: str, size: tuple[int, int] | None
) -> ImageFunction:
  mesh = verify.cpu_mesh()
  found = load_model.resize(load_model.load(step, mesh, head=True), size, mesh)
  model = dataclasses.replace(found.config.model, dtype=dtype)
  config = dataclasses.replace(found.config, model=model)
  found = dataclasses.replace(found, config=config, platform=platform)
  params = found.params
  if classifiers.AVERAGED in params:  # exports use these alone
    params = {classifiers.MODEL: classifiers.inference_params(params)}
  info = {"class_names": list(found.class_names)}
  logits = found.classifier.logits
  return ImageFunction(logits, params, config.data, "logits", info)


def _resolve_what(
  what: str | None, task: str, checkpoint: str, options: dict[str, Any]
) -> str:
  """Returns a name in WHAT; checks options before weights load."""
  has_head = task in classifiers.CLASSIFIERS
  if what == "classifier" and not has_head:
    raise ConfigError(
      f"--what=classifier: {checkpoint} comes from task={task} and has no "
      "head: use --what=features, or fine-tune or probe the checkpoint first"
    )
  what = what or ("classifier" if has_head else "features")
  for name in ("pool", "layer"):
    value = options[name]
    if what != "features" and value is not None:
      raise ConfigError(
        f"--{name}={value} applies to features, and this export is a "
        f"{what}: remove --{name}, or add --what=features"
      )
  return what


def _check_onnx(dtype: str | None, what: str, masked_input: str) -> None:
  if dtype not in (None, "float32"):
    raise ConfigError(
      f"--dtype={dtype}: ONNX Runtime has no {dtype} operators for CPUs: use "
      "--dtype=float32; --weights=bfloat16 makes the file smaller"
    )
  if what == "reconstruction" and masked_input.endswith("noise"):
    raise ConfigError(
      "--format=onnx: the network was trained with objective.masked_input="
      f"{masked_input}, and ONNX has no such noise: use --format=stablehlo"
    )


def _caller(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  return lambda stored, *inputs: apply(quantize.restore(stored), *inputs)


def _megabytes(size: int) -> str:
  return f"{size / 1e6:.3g} MB"
