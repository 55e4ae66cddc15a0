"""Tar shards of WebDataset: members with the same name are one example.

`cat/01.jpg` and `cat/01.cls` are the image and the label of `cat/01`. The
headers are read once; images are then read at random by their place, so that an
epoch is a permutation, which a stream of shards is not.
"""

import functools
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mae_jax.config import DataConfig
from mae_jax.data import listing as file_listing
from mae_jax.data import splits
from mae_jax.data.sources import base, columns, listed
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError, abbreviate

_CLASS_NAMES = "classnames.txt"  # as CLIP benchmark's shards have it
_LABEL_BYTES = 1 << 20  # the largest .cls or .json
_PATTERN = re.compile(r"[*?\[{]")


def open_shards(data: DataConfig, split: base.Split) -> base.Files | None:
  """Opens the images of one split, in the order of shards and members.

  Args:
    data: `path` is a tar, a folder of them, or a pattern of names such as
      `shards-{000..099}.tar`. Splits are folders, or words of the names.
    split: "train" or "eval".

  Returns:
    The source; None for "eval" if there are no held-out images.

  Raises:
    ConfigError: if there is no shard, or one is no whole tar.
  """
  splits.refuse_remote(data)
  root, files = _find_shards(data)
  parts = [
    [files[k] for k in part]
    for part in splits.choose(files, data, os.fspath(root))
  ]
  train, held_out = (
    lambda part=part: _read(root, part, data) for part in parts
  )
  return listed.open_listing(data, split, train, held_out if parts[1] else None)


def _find_shards(data: DataConfig) -> tuple[epath.Path, list[str]]:
  if not _PATTERN.search(data.path):
    return splits.find_files(
      data, [".tar"], "a tar, a folder of tars, or a pattern of their names"
    )
  # The folder before the first name with a pattern.
  whole = os.path.expanduser(data.path)
  start = whole[: _PATTERN.search(whole).start()].rpartition("/")[0]  # type: ignore[union-attr]
  root = epath.Path(start or ("/" if whole.startswith("/") else "."))
  found: list[str] = []
  for name in expand_braces(whole[len(start) :].lstrip("/")):
    if re.search(r"[*?\[]", name):
      found += sorted(str(path.relative_to(root)) for path in root.glob(name))
    else:
      found.append(name)
  missing = [name for name in found if not (root / name).is_file()]
  if missing or not found:
    raise ConfigError(
      f"data.path={data.path!r}: {len(missing)} of {len(found)} shards are "
      f"missing{', as ' * bool(missing)}{''.join(map(str, missing[:1]))}: set "
      "--config.data.path to a pattern of files that are there"
    )
  return root, found


def expand_braces(text: str) -> Iterator[str]:
  """Yields the names of a pattern with {000..099} or {train,val}."""
  match = re.search(r"\{([^{}]*)\}", text)
  if not match:
    yield text
    return
  inside = match[1].split(",")
  if span := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
    first, last = span.groups()
    width = max(len(first), len(last)) if first.startswith("0") else 0
    inside = [f"{k:0{width}}" for k in range(int(first), int(last) + 1)]
  for part in inside:
    yield from expand_braces(text[: match.start()] + part + text[match.end() :])


class _Shard(NamedTuple):
  """The examples of one tar: names, places of images, and labels or ""."""

  keys: list[str]
  places: np.ndarray  # int64 [n, 2], offset and length
  labels: list[str]


def _read(
  root: epath.Path, files: Sequence[str], data: DataConfig
) -> listed.Listing:
  paths = [os.fspath(root / file) for file in files]
  shards = []
  progress = console.progress_bar(
    len(files), unit="shard", desc="reading headers", leave=False, delay=2
  )
  with progress:
    for path in paths:
      changed = os.stat(path).st_mtime_ns
      shards.append(
        read_shard(path, data.image_column, data.label_column, changed)
      )
      progress.update()
  counts = [len(shard.keys) for shard in shards]
  shard_of = np.repeat(np.arange(len(files)), counts)
  start = np.cumsum(counts) - counts
  labels: Any = [label for shard in shards for label in shard.labels]
  classes: tuple[str, ...] = ()
  if not any(labels):
    labels = None
  elif all(re.fullmatch(r"-?\d+|", label) for label in set(labels)):
    classes = _class_names([(root / files[0]).parent, root, root.parent])
    if classes:
      labels = np.array([int(label or -1) for label in labels])

  def key(index: int) -> str:
    number = shard_of[index]
    return shards[number].keys[index - start[number]]

  offset, length = np.concatenate([shard.places for shard in shards]).T
  return listed.Listing(
    paths,
    shard_of,
    lambda k: f"{paths[shard_of[k]]}:{key(k)}",
    lambda k: f"{os.path.basename(paths[shard_of[k]])}:{key(k)}",
    labels,
    listed.describe(root, files),
    classes,
    offset,
    length,
  )


