"""Converts weights from and to other formats: `python -m mae_jax convert`."""

import time

from mae_jax.conversion import (
  export_weights,
  formats,
  load,
  model_info,
  name_maps,
)
from mae_jax.conversion import inspect as inspection
from mae_jax.tools import cli
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


def convert(
  source: cli.Path,
  out: cli.Path | None = None,
  /,
  *,
  from_: str | None = None,
  to: str | None = None,
  inspect: bool = False,
  dtype: str | None = None,
  encoder_only: bool = False,
  heads: int | None = None,
  decoder_heads: int | None = None,
  image_size: cli.Size | None = None,
  target: str | None = None,
  mean: cli.Numbers | None = None,
  std: cli.Numbers | None = None,
  class_names: cli.Path | None = None,
  norm_eps: float | None = None,
  positions: str | None = None,
) -> None:
  """Converts weights between jax, facebook, transformers and timm.

  They are those of masked autoencoders, encoders and classifiers.

  Args:
    source: a workdir or one of its checkpoints/STEP (jax), a .pth of the
      reference (facebook), a directory of transformers or timm, a .safetensors
      or .bin of timm, or hf://ORG/NAME on the Hugging Face Hub.
    out: what is written: a directory (jax, transformers, timm), a .pth
      (facebook), a .safetensors (timm).
    from_: the format of SOURCE: jax, facebook, transformers or timm; by default
      it is detected.
    to: the format of OUT.
    inspect: print what SOURCE is, and write nothing.
    dtype: float32, bfloat16 or float16; by default as stored; jax files are
      always float32.
    encoder_only: leave decoder or head out.
    heads: attention heads of the encoder, where the file does not say.
    decoder_heads: attention heads of the decoder, where the file does not say.
    image_size: 224, or height and width as 192,256, where the file does not
      say.
    target: what the decoder predicts, where the file does not say: norm_pix
      (normalized patches) or raw.
    mean: of pixels in [0, 1], per channel, where the file does not say, as
      0.485,0.456,0.406.
    std: standard deviation of pixels, where the file does not say.
    class_names: a text file with the name of one class on each line, in the
      order of labels.
    norm_eps: epsilon of LayerNorms; files of transformers may say 1e-12 of
      weights that were trained with 1e-6.
    positions: keep or sincos (replace by the fixed table), for a table that is
      all zeros or is to be replaced.

  Raises:
    ConfigError: if something cannot work. Nothing is left behind.
  """
  began = time.monotonic()
  known = model_info.ModelOverrides(
    heads=heads,
    decoder_heads=decoder_heads,
    image_size=image_size,
    target=target,
    mean=mean,
    std=std,
    norm_eps=norm_eps,
    class_names=class_names and cli.read_lines(class_names, "--class_names"),
    positions=positions,
    insist=True,
    encoder_only=encoder_only,
  )
  for name, value, words in (
    ("from", from_, formats.FORMAT_NAMES),
    ("to", to, formats.FORMAT_NAMES),
    ("dtype", dtype, export_weights.DTYPES),
    ("target", known.target, model_info.TARGETS),
    ("positions", known.positions, load.POSITIONS),
  ):
    if value is not None and value not in words:
      raise ConfigError(
        f"--{name}={value} is not known: use {' or '.join(words)}"
      )
  if inspect:
    if to or out:
      raise ConfigError("--inspect writes nothing: leave --to and OUT out")
    with formats.local_copy(source) as local:
      console.info(inspection.describe(source, local, from_, known))
    return
  if out is None or to is None:
    raise ConfigError(
      f"{'OUT' if out is None else '--to'} is missing: write --to=FORMAT "
      f"SOURCE OUT, where FORMAT is {', '.join(formats.FORMAT_NAMES)}"
    )
  export_weights.check_out(out, to)
  with formats.local_copy(source) as local:
    weights = load.open_weights(
      source, local, weight_format=from_, overrides=known
    )
    total = name_maps.num_parameters(weights.shapes)
    with console.progress_bar(total, "parameter", unit_scale=True) as bar:
      notes = export_weights.write(weights, to, out, dtype, bar.update)
  found = model_info.KINDS[weights.info.kind]
  console.info(
    f"{source} ({weights.weight_format}, {found}, {total / 1e6:.3g} M "
    f"parameters) is written to {out} ({to}) in "
    f"{time.monotonic() - began:.1f} s"
  )
  for note in notes:
    console.info(f"- {note}")
