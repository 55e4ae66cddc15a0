"""Compares the input pipeline with torchvision, Grain and libjpeg-turbo.

    python -m bench.pipeline

It writes `bench/results/pipeline.md`. The images are like ImageNet's, 500 x 375
pixels and about 55 KB, and are cropped from photographs of scikit-learn and
matplotlib. The pipelines make images in turn, for several rounds. The measure
is the CPU time (user and system) of a process and its workers, since other
work on the machine disturbs it least. Values are medians, and ratios are
ratios of medians.

The other libraries need their own environment, which is created in --peers with
pip. `--peers=` skips them.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
import psutil
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from bench import plan
from bench.lib import (
  flags,
  input_peers,
  machine,
  plots,
  tfds_data,
  worker,
)
from mae_jax.data import preprocess

OUT = flags.RESULTS / "pipeline.md"
PEERS = (
  "torch==2.14.1",
  "torchvision==0.29.1",
  "grain==0.2.18",
  "simplejpeg==1.9.0",
  "pillow==13.0.0",
)
PACKAGES = ("tensorflow", "tensorflow_datasets", "pillow", "numpy")
PORTRAIT = "sample_data/grace_hopper.jpg"  # in the data of matplotlib
BYTES, WIDTH, HEIGHT = 55_000, 500, 375
# Hardware threads of the host per chip, on the machines ct5lp-hightpu-4t,
# ct5p-hightpu-4t, ct6e-standard-4t and a3-highgpu-8g.
CHIPS = {"v5e": 112 / 4, "v5p": 208 / 4, "v6e": 180 / 4, "h100": 208 / 8}
PLAN = OUT.with_name("plan.md")

PIPELINES = {
  "folder": "mae_jax, a folder: uint8",
  "tfds": "mae_jax, TFDS's records: uint8",
  "torchvision": "torchvision, ImageFolder and DataLoader: float32",
  "grain": "Grain with Pillow: uint8",
  "libjpeg": "libjpeg-turbo, whole images, nothing else",
}
# For each part, the pipelines with it and without it.
PARTS = {
  "order, random numbers, reading": ("read", None),
  "decoding the crop": ("decode", "read"),
  "resizing": ("resize", "decode"),
  "flipping": ("flip", "resize"),
  "everything else: other image types, faults, batches": ("folder", "flip"),
}
OTHERS = {
  "resizing by tf.image.resize, antialiased (before)": ("tf resize", "decode"),
  "resizing by Pillow in tf.numpy_function": ("pillow resize", "decode"),
  "resizing by tf.image.resize, aliased": ("tf aliased", "decode"),
  "flipping by tf.where (before)": ("tf.where", "resize"),
  "decoding the crop, INTEGER_FAST": ("fast dct", "read"),
  "decoding the whole image": ("tf decode", "read"),
}

# Check these texts whenever the table is measured again.
ELSEWHERE = """\
A slower machine with two cores and only AVX2 (7 rounds of 1280 images, load
2.1) needed, in ms of CPU per image: folder 3.49, records 3.23, torchvision 6.18
(folder is 0.57 of it), Grain 3.70, libjpeg-turbo alone 1.18 (folder is 2.96
times that). Of the folder's 3.49 ms, decoding took 1.07 and resizing 1.87.
Resizing takes a larger part there, since memory is slower. Page faults are not
the cause (60 per image, 6 % of the time). If the C library reuses memory, there
are 3 per image; huge pages do not reduce them. Both change the time by less
than the rounds differ. By these numbers, ViT-B on h100 has too few cores.
"""
TRIED = """\
Measured once when the two-pass resize was chosen, in ms of CPU per image, on a
busy machine as fast as this one. The two passes took 0.44 ms there.

- PyTorch's uint8 resize takes 0.17 alone, but 0.40 with the way into Python and
  back: no gain, and a gigabyte to install. kornia-rs 0.33, libvips 0.76 and
  Pillow 0.78 are slower. cykooz-resizer (0.14) has no wheel for Linux on
  aarch64. OpenCV (0.13) does not antialias. All except TensorFlow need Python's
  lock for each image, which all threads of a host share.
