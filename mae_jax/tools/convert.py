"""Weights from and to the reference, transformers and timm.

python -m mae_jax convert --to=jax mae_pretrain_vit_large_full.pth OUT
python -m mae_jax convert --to=transformers WORKDIR OUT
python -m mae_jax convert --inspect FILE
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import tqdm

from mae_jax.conversion import export_weights, formats, load
from mae_jax.conversion import inspect as inspection
from mae_jax.conversion import model_info as facts_lib
from mae_jax.tools import cli
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError


def convert(
  source: str,
  out: str | None = None,
  *,
  inspect: bool = False,
  dialect: str | None = None,
  to: str | None = None,
  dtype: str | None = None,
  class_names: str | None = None,
  **hints: Any,
) -> None:
  """Converts weights, or says what they are.

  Args:
    source: a checkpoint of ours, a file, or a directory with a config.json.
    out: what is written.
    inspect: whether to print a table instead.
    dialect: of the source, a name in `table.NAMES`; None to find it out.
    to: of what is written.
    dtype: see `writing.write`.
    class_names: a file with a name a line.
    **hints: the other fields of `facts.Hints`.

  Raises:
    ConfigError: if something cannot work. Nothing is left behind.
  """
  began = time.monotonic()
  known = facts_lib.ModelOverrides(
    class_names=None
    if class_names is None
    else cli.lines(class_names, "--class_names"),
    insist=True,
    **hints,
  )
  for name, value, words in (
    ("from", dialect, formats.FORMAT_NAMES),
    ("to", to, formats.FORMAT_NAMES),
    ("dtype", dtype, export_weights.DTYPES),
    ("target", known.target, facts_lib.TARGETS),
    ("positions", known.positions, load.POSITIONS),
  ):
    if value is not None and value not in words:
      raise ConfigError(
        f"--{name}={value} is not known: use {' or '.join(words)}"
      )
  if inspect:
    if to or out:
      raise ConfigError("--inspect writes nothing: leave --to and OUT out")
    with formats.local(source) as local:
      cli.info(inspection.text(source, local, dialect, known))
    return
  if out is None or to is None:
    raise ConfigError(
      f"{'OUT' if out is None else '--to'} is missing: write --to=FORMAT "
      f"SOURCE OUT, where FORMAT is {', '.join(formats.FORMAT_NAMES)}"
    )
  export_weights.check_out(out, to)
  with formats.local(source) as local:
    weights = load.open_weights(source, local, dialect=dialect, hints=known)
    total = inspection.size(weights)
    with _progress_bar(total) as bar:
      notes = export_weights.write(weights, to, out, dtype, bar.update)
  found = facts_lib.KINDS[weights.facts.kind]
  cli.info(
    f"{source} ({weights.dialect}, {found}, {total / 1e6:.3g} M parameters) is "
    f"written to {out} ({to}) in {time.monotonic() - began:.1f} s"
  )
  for note in notes:
    cli.info(f"- {note}")


def _progress_bar(total: int) -> tqdm.tqdm:
  return tqdm.tqdm(
    total=total,
    unit="parameter",
    unit_scale=True,
    file=console.STDERR,
    dynamic_ncols=True,
  )


def _numbers(text: str) -> tuple[float, ...]:
  try:
    return tuple(float(part) for part in text.strip("()").split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a number a channel: write for instance 0.5,0.5,0.5"
    ) from None


def parser() -> cli.Parser:
  """The flags."""
  flags = cli.Parser(
    "convert",
    "Converts weights of masked autoencoders, their encoders and classifiers "
    "between this project (jax), the reference (facebook), transformers and "
    "timm.",
  )
  flags.add_argument(
    "source",
    metavar="SOURCE",
    type=os.path.expanduser,
    help="a workdir or one of its checkpoints/STEP; a .pth of the reference; a "
    "directory of transformers; a .safetensors or .bin of timm",
  )
  flags.add_argument(
    "out",
    metavar="OUT",
    nargs="?",
    type=os.path.expanduser,
    help="what is written: a directory (jax, transformers), a .pth (facebook), "
    "a .safetensors (timm)",
  )
  names = ", ".join(formats.FORMAT_NAMES)
  flags.add_argument(
    "--from",
    dest="dialect",
    help=f"what SOURCE is: {names} (default: found out)",
  )
  flags.add_argument("--to", help=f"what OUT is to be: {names}")
  flags.add_argument(
    "--inspect",
    action="store_true",
    help="print what SOURCE is, and write nothing",
  )
  flags.add_argument(
    "--dtype",
    help=f"{', '.join(export_weights.DTYPES)} (default: as stored; jax files "
    "are always float32)",
  )
  flags.add_argument(
    "--encoder_only",
    action="store_true",
    help="leave decoder or head out",
  )
  said = flags.add_argument_group(
    "what files do not say, where it is asked for"
  )
  said.add_argument("--heads", type=int, help="attention heads of the encoder")
  said.add_argument("--decoder_heads", type=int, help="and of the decoder")
  said.add_argument(
    "--image_size", type=cli.size, help="224, or height and width as 192,256"
  )
  said.add_argument(
    "--target",
    help="what the decoder predicts: norm_pix (normalized patches) or raw",
  )
  said.add_argument(
    "--mean", type=_numbers, help="of pixels in [0, 1], as 0.485,0.456,0.406"
  )
  said.add_argument("--std", type=_numbers, help="likewise")
  said.add_argument(
    "--class_names",
    help="a text file with the name of a class a line, in the order of labels",
  )
  mended = flags.add_argument_group("what some files say wrongly")
  mended.add_argument(
    "--norm_eps",
    type=float,
    help="of LayerNorms; files of transformers may say 1e-12 of weights that "
    "were trained with 1e-6",
  )
  mended.add_argument(
    "--positions",
    help="keep or sincos (replace by the fixed table), where a table is all "
    "zeros or is to be replaced",
  )
  return flags


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the tool; see `tools.main`."""
  # Nothing is computed: an accelerator that others use is left alone.
  jax.config.update("jax_platforms", "cpu")
  cli.main(parser(), convert, argv)
