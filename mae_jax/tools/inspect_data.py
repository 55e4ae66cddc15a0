"""Checks the images of a config: `python -m mae_jax inspect`."""

import collections
import dataclasses
import os
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image

from mae_jax.config import Config, DataConfig
from mae_jax.data import (
  duplicates,
  image_headers,
  image_io,
  listing,
  sources,
  survey,
)
from mae_jax.data.sources import folder
from mae_jax.tools import cli
from mae_jax.utils import atomic_write, console, image_grid, storage
from mae_jax.utils.errors import ConfigError

_COLUMNS = 8  # of the picture of samples
_FAR = 0.1  # warn if mean or std differ by more from the configured ones
_CLASSES = 5  # print this many of the largest and of the smallest classes
_NAMED = 5  # classes to name in a warning
_PAIRS = 3  # of equal images to name in a warning
_PERCENTILES = (0.1, 99.9)  # of values, that become 0 and 1
_UNEVEN = 10  # warn if a class has this many times the images of another


def report(
  config: Config, limit: int = 5000, out: cli.Path = "runs/samples.png"
) -> None:
  """Checks the images of a config and draws samples.

  Prints sizes, classes, unreadable images, warnings and the speed of loading.
  Held-out images are compared with those to train on; pairs that look alike are
  listed in a .csv file beside the picture.

  Args:
    config: the recipe, for instance digits.
    limit: images to read, from all over the data, and as many held-out ones; 0
      for all.
    out: the picture of training samples, augmented and with their classes,
      which is replaced.

  Raises:
    ConfigError: if there are no data, or none that can be read.
  """
  data = config.data
  cli.at_least("limit", limit, 0)
  atomic_write.check_suffix(out, ".png")
  with atomic_write.atomic_file(out) as file:
    source = sources.open_source(data, "train")
    held_out = sources.open_source(data, "eval")
    number = f"{source.num_examples:,} to train on"
    if held_out is not None:
      number += f", {held_out.num_examples:,} held out"
    _say("images", number)
    if data.source == "folder":
      _say("layout", folder.find_layout(data).describe(data))
    parts = [each.subset(limit) for each in (source, held_out) if each]
    total = sum(part.num_examples for part in parts)
    others = None
    with console.progress_bar(total) as bar:
      found, unread = look(source, limit, data, bar.update)
      if held_out is not None:
        others = survey.survey_images(parts[1], data, bar.update)
    if not len(found.sizes):
      raise ConfigError(
        f"none of {found.num_images} images can be read:\n"
        f"{found.unreadable.listing()}"
        + (len(found.values) > 0)
        * f"\nset {_value_range(found)}"
      )
    _say_images(found, data)
    leaks = []
    if held_out is not None and others is not None:
      table = f"{os.path.splitext(out)[0]}_leaked.csv"
      leaks = _say_leaks((held_out, others), (source, found), data, table)
    _say_classes(found, unread, source.class_names)
    # `warnings` names the lost levels of all images instead.
    image_headers.notes["levels"] = ""
    rate, samples, labels = survey.measure_throughput(source, data)
    names = source.class_names
    words = [names[label] if names else "" for label in labels]
    sheet = _sheet(image_io.to_bytes(samples), words)
    sheet.save(file, format="png")
  _say("speed", f"{rate:,.0f} images/s with augmentation, on this machine")
  _say("samples", out)
  flags = " ".join(_settings(found))
  _say("found, as flags", flags or "none: all pixels of a channel are equal")
  if not data.value_range and len(found.values):
    _say("", "for 8 bits: with the value range above, inspect again")
  for warning in leaks + warnings(found, data, source.class_names):
    console.warn(warning)


def _say(name: str, text: str) -> None:
  console.info(f"{name:<20}{text}")


def look(
  source: sources.Source,
  limit: int,
  data: DataConfig,
  tell: Callable[[int], object] = lambda number: None,
) -> tuple[survey.Survey, collections.Counter[int]]:
  """Reads images, and counts readable and unreadable ones by class.

  Args:
    source: the images.
    limit: number of images to read; 0 for all.
    data: settings, as in `survey.survey_images`.
    tell: called with the number of images read.

  Returns:
    The survey, whose `labels` count readable images, and the number of
    unreadable images of each label. Unreadable records have unknown labels and
    are counted in `labels`.

  Raises:
    TrainingError: if a file of records is damaged.
  """
  if not isinstance(source, sources.Indexed) or source.labels is None:
    return survey.survey_images(
      source.subset(limit), data, tell
    ), collections.Counter()
  few, known, name_of = source.subset(limit), source.labels, source.name
  unread: collections.Counter[int] = collections.Counter()

  def name(index: int) -> str:  # called for unreadable images
    unread[int(known[index])] += 1
    return name_of(index)

  found = survey.survey_images(dataclasses.replace(few, name=name), data, tell)
  labels = collections.Counter(found.labels)
  labels.subtract(unread)
  return dataclasses.replace(found, labels=labels), unread


