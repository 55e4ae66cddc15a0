"""Prints the most likely classes of images: `python -m mae_jax predict`."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import MeshConfig
from mae_jax.conversion import model_info
from mae_jax.data import image_files, prepare
from mae_jax.distributed import sharding
from mae_jax.evals import class_matching, load_model
from mae_jax.models import classifiers
from mae_jax.tools import cli, image_stream
from mae_jax.utils import atomic_write, console, storage, table_file
from mae_jax.utils.errors import ConfigError

COLUMNS = ("file", "rank", "class", "label", "probability")
_SHOWN = 20  # images to print if all are written to a file


class Prediction(NamedTuple):
  """The most likely classes of an image, best first.

  Attributes:
    file: path of the image.
    labels: int [k].
    probabilities: float32 [k], softmax over all classes.
  """

  file: str
  labels: np.ndarray
  probabilities: np.ndarray


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  out: cli.Path | None = None,
  *,
  top: int = 5,
  class_names: cli.Path | None = None,
  image_size: cli.Size | None = None,
  fit: str | None = None,
  batch_size: int = 64,
  mesh: Mesh | None = None,
) -> None:
  """Prints the most likely classes of images.

  The checkpoint is a fine-tuned network or a linear probe. If the images lie in
  folders named by its classes, the accuracy is printed too.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders; prepared as in
      evaluation of the checkpoint's run.
    out: a .csv or .parquet file, on a disk or in a bucket (gs://...), with the
      columns file, rank, class, label, probability; it appears when all is
      done. Then only the first 20 images are printed.
    top: classes an image.
    class_names: a text file with the name of one class on each line, in the
      order of labels; by default the names in the checkpoint.
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated.
    fit: crop: the middle of each image; squash: all of it; by default as in
      evaluation (data.eval_fit).
    batch_size: images at a time over all devices, rounded up to a multiple of
      their number.
    mesh: the devices; None for all.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  began = time.monotonic()
  cli.at_least("top", top)
  if out is not None:
    table_file.check(out)
  given = None
  if class_names is not None:
    given = cli.read_lines(class_names, "--class_names")
    model_info.check_distinct(given)
  image_stream.check(checkpoint, images, batch_size, fit=fit)
  mesh = mesh or sharding.make_mesh(MeshConfig())
  with contextlib.ExitStack() as stack:
    table = None
    if out is not None:
      file = stack.enter_context(atomic_write.atomic_file(out))
      table = stack.enter_context(table_file.write(file, out))
    with storage.os_errors(checkpoint):
      found = load_model.load(checkpoint, mesh, head=True)
    found = load_model.resize(found, image_size, mesh)
    config = found.config
    data = prepare.with_fit(config.data, fit)
    found = dataclasses.replace(
      found, config=dataclasses.replace(config, data=data)
    )
    names = found.class_names
    if given is not None and len(given) != len(names):
      raise ConfigError(
        f"--class_names={class_names} has {len(given)} lines, but the head has "
        f"{len(names)} classes: write the name of each on a line, in the order "
        "of labels"
      )
    source = image_files.open_images(images, data)
    results = predictions(
      found, source, top=top, mesh=mesh, batch_size=batch_size
    )
    shown = given or names
    labels = class_matching.folder_labels(source.names, shown)
    done, right = _report(results, shown, table, labels)
  total = len(source.names)
  if out is not None and done > _SHOWN:
    console.info(f"and {done - _SHOWN} more, which are in {out}")
  if labels:
    console.info(
      f"top-1 {100 * right / done:.1f} % of {image_stream.count(done, 0)}, "
      "whose folders are classes of the network"
    )
  text = image_stream.count(total, total - done)
  text += f" in {time.monotonic() - began:.1f} s"
  console.info(text if out is None else f"{text}; all predictions are in {out}")


def predictions(
  found: load_model.LoadedModel,
  source: image_files.Images,
  *,
  top: int,
  mesh: Mesh,
  batch_size: int,
) -> Iterator[Prediction]:
  """Yields the `top` classes, or all, of each readable image, in order.

  Args:
    found: a network with a head.
    source: the images.
    top: number of classes of each image.
    mesh: the devices.
    batch_size: images at a time over all devices, rounded up to a multiple of
      their number.
  """
  best = best_classes(found.classifier, min(top, len(found.class_names)))
  start = 0
  for (labels, values), readable in image_stream.stream(
    best,
    found.params,
    source,
    found.config.data,
    mesh=mesh,
    batch_size=batch_size,
  ):
    for row in np.flatnonzero(readable):
      name = source.names[start + int(row)]
      yield Prediction(name, labels[row], values[row])
    start += len(readable)


def best_classes(
  classifier: classifiers.Classifier, k: int
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns a jitted function from parameters and uint8 images [B, H, W, C].

  It computes labels int32 [B, k], the best first, and their probabilities.
  """

  @jax.jit
  def best(params: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = jax.nn.softmax(classifier.logits(params, pixels))
    values, labels = jax.lax.top_k(scores, k)
    return labels, values

  return best


def _report(
  results: Iterable[Prediction],
  names: Sequence[str],
  table: table_file.Table | None,
  true: Mapping[str, int],
) -> tuple[int, int]:
  """Prints and writes predictions; counts them, and those that are `true`."""
  done = right = 0
  for each in results:
    right += each.labels[0] == true.get(each.file, -1)
    pairs = list(zip(each.labels, each.probabilities, strict=True))
    if table is None or done < _SHOWN:
      found = ", ".join(f"{names[x]} {100 * p:.1f} %" for x, p in pairs)
      console.info(f"{each.file}: {found}")
    if table is not None:
      rows = [
        (each.file, rank, names[label], label, probability)
        for rank, (label, probability) in enumerate(pairs, 1)
      ]
      table.add(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)))
    done += 1
  return done, right
