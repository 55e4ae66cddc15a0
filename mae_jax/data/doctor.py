"""Says what is in the data of a run, and what is probably not meant."""

from __future__ import annotations

import sys

import numpy as np
import tqdm
from PIL import Image

from mae_jax import config as config_lib
from mae_jax import console, output, sheets
from mae_jax.data import sources, survey

_COLUMNS = 8  # of the picture
_FAR = 0.1  # from a configured mean or std to the one found: a warning
_CLASSES = 5  # largest and smallest that are named
_UNEVEN = 10  # times as many images in one class as in another: a warning


def report(config: config_lib.Config, limit: int, out: str) -> None:
  """Prints what is in the data, and writes samples to a picture.

  Args:
    config: the run; its `data` is looked at.
    limit: images to look at; 0 for all.
    out: a .png file.

  Raises:
    ConfigError: if there are no data, or none that can be read.
  """
  data = config.data
  if limit < 0:
    raise config_lib.ConfigError(f"--limit={limit} must be at least 0")
  output.check_suffix(out, ".png")
  with output.replacing(out) as file:
    source = sources.open_source(data, "train")
    held_out = sources.open_source(data, "eval")
    _say_number(source, held_out)
    found = _look(source.subset(limit), data)
    if not len(found.sizes):
      raise config_lib.ConfigError(
        f"none of {found.looked_at} images can be read:\n"
        f"{found.unreadable.listing()}"
      )
    _say_images(found, data)
    _say_classes(found, source.class_names)
    rate, samples = survey.rate(source, data)
    _sheet(samples).save(file, format="png")
  _say("speed", f"{rate:,.0f} images/s with augmentation, on this machine")
  _say("samples", out)
  _say("as configured", " ".join(_settings(found)))
  for warning in warnings(found, data, source.class_names):
    console.warn(warning)


def _say(name: str, text: str) -> None:
  console.say(f"{name:<20}{text}")


def _say_number(
  source: sources.Source, held_out: sources.Source | None
) -> None:
  number = f"{source.num_examples:,} to train on"
  if held_out is not None:
    number += f", {held_out.num_examples:,} held out"
  _say("images", number)


def _look(source: sources.Source, data: config_lib.Data) -> survey.Survey:
  with tqdm.tqdm(
    total=source.num_examples,
    unit="image",
    file=console.STDERR,
    dynamic_ncols=True,
    leave=False,
    mininterval=0.2 if sys.stderr.isatty() else 20,
  ) as bar:
    return survey.survey(source, data, bar.update)


def _say_images(found: survey.Survey, data: config_lib.Data) -> None:
  _say("looked at", f"{found.looked_at:,} of those to train on")
  number = len(found.unreadable.names)
  _say("cannot be read", f"{number:,}")
  if number:
    console.say(found.unreadable.listing())
  for name, values in zip(("height", "width"), found.sizes.T, strict=True):
    low, middle, high = np.percentile(values, (0, 50, 100)).round().astype(int)
    _say(name, f"{middle} in the middle, from {low} to {high}")
  height, width = data.image_size
  share, crops = _enlarged(found, data)
  _say(
    "enlarged",
    f"{share:.0%} of the images, {crops:.0%} in their smallest crops",
  )
  _say("shown as", f"{height} x {width}, of {data.channels} channels")
  if data.channels > 1:
    _say("grey", f"{found.grey / len(found.sizes):.1%} have equal channels")
  _say("mean", _numbers(found.mean))
  _say("std", _numbers(found.std))


def _enlarged(
  found: survey.Survey, data: config_lib.Data
) -> tuple[float, float]:
  """Shares of images that are enlarged: whole, and in the smallest crops."""
  keep = float(np.sqrt(data.crop_scale[0]))
  size = data.image_size
  return found.enlarged(size), found.enlarged(size, keep)


def _say_classes(found: survey.Survey, names: tuple[str, ...] | None) -> None:
  if not names:
    _say("classes", "none: images without labels")
    return
  ordered = found.labels.most_common()
  absent = len(names) - len(ordered)
  _say("classes", f"{len(names):,}" + f", {absent:,} not seen" * bool(absent))
  shown = ordered
  if len(ordered) > 2 * _CLASSES:
    shown = ordered[:_CLASSES] + ordered[-_CLASSES:]
  for label, count in shown:
    console.say(
      f"  {names[label]:<18}{count:>9,}  {count / found.labels.total():.1%}"
    )


def _numbers(values: np.ndarray) -> str:
  return ", ".join(f"{value:.4f}" for value in values)


def _settings(found: survey.Survey) -> list[str]:
  """Flags to paste."""
  return [
    f"--config.data.{name}={','.join(f'{value:.4f}' for value in values)}"
    for name, values in (("mean", found.mean), ("std", found.std))
  ]


def warnings(
  found: survey.Survey,
  data: config_lib.Data,
  names: tuple[str, ...] | None,
) -> list[str]:
  """What is probably not meant, a line each.

  Args:
    found: in the data.
    data: as it is configured.
    names: of the classes; None for none.
  """
  told = []
  size = f"{data.image_size[0]} x {data.image_size[1]}"
  share, _ = _enlarged(found, data)
  if share > 0.01:
    told.append(
      f"{share:.0%} of the images are smaller than {size}: they are enlarged, "
      "which shows the network nothing new; set data.image_size (and "
      "model.variant's patch size) to fit most of them"
    )
  flags = " ".join(_settings(found))
  for name in ("mean", "std"):
    configured = np.broadcast_to(getattr(data, name), found.mean.shape)
    seen = getattr(found, name)
    if (np.abs(configured - seen) > _FAR).any():
      told.append(
        f"data.{name}={getattr(data, name)}, but the images have "
        f"{_numbers(seen)}: unless weights are loaded that were trained with "
        f"it, set {flags}"
      )
  number = len(found.unreadable.names)
  if number / found.looked_at > data.max_unreadable:
    told.append(
      f"{number / found.looked_at:.1%} of the images cannot be read, and a run "
      f"stops at data.max_unreadable={data.max_unreadable:.1%}: mend or remove "
      "them"
    )
  if data.channels == 3 and found.grey == len(found.sizes):
    told.append(
      "all images are grey: data.channels=1, with one mean and std, takes a "
      "third of the work of the first layer"
    )
  if names and len(found.labels) > 1:
    (most, high), *_, (least, low) = found.labels.most_common()
    if high > _UNEVEN * low:
      told.append(
        f"class {names[most]} has {high / low:.0f} times as many images as "
        f"{names[least]}"
      )
  return told


def _sheet(samples: np.ndarray) -> Image.Image:
  empty = -len(samples) % _COLUMNS
  cells = [*samples, *[None] * empty]
  rows = [cells[k : k + _COLUMNS] for k in range(0, len(cells), _COLUMNS)]
  return Image.fromarray(sheets.sheet(rows, [""] * _COLUMNS))