def _say_leaks(
  held_out: tuple[sources.Source, survey.Survey],
  train: tuple[sources.Source, survey.Survey],
  data: DataConfig,
  table: str,
) -> list[str]:
  """Prints how many held-out images are among those to train on.

  Args:
    held_out: the held-out images.
    train: the images to train on.
    data: `path` is left out of names.
    table: path of the .csv file that lists all pairs, if there are any.

  Returns:
    A warning, if there are any.
  """
  sets = (held_out, train)
  pairs = duplicates.find(*(found.thumbnails for _, found in sets))
  # Images without contrast are compared with none.
  others, seen = (found.thumbnails.any(axis=1).sum() for _, found in sets)
  _say(
    "leaked",
    f"{len(pairs):,} of {others:,} held-out images, compared with {seen:,} to "
    "train on" + " (uniform ones are not compared)" * (not others * seen),
  )
  if not pairs:
    return []
  start = f"{epath.Path(data.path).expanduser()}/"
  names = [
    [
      source.name(int(found.ids[index])).removeprefix(start)
      for (source, found), index in zip(sets, pair, strict=True)
    ]
    for pair in pairs
  ]
  rows = atomic_write.csv_rows([("held out", "to train on"), *names])
  with atomic_write.atomic_file(table) as file:
    file.write(rows)
  some = ", ".join(" = ".join(pair) for pair in names[:_PAIRS])
  return [
    f"{len(pairs):,} held-out images look like images to train on, so that "
    "evaluations are too good; keep one of each group (the held-out one "
    f"comes first): {some}{', ...' * (len(pairs) > _PAIRS)}; all are in {table}"
  ]


def _say_images(found: survey.Survey, data: DataConfig) -> None:
  _say("looked at", f"{found.num_images:,} of those to train on")
  number = len(found.unreadable.names)
  _say("cannot be read", f"{number:,}")
  if number:
    console.info(found.unreadable.listing())
  for name, values in zip(("height", "width"), found.sizes.T, strict=True):
    low, middle, high = np.percentile(values, (0, 50, 100)).round().astype(int)
    _say(name, f"median {middle}, from {low} to {high}")
  height, width = data.image_size
  share, crops = _enlarged(found, data)
  crop = "crop_fixed" if data.crop_fixed else "crop_scale"
  _say(
    "enlarged",
    f"{share:.0%} of the whole images, {crops:.0%} of the smallest crops with "
    f"data.{crop}={getattr(data, crop)}",
  )
  _say("shown as", f"{height} x {width}, of {data.channels} channels")
  if data.channels > 1:
    _say("gray", f"{found.gray / len(found.sizes):.1%} have equal channels")
  if found.transparent:
    _say(
      "transparent",
      f"{found.transparent:,} have transparent pixels (data.background="
      f"{data.background})",
    )
  if len(found.values):
    low, high = _percentiles(found)
    _say(
      "values",
      f"{low} to {high} in files of more than 8 bits, percentiles "
      f"{_PERCENTILES[0]} and {_PERCENTILES[1]}",
    )
    _say("value range", _value_range(found) + _clipped(found, data))
  for name, values in (("mean", found.mean), ("std", found.std)):
    configured = _numbers(getattr(data, name))
    _say(name, f"{_numbers(values)} (configured: {configured})")


def _value_range(found: survey.Survey) -> str:
  """Returns the flag of the value range, "" if all files have 8 bits."""
  if not len(found.values):
    return ""
  return f"--config.data.value_range={','.join(_percentiles(found))}"


def _clipped(found: survey.Survey, data: DataConfig) -> str:
  if not data.value_range:
    return ""
  low, high = data.value_range
  beyond = ((found.values < low) | (found.values > high)).mean()
  return f" (configured: {low:g},{high:g}, which clips {beyond:.1%})"


def _percentiles(found: survey.Survey) -> list[str]:
  return [f"{x:.6g}" for x in np.percentile(found.values, _PERCENTILES)]


def _enlarged(found: survey.Survey, data: DataConfig) -> tuple[float, float]:
  """Returns the shares of images enlarged whole and in the smallest crops."""
  keep = data.crop_fixed or float(np.sqrt(data.crop_scale[0]))
  size = data.image_size
  return found.enlarged(size), found.enlarged(size, keep)


def _say_classes(
  found: survey.Survey,
  unread: collections.Counter[int],
  names: tuple[str, ...] | None,
) -> None:
  if not names:
    _say("classes", "none: images without labels")
    return
  ordered = found.labels.most_common()
  absent = len(names) - len(ordered)
  text = f"{len(names):,}" + f", {absent:,} not seen" * bool(absent)
  if not unread and (number := len(found.unreadable.names)):
    text += f"; their sizes count what cannot be read too ({number:,})"
  _say("classes", text)
  shown = ordered
  if len(ordered) > 2 * _CLASSES:
    shown = ordered[:_CLASSES] + ordered[-_CLASSES:]
  for label, count in shown:
    share = f"{count / found.labels.total():.1%}"
    if unread[label]:
      share += f", and {unread[label]:,} that cannot be read"
    console.info(f"  {names[label]:<18}{count:>9,}  {share}")


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
  return ", ".join(f"{value:.4f}" for value in values)


