"""Runs input pipelines on request in a process, for `bench.pipeline`.

    python bench/lib/input_peers.py ours DIRECTORY CORES
    python bench/lib/input_peers.py peers DIRECTORY CORES

On the line "NAME NUMBER" on stdin, feeder NAME makes NUMBER images. On the line
"NAME drain", it uses up the images that are ready. The answer is a line with
wall seconds. `bench.pipeline` measures the CPU time of this process and its
children. `peers` runs in an environment without this project's packages, so
this is one file with imports inside functions.
"""

from __future__ import annotations

import io
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

BATCH, SIZE = 64, 224
RECORD_SHARDS = 8  # also the number of record files
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Feeder = Callable[[], Iterator[Any]]  # makes endless batches of BATCH images


def ours(root: pathlib.Path, cores: int) -> dict[str, Feeder]:
  """Builds this project's pipelines, and the parts in `pipeline.PARTS`."""
  import numpy as np
  import tensorflow as tf
  from PIL import Image

  from mae_jax.config import DataConfig
  from mae_jax.data import pipeline, preprocess, sampling, sources

  data = DataConfig(
    source="folder",
    path=str(root / "photos"),
    name="photos",
    data_dir=str(root / "tfds"),
    batch_size=BATCH,
    record_shards=RECORD_SHARDS,
    image_size=(SIZE, SIZE),
    crop_scale=SCALE,
    flip=True,
    eval_crop=0.875,
    mean=MEAN,
    std=STD,
  )

  def whole(source: str) -> Feeder:
    import dataclasses

    settings = dataclasses.replace(data, source=source)
    opened = sources.open_source(settings, "train")
    rows = np.arange(BATCH)
    return lambda: pipeline.train_batches(opened, settings, seed=0, rows=rows)

  folder: Any = sources.open_source(data, "train")

  def plan(step: tf.Tensor) -> dict[str, tf.Tensor]:
    rows = np.arange(BATCH)

    def uniform(stream: str, count: int) -> tf.Tensor:
      return sampling.uniform(
        0, stream, step, count=count, batch_size=BATCH, rows=rows
      )

    position = step * BATCH + rows
    return {
      "crop": uniform("crop", preprocess.CROP_DRAWS),
      "flip": uniform("flip", 1)[:, 0],
      "index": sampling.shuffled_index(position, folder.num_examples, 0),
    }

  def part(end: Callable[[dict[str, tf.Tensor]], tf.Tensor]) -> Feeder:
    """Builds a pipeline that runs only `end`, for RGB JPEGs only."""
    plans = tf.data.Dataset.range(2**40).map(plan).unbatch()
    images = plans.map(
      tf.autograph.experimental.do_not_convert(end),
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    batches = images.batch(BATCH).prefetch(2)
    return lambda: iter(batches)

  def read(plan: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.io.read_file(folder.load(plan["index"])["file"])

  def crop(
    plan: dict[str, tf.Tensor], dct: str = "INTEGER_ACCURATE"
  ) -> tf.Tensor:
    contents = read(plan)
    shape = tf.image.extract_jpeg_shape(contents)
    box = preprocess.crop_box(shape[0], shape[1], plan["crop"], SCALE, RATIO)
    return tf.image.decode_and_crop_jpeg(
      contents, box, channels=3, dct_method=dct
    )

  def resized(plan: dict[str, tf.Tensor]) -> tf.Tensor:
    image = preprocess._resize(crop(plan), (SIZE, SIZE))
    return tf.ensure_shape(image, [SIZE, SIZE, 3])

  def tensorflows(antialias: bool) -> Callable[..., tf.Tensor]:
    def resized(plan: dict[str, tf.Tensor]) -> tf.Tensor:
      image = tf.image.resize(
        crop(plan), (SIZE, SIZE), "bicubic", antialias=antialias
      )
      return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    return resized

  def pillows(plan: dict[str, tf.Tensor]) -> tf.Tensor:
    def resize(image: np.ndarray) -> np.ndarray:
      picture = Image.fromarray(image)
      return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    image = tf.numpy_function(resize, [crop(plan)], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [SIZE, SIZE, 3])

  def flipped(plan: dict[str, tf.Tensor]) -> tf.Tensor:
    return preprocess.random_flip(resized(plan), plan["flip"])

  def chosen(plan: dict[str, tf.Tensor]) -> tf.Tensor:
    image, mirror = resized(plan), plan["flip"] < 0.5
    mirror = mirror[None, None, None]
    return tf.where(mirror, tf.reverse(image, axis=[-2]), image)

  def one(image: tf.Tensor) -> tf.Tensor:
    return image[0, 0, 0]

  return {
    "folder": whole("folder"),
    "tfds": whole("tfds"),
    "read": part(lambda plan: tf.strings.length(read(plan))),
    "decode": part(lambda plan: one(crop(plan))),
    "resize": part(resized),
    "flip": part(flipped),
    "fast dct": part(lambda plan: one(crop(plan, "INTEGER_FAST"))),
    "tf resize": part(tensorflows(antialias=True)),
    "tf aliased": part(tensorflows(antialias=False)),
    "pillow resize": part(pillows),
    "tf.where": part(chosen),
    "tf decode": part(
      lambda plan: one(
        tf.image.decode_jpeg(
          read(plan), channels=3, dct_method="INTEGER_ACCURATE"
        )
      )
    ),
  }


def peers(root: pathlib.Path, cores: int) -> dict[str, Feeder]:
  """Builds torchvision's pipeline, Grain with Pillow, and libjpeg-turbo."""
  import concurrent.futures

  import grain
  import numpy as np
  import simplejpeg
  import torch
  import torchvision
  from PIL import Image

  files = sorted((root / "photos").rglob("*.jpg"))
  v1 = torchvision.transforms

  def torchvisions() -> Iterator[Any]:
    transform = v1.Compose(
      [
        v1.RandomResizedCrop(
          SIZE, scale=SCALE, interpolation=v1.InterpolationMode.BICUBIC
        ),
        v1.RandomHorizontalFlip(),
        v1.ToTensor(),
        v1.Normalize(MEAN, STD),
      ]
    )
    images = torchvision.datasets.ImageFolder(
      str(root / "photos" / "train"), transform
    )
    sampler = torch.utils.data.RandomSampler(
      images, replacement=True, num_samples=2**30
    )
    return iter(
      torch.utils.data.DataLoader(
        images, BATCH, sampler=sampler, num_workers=cores
      )
    )

  def crop(random: np.random.Generator, width: int, height: int) -> tuple:
    low, high = map(math.log, RATIO)
    for _ in range(10):
      area = width * height * random.uniform(*SCALE)
      aspect = math.exp(random.uniform(low, high))
      w = round(math.sqrt(area * aspect))
      h = round(math.sqrt(area / aspect))
      if 0 < w <= width and 0 < h <= height:
        left = random.integers(0, width - w + 1)
        top = random.integers(0, height - h + 1)
        return left, top, left + w, top + h
    return 0, 0, width, height

  class Augment(grain.transforms.RandomMap):
    """A transform with equal crops and flips by Pillow, in uint8."""

    def random_map(self, element: Any, rng: np.random.Generator) -> np.ndarray:
      image = Image.open(io.BytesIO(element.read_bytes())).convert("RGB")
      image = image.crop(crop(rng, *image.size))
      image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
      if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      return np.asarray(image)

  def grains() -> Iterator[Any]:
    images = grain.MapDataset.source(files).seed(0).shuffle().repeat()
    options = grain.ReadOptions(
      num_threads=cores, prefetch_buffer_size=2 * cores
    )
    batches = images.random_map(Augment()).to_iter_dataset(options)
    return iter(batches.batch(BATCH))

  def decoded() -> Iterator[Any]:
    contents = [file.read_bytes() for file in files]
    endless = itertools.cycle(contents)
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
      while True:
        some = [next(endless) for _ in range(BATCH)]
        # Returns shapes: pixels would only stay in memory.
        yield list(
          pool.map(lambda data: simplejpeg.decode_jpeg(data).shape, some)
        )

  return {"torchvision": torchvisions, "grain": grains, "libjpeg": decoded}


def main() -> None:
  """Answers requests until stdin ends."""
  kind, root, cores = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
  feeders = {"ours": ours, "peers": peers}[kind](root, cores)
  streams: dict[str, Iterator[Any]] = {}
  print("ready", flush=True)
  for line in sys.stdin:
    name, number = line.rsplit(" ", 1)
    if name not in streams:
      streams[name] = feeders[name]()
    begin = time.monotonic()
    if number == "drain\n":
      drain(streams[name])
    else:
      for _ in range(int(number) // BATCH):
        next(streams[name])
    print(time.monotonic() - begin, flush=True)


def drain(stream: Iterator[Any]) -> None:
  """Takes batches until none are ready in advance."""
  slow = 0
  for _ in range(256):
    begin = time.monotonic()
    next(stream)
    slow += time.monotonic() - begin > 0.01
    if slow == 4:
      break


if __name__ == "__main__":
  main()