def _class_names(folders: Sequence[epath.Path]) -> tuple[str, ...]:
  for folder in folders:
    file = folder / _CLASS_NAMES
    if file.exists():
      return tuple(file.read_text().splitlines())
  return ()


# A run lists the training images twice, also for the classes of held-out ones.
@functools.cache
def read_shard(
  path: str, image_column: str, label_column: str, changed: int
) -> _Shard:
  """Reads the headers and labels of one tar.

  Args:
    path: the tar.
    image_column: suffix of images; "" for any.
    label_column: suffix or field of labels; "" for well-known ones.
    changed: time of the last change, which makes this function read again.

  Raises:
    ConfigError: if it is no whole tar, or an example has no clear image.
  """
  wanted = image_column.lower().lstrip(".")
  label_column = label_column.lstrip(".")
  texts = {"cls", "json", label_column.lower()}
  keys: list[str] = []
  places: list[tuple[int, int]] = []
  labels: list[str] = []
  key, parts = "", dict[str, _Member]()  # of the example that is being read

  def add() -> None:
    if parts:
      where = f"{path}:{key}"
      image = _image(where, parts, wanted)
      keys.append(key)
      places.append((image.offset_data, image.size))
      labels.append(sys.intern(_label(where, parts, label_column)))

  try:
    with tarfile.open(path, "r:") as tar:
      assert tar.fileobj is not None
      end = 0
      while member := tar.next():
        end = member.offset_data + -(-member.size // 512) * 512
        tar.members = []  # type: ignore[attr-defined] # which would keep all headers in memory
        name = PurePosixPath(member.name)
        stem, _, suffix = name.name.partition(".")
        if not member.isreg() or not stem or not suffix:
          continue
        this, suffix = str(name.with_name(stem)), suffix.lower()
        if this != key:
          add()
          key, parts = this, dict[str, _Member]()
        if suffix in parts:
          raise ConfigError(
            f"{path} has {member.name} twice: write each example once"
          )
        content = b""
        if suffix in texts:
          tar.fileobj.seek(member.offset_data)
          content = tar.fileobj.read(min(member.size, _LABEL_BYTES))
        parts[suffix] = _Member(member.offset_data, member.size, content)
      add()
      tar.fileobj.seek(end)
      # tarfile takes a cut between two members for the end.
      if tar.fileobj.read(512) != bytes(512):
        raise tarfile.ReadError("its end is missing")
  except tarfile.TarError as error:
    with open(path, "rb") as file:
      is_gzip = file.read(2) == b"\x1f\x8b"
    hint = "copy it again"
    if is_gzip:
      hint = "decompress it, because parts of a compressed file cannot be read"
    raise ConfigError(f"{path} is no whole tar ({error}): {hint}") from error
  return _Shard(keys, np.array(places, np.int64).reshape(-1, 2), labels)


class _Member(NamedTuple):
  offset_data: int
  size: int
  content: bytes  # of labels; b"" of others


def _image(where: str, parts: dict[str, _Member], wanted: str) -> _Member:
  images = [x for x in parts if f".{x}" in file_listing.SUFFIXES]
  if wanted:
    images = [x for x in parts if x == wanted]
  if len(images) != 1:
    raise ConfigError(
      f"{where} has {len(images) or 'no'} image(s) among "
      f"{', '.join(sorted(parts))}: set --config.data.image_column to the "
      "suffix of the image, such as jpg, which each example must have"
    )
  return parts[images[0]]


def _label(where: str, parts: dict[str, _Member], wanted: str) -> str:
  """Returns the label as text, "" if there is none."""
  if wanted == columns.NONE:
    return ""
  suffix = wanted.lower() or "cls"
  try:
    if suffix in parts and suffix != "json":
      return parts[suffix].content.decode().strip()
    fields = json.loads(parts["json"].content) if "json" in parts else {}
  except ValueError as error:
    raise ConfigError(
      f"the label of {where} cannot be read ({error}): write a number or a "
      "name, in UTF-8"
    ) from error
  if not isinstance(fields, dict) or not fields:
    return ""
  name = columns.find(
    list(fields), wanted, columns.LABELS, "label_column", where
  )
  value = fields.get(name)
  if isinstance(value, list | dict):
    raise ConfigError(
      f"{where} has {abbreviate(value)} as its {name}: one label an image is "
      "needed; set --config.data.label_column to another field, or to "
      f"{columns.NONE}"
    )
  return "" if value is None else str(value).strip()