def _settings(found: survey.Survey) -> list[str]:
  """Returns the found mean and std as flags; none that a run would refuse."""
  if not found.std.round(4).all():
    return []
  return [
    f"--config.data.{name}={','.join(f'{value:.4f}' for value in values)}"
    for name, values in (("mean", found.mean), ("std", found.std))
  ]


def warnings(
  found: survey.Survey, data: DataConfig, names: tuple[str, ...] | None
) -> list[str]:
  """Lists likely mistakes, one a line; `names` are those of classes, if any."""
  lines = []
  size = f"{data.image_size[0]} x {data.image_size[1]}"
  share, _ = _enlarged(found, data)
  if share > 0.01:
    lines.append(
      f"{share:.0%} of the images are smaller than {size}: they are enlarged, "
      "which shows the network nothing new; set data.image_size (and "
      "model.variant's patch size) to fit most of them"
    )
  flags = " ".join(_settings(found))
  for name in ("mean", "std"):
    configured = np.broadcast_to(getattr(data, name), found.mean.shape)
    seen = getattr(found, name)
    if flags and (np.abs(configured - seen) > _FAR).any():
      lines.append(
        f"data.{name}={getattr(data, name)}, but the images have "
        f"{_numbers(seen)}: unless weights are loaded that were trained with "
        f"it, set {flags}"
      )
  number = len(found.unreadable.names)
  if number > found.unreadable.allowed(found.num_images, data.max_unreadable):
    lines.append(
      f"{number / found.num_images:.1%} of the images cannot be read, and a "
      f"run stops at data.max_unreadable={data.max_unreadable:.1%}: fix or "
      "remove them"
    )
  if not data.value_range and len(found.values):
    whole = found.values.astype(np.int64)
    before, after = len(np.unique(found.values)), len(np.unique(whole >> 8))
    if 2 * after < before:
      lines.append(
        f"8 bits keep {after} of {before} sampled values: the value range "
        "above keeps all"
      )
  if found.uniform:
    lines.append(
      f"{found.uniform:,} of {len(found.sizes):,} images are uniform, all "
      "their pixels equal, and teach nothing: remove them"
      + ", or try another --config.data.background, since "
      f"{found.transparent:,} have transparent pixels" * bool(found.transparent)
    )
  if data.channels == 3 and found.gray == len(found.sizes):
    lines.append(
      "all images are gray: data.channels=1, with one mean and std, takes a "
      "third of the work of the first layer"
    )
  return lines + _of_classes(found.labels, data, names)


def _of_classes(
  labels: collections.Counter[int],
  data: DataConfig,
  names: tuple[str, ...] | None,
) -> list[str]:
  if not names:
    return []
  lines = []
  if empty := _empty_folders(data, names):
    lines.append(
      f"no image is in {_listed('folder', empty)} of data.path={data.path}, "
      "which makes no class: put images there, or remove it"
    )
  if unread := [names[label] for label, count in labels.items() if not count]:
    lines.append(
      f"none of the images looked at of {_listed('class', unread)} can be "
      "read: fix or replace them"
    )
  ordered = [each for each in labels.most_common() if each[1]]
  if len(ordered) > 1:
    (most, high), *_, (least, low) = ordered
    if high > _UNEVEN * low:
      lines.append(
        f"class {names[most]} has {high / low:.0f} times as many images as "
        f"{names[least]}"
      )
  return lines


def _empty_folders(data: DataConfig, names: tuple[str, ...]) -> list[str]:
  """Lists class folders without images, which the source ignores."""
  if data.source != "folder":
    return []
  root = epath.Path(data.path).expanduser()
  with storage.os_errors(root):
    found = folder.find_layout(data)
    inside, ignore = root / found.train, () if found.train else found.splits
    return sorted(
      each.name
      for each in inside.iterdir()
      if each.name not in (*names, *ignore)
      and not listing.is_ignored(each.name)
      and each.is_dir()
    )


def _listed(kind: str, names: list[str]) -> str:
  text = f"{kind} {', '.join(names[:_NAMED])}"
  return text + f" and {len(names) - _NAMED:,} more" * (len(names) > _NAMED)


def _sheet(samples: np.ndarray, names: list[str]) -> Image.Image:
  """Draws samples with the names of their classes."""
  empty = -len(samples) % _COLUMNS
  cells, texts = [*samples, *[None] * empty], [*names, *[""] * empty]
  starts = range(0, len(cells), _COLUMNS)
  rows = [cells[start : start + _COLUMNS] for start in starts]
  words = [texts[start : start + _COLUMNS] for start in starts]
  # Images may be white or black at their edges.
  sheet = image_grid.draw_grid(
    rows, [""] * _COLUMNS, words, background="lightsteelblue"
  )
  return Image.fromarray(sheet)