- Columns first, with rounding between the passes: equal to Pillow except for
  one pixel in ten thousand, but 0.13 slower, since it transposes more.
- Four channels, to transpose 32-bit words: padding costs more than it saves.
- QuantizeV2 to round and clip in one operation: saves 0.01, and rounds ties
  differently.
- Decoding at a smaller size (`ratio` of libjpeg) needs crops of twice the size
  in both directions, which these images do not have. INTEGER_FAST saved 0.02
  there and nothing here, and changes two pixels of three.
- The C library's limits for memory that it reuses, synchronous maps, and the
  data set's `max_intra_op_parallelism` instead of one thread per operation: no
  gain.
- A nested data set for each eight images gains half as much as a loop.
"""


def host_cores(
  images_per_second_per_chip: float, cpu_seconds_per_image: float
) -> float:
  """Returns the number of host cores that each chip keeps busy."""
  return images_per_second_per_chip * cpu_seconds_per_image


def planned(table: str) -> dict[tuple[str, str], float]:
  """Reads images per second and chip from a page of `bench.plan`.

  Keys are such as ("B", "v5e"). For each key, the fastest plan counts.
  """
  rates: dict[tuple[str, str], float] = {}
  for line in table.splitlines():
    cells = dict(
      zip(plan.HEADINGS, [x.strip() for x in line.split("|")[1:]], strict=False)
    )
    chip, _, shape = cells.get("slice", "").partition(":")
    rate = cells.get("images/s, at most", "").replace(",", "")
    if chip in CHIPS and rate.isdigit():
      key = cells["model"], chip
      each = float(rate) / math.prod(int(n) for n in shape.split("x"))
      rates[key] = max(each, rates.get(key, 0))
  missing = [chip for chip in CHIPS if not any(chip in key for key in rates)]
  if missing:
    raise ValueError(f"{PLAN} has no plan for {missing[0]}: run `make plan`")
  return rates


def make_photos(root: pathlib.Path, number: int) -> int:
  """Writes the folder and the TFDS data set; returns the mean size in bytes."""
  photos = [Image.fromarray(x) for x in datasets.load_sample_images().images]
  portrait = pathlib.Path(matplotlib.get_data_path(), PORTRAIT)
  photos.append(Image.open(portrait).convert("RGB"))
  random = np.random.default_rng(0)
  sizes, examples = [], []
  for k in range(number):
    photo = photos[k % len(photos)]
    most = min(photo.width / WIDTH, photo.height / HEIGHT)
    scale = most * random.uniform(0.6, 1)
    width, height = int(WIDTH * scale), int(HEIGHT * scale)
    left = int(random.integers(photo.width - width + 1))
    top = int(random.integers(photo.height - height + 1))
    crop = photo.resize(
      (WIDTH, HEIGHT),
      Image.Resampling.BICUBIC,
      box=(left, top, left + width, top + height),
    )
    data = encode(crop)
    path = root / "photos" / "train" / f"{k % 10}" / f"{k:04d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    sizes.append(len(data))
    examples.append({"image": str(path), "label": k % 10})
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=10),
  }
  splits = {"train": examples}
  tfds_data.prepare(
    root / "tfds", "photos", features, splits, input_peers.RECORD_SHARDS
  )
  return round(np.mean(sizes))


def encode(image: Image.Image) -> bytes:
  """Encodes a JPEG with the lowest quality that has at least BYTES."""
  low, high = 30, 98
  while True:
    quality = (low + high) // 2
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    if low == high:
      return buffer.getvalue()
    if buffer.tell() < BYTES:
      low = quality + 1
    else:
      high = quality


class Process:
  """A process that runs `input_peers`."""

  def __init__(self, python: str, kind: str, root: pathlib.Path, cores: int):
    self._worker = worker.Worker(
      [python, input_peers.__file__, kind, str(root), str(cores)]
    )
    self._tree = psutil.Process(self._worker.pid)
    self.close = self._worker.close

  def feed(self, name: str, number: int) -> tuple[float, float]:
    """Returns CPU and wall seconds per image.

    Images that are ready from before are taken first and do not count. After
    that, images are made as fast as they are taken.
    """
    self._ask(name, "drain")
    begin = self._cpu()
    clock = self._ask(name, number)
    cpu = self._cpu() - begin
    self._wait_until_idle()
    return cpu / number, clock / number

  def _ask(self, name: str, number: int | str) -> float:
    (answer,) = self._worker.ask(f"{name} {number}")
    return float(answer)

  def _wait_until_idle(self) -> None:
    """Waits until the process makes no more images in advance."""
    for _ in range(100):
      before = self._cpu()
      time.sleep(0.3)
      if self._cpu() - before < 0.02:
        break

  def _cpu(self) -> float:
    times = [self._tree.cpu_times()]
    times += [each.cpu_times() for each in self._tree.children(recursive=True)]
    return sum(each.user + each.system for each in times)


def environment(folder: pathlib.Path) -> str:
  """Returns the Python of the environment of PEERS; creates it if needed."""
  python = folder / "bin" / "python"
  done = folder / "done"
  if not done.exists() or done.read_text() != "\n".join(PEERS):
    print(f"creating {folder} ...", flush=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *PEERS]
    subprocess.run(pip, check=True)
    done.write_text("\n".join(PEERS))
  return str(python)


Found = dict[str, np.ndarray]  # by feeder: [rounds, 2], CPU and wall seconds


def measure(
  processes: Mapping[str, Process], number: int, rounds: int
) -> Found:
  """Measures all feeders in turn, after one round that does not count."""
  found: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
  for k in range(rounds + 1):
    print(f"round {k} of {rounds} ...", flush=True)
    for name, process in processes.items():
      cost = process.feed(name, number if k else 4 * input_peers.BATCH)
      if k:
        found[name].append(cost)
  return {name: np.array(costs) for name, costs in found.items()}


def pipeline_rows(found: Found) -> Iterator[str]:
  """Yields the table of whole pipelines."""
  yield (
    "| pipeline | CPU an image | images a CPU second | images a second | CPU, "
    "torchvision = 1 | CPU, libjpeg-turbo = 1 |"
  )
  yield "|---|---|---|---|---|---|"
  median = {name: np.median(costs, 0) for name, costs in found.items()}

  def ratio(name: str, base: str) -> str:
    if base not in median:
      return "-"
    return f"{median[name][0] / median[base][0]:.2f}"

  for name, label in PIPELINES.items():
    if name in found:
      cpu, clock = median[name]
      low, high = 1e3 * found[name][:, 0].min(), 1e3 * found[name][:, 0].max()
      yield (
        f"| {label} | {1e3 * cpu:.2f} ms ({low:.2f} to {high:.2f}) | "
        f"{1 / cpu:.0f} | {1 / clock:.0f} | {ratio(name, 'torchvision')} | "
        f"{ratio(name, 'libjpeg')} |"
      )


def part_rows(
  found: Found, parts: Mapping[str, tuple[str, str | None]]
) -> Iterator[str]:
  """Yields a table of the CPU time that each part adds."""
  yield "| part | CPU an image |"
  yield "|---|---|"
  for label, cpu in part_costs(found, parts).items():
    yield f"| {label} | {cpu:.2f} ms |"


def part_costs(
  found: Found, parts: Mapping[str, tuple[str, str | None]]
) -> dict[str, float]:
  """Returns the CPU milliseconds per image that each part adds."""

  def median(name: str | None) -> float:
    return 1e3 * float(np.median(found[name][:, 0])) if name else 0.0

  return {
    label: median(name) - median(without)
    for label, (name, without) in parts.items()
  }


def draw(found: Found, page: pathlib.Path) -> None:
  """Plots the CPU time per image of pipelines, and of this one's parts."""
  with plots.figure(page, 10, 3.2) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    some = [name for name in PIPELINES if name in found]
    cpu = np.array([1e3 * found[name][:, 0] for name in some])
    middle = np.median(cpu, axis=1)
    left.barh(
      [textwrap.fill(PIPELINES[name], 30) for name in some],
      middle,
      xerr=(middle - cpu.min(axis=1), cpu.max(axis=1) - middle),
      color=["C1" if name in ("folder", "tfds") else "C0" for name in some],
      error_kw={"elinewidth": 1, "capsize": 3},
    )
    left.set_xlabel("ms of CPU an image, median and range")
    right.barh(
      [textwrap.fill(label, 24) for label in PARTS],
      list(part_costs(found, PARTS).values()),
      color="C1",
    )
    right.set_xlabel("ms of CPU an image, by part")
    for axes in (left, right):
      axes.invert_yaxis()
      axes.tick_params(axis="y", labelsize=8)


