"""Writes a folder of images in the other formats that data sources read.

Each function takes a folder as `photo_dir` of `tests/data/conftest.py`, with
`train` and `val`, and keeps the order in which the source "folder" has them.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile

import datasets

CLASSES = ("cat", "dog")


def images(root, split):
  """Lists (path, class) of one split, in the order of the folder's source."""
  return [
    (path, name)
    for name in CLASSES
    for path in sorted((root / split / name).iterdir())
  ]


def write_tables(root, out):
  """Writes train.csv and val.csv, with paths relative to them."""
  out.mkdir()
  for split in ("train", "val"):
    with (out / f"{split}.csv").open("w", newline="") as file:
      writer = csv.writer(file)
      writer.writerow(["file_name", "note", "label"])
      for path, name in images(root, split):
        relative = path.relative_to(out.parent, walk_up=True)
        writer.writerow([f"../{relative}", 'a, "note"', name])


def features():
  """Returns the features of the Hugging Face data sets below."""
  return datasets.Features(
    {
      "image": datasets.Image(),
      "label": datasets.ClassLabel(names=list(CLASSES)),
    }
  )


def data_set(root, split):
  """Makes one split as a Hugging Face data set."""
  rows = [
    {
      "image": {"bytes": path.read_bytes(), "path": path.name},
      "label": CLASSES.index(name),
    }
    for path, name in images(root, split)
  ]
  return datasets.Dataset.from_list(rows, features=features())


def write_saved(root, out):
  """Writes a DatasetDict with `save_to_disk`, in three training shards."""
  splits = {"train": data_set(root, "train"), "test": data_set(root, "val")}
  shards = {"train": 3, "test": 1}
  datasets.DatasetDict(splits).save_to_disk(out, num_shards=shards)


def write_parquet(root, out):
  """Writes compressed parquet shards as on the Hub."""
  (out / "data").mkdir(parents=True)
  for split, name in (("train", "train"), ("val", "validation")):
    whole = data_set(root, split)
    for k in range(2):
      part = whole.shard(2, k, contiguous=True)
      part.to_parquet(out / "data" / f"{name}-{k:05d}-of-00002.parquet")


def add_member(tar, name, content):
  """Adds a file to an open tar."""
  member = tarfile.TarInfo(name)
  member.size = len(content)
  tar.addfile(member, io.BytesIO(content))


def write_tar(path, samples):
  """Writes a shard of (key, {suffix: bytes}) pairs."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for key, parts in samples:
      for suffix, content in parts.items():
        add_member(tar, f"{key}.{suffix}", content)


def write_shards(root, out):
  """Writes tar shards of WebDataset; labels are numbers, or JSON in `val`."""
  for split in ("train", "val"):
    samples = []
    for number, (path, name) in enumerate(images(root, split)):
      label = CLASSES.index(name)
      text = {"cls": str(label).encode()}
      if split == "val":
        text = {"json": json.dumps({"id": 1, "label": label}).encode()}
      suffix = path.suffix[1:].upper()
      samples.append((f"all/{number:03d}", {suffix: path.read_bytes()} | text))
    middle = len(samples) // 2
    for k, part in enumerate((samples[:middle], samples[middle:])):
      write_tar(out / split / f"shard-{k:03d}.tar", part)
  (out / "classnames.txt").write_text("\n".join(CLASSES))
