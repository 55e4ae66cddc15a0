"""Measures how much accuracy quantized weights lose, on handwritten digits.

    python -m bench.weights

It pre-trains and fine-tunes on scikit-learn's digits, and exports each network
with every kind of weights. Then it loads each export, evaluates it on the
held-out digits, and writes `bench/results/weights.md`. This takes about five
minutes on two cores and downloads nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bench.lib import flags, machine
from mae_jax import checkpoints
from mae_jax.config import from_config_dict
from mae_jax.data import image_files, sources
from mae_jax.evals import eval_data
from mae_jax.models import classifiers
from mae_jax.tools import image_stream
from mae_jax.tools.export import command, stablehlo, verify
from mae_jax.tools.export import quantize as weights_lib

OUT = flags.RESULTS / "weights.md"
_ROOT = pathlib.Path(__file__).parents[1]


class Measured(NamedTuple):
  """Outputs of an exported network on held-out images.

  Attributes:
    size: bytes of the weights.
    logits: [N, classes].
    labels: int [N].
  """

  size: int
  logits: np.ndarray
  labels: np.ndarray

  @property
  def top1(self) -> float:
    """The top-1 accuracy, 0 to 1."""
    return float((self.logits.argmax(1) == self.labels).mean())


def measure(checkpoint: str, kind: str) -> Measured:
  """Exports a classifier, loads the export, and runs it on held-out images.

  Args:
    checkpoint: workdir of a fine-tuned network or a linear probe.
    kind: kind of weights, a name in `quantize.KINDS`.
  """
  data = checkpoints.read_metadata(checkpoint).config.data
  source = eval_data.held_out(data).source
  assert isinstance(source, sources.Arrays)
  assert source.labels is not None
  pixels = source.load(np.arange(source.num_examples))["image"].numpy()
  names = [str(number) for number in range(len(pixels))]
  images = image_files.Images(names, lambda index: pixels[index])
  with tempfile.TemporaryDirectory() as folder:
    command.write(checkpoint, folder, weights=kind)
    serve = stablehlo.load(epath.Path(folder))
    size = (pathlib.Path(folder) / stablehlo.WEIGHTS).stat().st_size
    logits = [
      values
      for values, _ in image_stream.stream(
        lambda _, batch: serve(np.asarray(batch)),
        None,
        images,
        data,
        mesh=verify.cpu_mesh(),
        batch_size=64,
      )
    ]
  return Measured(size, np.concatenate(logits), source.labels)


def rows(
  measured: Mapping[str, Sequence[Measured]], large: Mapping[str, int]
) -> list[str]:
  """Returns the lines of a Markdown table.

  Args:
    measured: outputs by kind of weights, one for each fine-tuned network. All
      kinds are compared with "float32".
    large: bytes of a large network's weights by kind.
  """
  lines = [
    "| weights | size | held-out top-1 | change | predictions changed | "
    "largest logit difference | ViT-L/16, 1000 classes |",
    "|---|---|---|---|---|---|---|",
  ]
  exact = measured["float32"]
  for kind, runs in measured.items():
    top1 = 100 * np.array([run.top1 for run in runs])
    change = top1.mean() - 100 * np.mean([run.top1 for run in exact])
    pairs = list(zip(runs, exact, strict=True))
    changed = sum(
      int((a.logits.argmax(1) != b.logits.argmax(1)).sum()) for a, b in pairs
    )
    apart = max(float(np.abs(a.logits - b.logits).max()) for a, b in pairs)
    answers = sum(len(run.labels) for run in runs)
    lines.append(
      f"| {kind} | {runs[0].size / 1e3:.0f} kB "
      f"| {top1.mean():.2f} ± {top1.std():.2f} % "
      f"| {round(change, 2) + 0:+.2f} % "
      f"| {changed} of {answers} | {apart:.3f} | {large[kind] / 1e6:.0f} MB |"
    )
  return lines


def sizes(recipe: Any, num_classes: int) -> dict[str, int]:
  """Computes the bytes of a network's weights by kind, from its shapes."""
  config = from_config_dict(recipe)
  built = classifiers.fine_tuned(config, num_classes, "cpu")

  def stored(kind: str) -> Any:
    params = built.init(jax.random.key(0))
    return weights_lib.store(classifiers.inference_params(params), kind)

  return {
    kind: sum(
      leaf.size * jnp.dtype(leaf.dtype).itemsize
      for leaf in jax.tree.leaves(jax.eval_shape(lambda k=kind: stored(k)))
    )
    for kind in weights_lib.KINDS
  }


def train(recipe: str, workdir: str, *changes: str) -> None:
  """Trains a recipe as a user does."""
  flags = [f"--config={recipe}", f"--workdir={workdir}", *changes]
  subprocess.run(
    [sys.executable, "-m", "mae_jax.main", *flags], cwd=_ROOT, check=True
  )


def main() -> None:
  """Trains, measures and writes the page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--seeds",
    type=flags.whole(2),
    default=5,
    help="number of fine-tuned networks",
  )
  seeds = parser.parse_args().seeds
  measured: dict[str, list[Measured]] = {kind: [] for kind in weights_lib.KINDS}
  with tempfile.TemporaryDirectory() as root:
    train("configs/digits.py:steps=1000", f"{root}/pretrained")
    for seed in range(seeds):
      workdir = f"{root}/{seed}"
      train(
        "configs/digits_finetune.py",
        workdir,
        "--config.task=finetune",
        f"--config.init_from={root}/pretrained",
        f"--config.train.seed={seed}",
      )
      for kind in weights_lib.KINDS:
        measured[kind].append(measure(workdir, kind))
  from configs import finetune_vit_l

  lines = [
    "# Accuracy of quantized weights",
    "",
    f"Written by `python -m bench.weights`. {seeds} networks of 200,000 "
    "parameters start from one pre-trained network and are fine-tuned on "
    "scikit-learn's digits with all labels (`configs/digits_finetune.py`). "
    "Each is exported with every kind of weights, loaded from disk, and "
    "evaluated on the 360 held-out digits. The table has mean ± standard "
    f"deviation over the networks. {machine.about(('jax', 'flax'))}.",
    "",
    *rows(measured, sizes(finetune_vit_l.get_config(), 1000)),
    "",
  ]
  OUT.write_text("\n".join(lines))


if __name__ == "__main__":
  main()