def pixel_rows(root: pathlib.Path, number: int) -> Iterator[str]:
  """Yields a table of differences from the reference, which uses Pillow."""
  files = sorted((root / "photos").rglob("*.jpg"))
  draws = np.random.default_rng(1).random(
    (number, preprocess.CROP_DRAWS), np.float32
  )
  kinds: dict[str, list[np.ndarray]] = {}
  for k, draw in enumerate(draws):
    data = files[k % len(files)].read_bytes()
    box = preprocess.crop_box(
      HEIGHT, WIDTH, draw, input_peers.SCALE, input_peers.RATIO
    )
    top, left, height, width = (int(x) for x in box)
    size = (input_peers.SIZE, input_peers.SIZE)
    with Image.open(io.BytesIO(data)) as image:
      crop = image.crop((left, top, left + width, top + height))
    wanted = np.asarray(crop.resize(size, Image.Resampling.BICUBIC)).astype(int)

    def decoded(
      dct: str, data: bytes = data, box: tf.Tensor = box
    ) -> tf.Tensor:
      return tf.io.decode_and_crop_jpeg(data, box, channels=3, dct_method=dct)

    exact = decoded("INTEGER_ACCURATE")
    aliased = tf.image.resize(exact, size, "bicubic")
    aliased = np.clip(np.rint(aliased), 0, 255)
    pillow = Image.fromarray(exact.numpy())
    results = {
      "this project": preprocess._resize(exact, size).numpy(),
      "the same, resized by Pillow": np.asarray(
        pillow.resize(size, Image.Resampling.BICUBIC)
      ),
      "the same, decoded with INTEGER_FAST": preprocess._resize(
        decoded("INTEGER_FAST"), size
      ).numpy(),
      "the same, resized without antialiasing": aliased,
    }
    for name, result in results.items():
      kinds.setdefault(name, []).append(np.abs(result - wanted))
  yield "| crops | mean difference | largest | pixels that differ | PSNR |"
  yield "|---|---|---|---|---|"
  for name, differences in kinds.items():
    all_ = np.array(differences)
    psnr = 10 * np.log10(255**2 / np.square(all_).mean())
    yield (
      f"| {name} | {all_.mean():.3f} | {all_.max():.0f} | "
      f"{100 * (all_ > 0).mean():.1f} % | {psnr:.0f} dB |"
    )


def core_rows(
  cpu: float, rates: Mapping[tuple[str, str], float]
) -> Iterator[str]:
  """Yields a table of host cores per chip, by network and chip."""
  yield "| | " + " | ".join(CHIPS) + " |"
  yield "|---|" + "---|" * len(CHIPS)

  def cell(rate: float, threads: float) -> str:
    cores = host_cores(rate, cpu)
    few = ": too few" if cores > threads / 2 else ""
    return f"{cores:.1f} ({rate:.0f} images/s){few}"

  for size in dict.fromkeys(size for size, _ in rates):
    cells = [
      cell(rates[size, chip], threads) if (size, chip) in rates else ""
      for chip, threads in CHIPS.items()
    ]
    yield f"| ViT-{size} | " + " | ".join(cells) + " |"
  threads = [f"{number:.0f} threads" for number in CHIPS.values()]
  yield "| available | " + " | ".join(threads) + " |"


def report(
  found: Found,
  pixels: Sequence[str],
  rates: Mapping[tuple[str, str], float],
  about: str,
  page: pathlib.Path,
) -> str:
  """Returns the page."""
  cpu = float(np.median(found["folder"][:, 0]))
  whole = [
    "# CPU time of the input pipeline",
    "",
    "Written by `python -m bench.pipeline` (`make pipeline`). CPU time is user "
    "and system time of a process and its workers: medians, with the smallest "
    "and the largest. All values are from one run, and the pipelines took "
    "turns.",
    about,
    "",
    f"![CPU time of an image]({page.stem}.svg)",
    "",
    *pipeline_rows(found),
    "",
    "Each pipeline makes batches of 64 crops of 224 x 224 pixels by bicubic "
    "RandomResizedCrop (0.2, 1), with flips. torchvision also normalizes; in "
    "mae_jax, the train step does that on the device. libjpeg-turbo runs in "
    "threads, through simplejpeg.",
    "The goal was 1.5 ms per image, on a machine where libjpeg-turbo took 0.92 "
    "ms and torchvision 3.88 ms: 0.39 of torchvision's time, and 1.63 times "
    "that of decoding. The time is reached here; the ratios are not.",
    "",
    "## Where the time goes",
    "",
    "Each time is the difference of a pipeline with the part and one without.",
    "",
    *part_rows(found, PARTS),
    "",
    "Alternatives, and earlier versions:",
    "",
    *part_rows(found, OTHERS),
    "",
    "## On another machine",
    "",
    ELSEWHERE,
    "## Tried, and not adopted",
    "",
    TRIED,
    "## Difference from the reference",
    "",
    "The reference decodes the whole image with Pillow, crops it and resizes "
    "the crop. Differences are in levels of 255. Pillow rounds between its two "
    "passes and after them; mae_jax rounds once. At the edge of a crop, "
    "mae_jax interpolates a JPEG's colors only from inside the crop.",
    "",
    *pixels,
    "",
    "## Cores of the host for each chip",
    "",
    f"The number of cores is images per second times {1e3 * cpu:.2f} ms, for "
    "cores like those here. Images per second are those of each model's "
    "fastest plan in [plan.md](plan.md), an upper bound: with so many cores, "
    "the step never waits. The last row has the hardware threads per chip, two "
    "per core, of the machines with these chips (ct5lp-hightpu-4t, "
    "ct5p-hightpu-4t, "
    'ct6e-standard-4t, a3-highgpu-8g). "Too few" means that a step as fast as '
    "the bound waits for images.",
    "",
    *core_rows(cpu, rates),
    "",
  ]
  return "\n".join(whole)


def about(mean: int, number: int, rounds: int, peers: bool) -> str:
  """Returns a line about the images, the machine and the versions."""
  there = f"; in the other environment {', '.join(PEERS)}" if peers else ""
  return (
    f"{rounds} rounds of {number} images; {WIDTH} x {HEIGHT} JPEGs of "
    f"{mean / 1e3:.1f} KB on average, in the file cache. "
    f"{machine.about(PACKAGES)}{there}."
  )


def main() -> None:
  """Measures and writes the page."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--images", type=flags.whole(8), default=300, help="different images"
  )
  parser.add_argument(
    "--number",
    type=flags.multiple(input_peers.BATCH),
    default=1280,
    help="images per round",
  )
  parser.add_argument("--rounds", type=flags.whole(), default=7)
  parser.add_argument(
    "--peers",
    default=".venv/peers",
    help="directory of the other libraries' environment; '' skips them",
  )
  parser.add_argument("--out", type=flags.page, default=OUT)
  settings = parser.parse_args()
  rates = planned(PLAN.read_text())
  cores = os.cpu_count() or 1
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    mean = make_photos(root, settings.images)
    pixels = list(pixel_rows(root, settings.images))
    ours = Process(sys.executable, "ours", root, cores)
    peers = None
    processes = dict.fromkeys(["folder", "tfds"], ours)
    if settings.peers:
      python = environment(pathlib.Path(settings.peers))
      peers = Process(python, "peers", root, cores)
      processes |= dict.fromkeys(["torchvision", "grain", "libjpeg"], peers)
    names = [name for name, _ in [*PARTS.values(), *OTHERS.values()]]
    processes |= dict.fromkeys(names, ours)
    found = measure(processes, settings.number, settings.rounds)
    ours.close()
    if peers:
      peers.close()
  text = report(
    found,
    pixels,
    rates,
    about(mean, settings.number, settings.rounds, bool(settings.peers)),
    settings.out,
  )
  draw(found, settings.out)
  settings.out.write_text(text)
  print(text)


if __name__ == "__main__":
  main()
