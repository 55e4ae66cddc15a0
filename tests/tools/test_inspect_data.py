"""Tests of the report of `inspect` on known data."""

from __future__ import annotations

import collections
import functools
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from mae_jax import __main__ as main
from mae_jax.config import Config, DataConfig
from mae_jax.data import bad_images, sources, survey
from mae_jax.tools import inspect_data
from mae_jax.utils.errors import ConfigError
from tests.helpers import commands, tfds_data, tiny
from tests.helpers.params import slow

SIZES = ((40, 30), (50, 60), (24, 24))


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
  """Measures the speed of reading for 0.1 s, not for 5 s."""
  measure = functools.partial(survey.measure_throughput, seconds=0.1)
  monkeypatch.setattr(survey, "measure_throughput", measure)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with two classes of colors, gray images and broken files."""
  root = tmp_path_factory.mktemp("images")
  random = np.random.default_rng(0)
  for name, count, channels in (("few", 2, 1), ("many", 30, 3)):
    (root / name).mkdir()
    for number in range(count):
      size = SIZES[number % 3]
      array = random.integers(0, 256, (*size, channels), np.uint8)
      array = np.broadcast_to(array, (*size, 3))
      Image.fromarray(array).save(root / name / f"{number:02}.png")
  (root / "many" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  return root


def folder_config(folder, **data) -> Config:
  settings = {
    "source": "folder",
    "path": str(folder),
    "channels": 3,
    "mean": (0.5,),
    "std": (0.3,),
    "image_size": (24, 24),
    "batch_size": 8,
  }
  return tiny.config(data=settings | data)


def arrays(folder) -> list[np.ndarray]:
  return [
    np.asarray(Image.open(path).convert("RGB")) / 255
    for path in sorted(folder.rglob("[0-9]*.png"))
  ]


def look(data: DataConfig) -> survey.Survey:
  return survey.survey_images(sources.open_source(data, "train"), data)


def test_statistics_equal_those_of_a_plain_loop(folder):
  found = look(folder_config(folder).data)
  images = arrays(folder)
  sizes = sorted(image.shape[:2] for image in images)
  assert sorted(map(tuple, found.sizes)) == sizes
  # All images have equal weight.
  mean = np.mean([image.mean(axis=(0, 1)) for image in images], axis=0)
  square = np.mean([(image**2).mean(axis=(0, 1)) for image in images], axis=0)
  np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
  np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=1e-9)
  assert found.gray == 2
  assert found.labels == {0: 2, 1: 31}
  assert len(found.unreadable.names) == 1
  assert "many/broken.png" in found.unreadable.listing()
  assert found.num_images == 33
  assert found.enlarged((25, 10)) == sum(h < 25 for h, _ in sizes) / 32
  assert found.enlarged((24, 24)) == 0
  assert (
    found.enlarged((24, 24), 0.9)
    == sum(min(size) * 0.9 < 24 for size in sizes) / 32
  )


def test_arrays(monkeypatch):
  data = tiny.config().data
  found = look(data)
  images = datasets.load_digits().images
  assert set(map(tuple, found.sizes)) == {(8, 8)}
  assert found.labels.total() == len(found.sizes) == 1437
  assert found.gray == 0
  assert found.mean == pytest.approx(images.mean() / 16, abs=0.01)
  assert found.std == pytest.approx(images.std() / 16, abs=0.01)


def test_records(tmp_path):
  features = tfds_data.tfds.features
  tfds_data.prepare(
    tmp_path,
    "shapes",
    {
      "image": features.Image(shape=(None, None, 3)),
      "label": features.ClassLabel(num_classes=9),
      "file_name": features.Text(),
    },
    {"train": tfds_data.shapes(9)},
    num_shards=2,
  )
  data = tiny.config(
    data={
      "source": "tfds",
      "name": "shapes",
      "data_dir": str(tmp_path),
      "channels": 3,
      "eval_split": "",
    }
  ).data
  found = look(data)
  assert sorted(found.sizes[:, 0]) == sorted(6 + k % 3 for k in range(9))
  assert found.labels == dict.fromkeys(range(9), 1)
  np.testing.assert_allclose(found.mean, 8 / 255)
  assert found.gray == 9
  names = {sources.open_source(data, "train").name(x) for x in found.ids}
  assert len(names) == 9


def test_samples_equal_training_images(folder):
  data = folder_config(folder).data
  source = sources.open_source(data, "train")
  rate, samples, labels = survey.measure_throughput(source, data, seconds=0)
  assert rate > 0
  assert samples.shape == (64, 24, 24, 3)
  assert set(labels) == {0, 1}


def test_report(folder, tmp_path, capsys):
  config = folder_config(
    folder, image_size=(32, 32), mean=(0.1,), max_unreadable=0.0
  )
  out = tmp_path / "out" / "samples.png"
  inspect_data.report(config, 0, str(out))
  message = capsys.readouterr()
  for text in (
    "images              33 to train on",
    "looked at           33 of those",
    "layout              all images are for training; their folders, if any",
    "cannot be read      1",
    "many/broken.png",
    "height              median 40, from 24 to 50",
    "few                       2  6.2%\n",
    "many                     30  93.8%, and 1 that cannot be read\n",
    "(configured: 0.1000)",
    "(configured: 0.3000)",
    "--config.data.mean=0.49",
  ):
    assert text in message.out
  for text in (
    "66% of the images are smaller than 32 x 32",
    "data.mean=(0.1,), but the images have 0.",
    "3.0% of the images cannot be read, and a run stops at",
    "class many has 15 times as many images as few",
  ):
    assert text in message.err
  assert "data.std=(" not in message.err
  picture = np.asarray(Image.open(out))
  assert picture.std() > 10


@pytest.mark.parametrize(
  ("crops", "enlarged"),
  [
    slow({"crop_scale": (0.5, 1.0)}, "0%"),  # at least 45 of 64 pixels
    ({"crop_fixed": 0.6}, "0%"),
    ({"crop_fixed": 0.4}, "100%"),
  ],
)
def test_good_data_has_no_warning(crops, enlarged: str, tmp_path, capsys):
  (tmp_path / "a").mkdir()
  random = np.random.default_rng(0)
  for number in range(4):
    array = random.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a" / f"{number}.png")
  config = folder_config(tmp_path, image_size=(32, 32), batch_size=4, **crops)
  inspect_data.report(config, 0, str(tmp_path / "x.png"))
  message = capsys.readouterr()
  assert "warning" not in message.err
  wanted = (
    f"0% of the whole images, {enlarged} of the smallest crops with data."
  )
  assert wanted in message.out


def test_classes_without_a_good_image_are_named(tmp_path, capsys):
  train = tmp_path / "train"
  for name in ("a", "b", "bad", "none", "void", ".hidden"):
    (train / name).mkdir(parents=True)
  (train / "none" / "notes.txt").write_text("no image")
  for name, count in (("a", 4), ("b", 5)):
    for number in range(count):
      array = np.full((30, 30, 3), 40 * number, np.uint8)
      Image.fromarray(array).save(train / name / f"{number}.png")
  for number in range(2):
    (train / "bad" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  config = folder_config(tmp_path, batch_size=4, max_unreadable=0.5)
  inspect_data.report(config, 0, str(tmp_path / "x.png"))
  message = capsys.readouterr()
  assert "classes             3\n" in message.out
  assert (
    "bad                       0  0.0%, and 2 that cannot be" in message.out
  )
  assert f"in folder none, void of data.path={tmp_path}, which" in message.err
  assert "the images looked at of class bad can be read: fix" in message.err
  assert "times as many" not in message.err
  # With a limit on images, counts are still those of all.
  few, unread = inspect_data.look(
    sources.open_source(config.data, "train"), 6, config.data
  )
  assert few.num_images == 6
  assert few.labels + unread == {0: 3, 1: 2, 2: 1}
  assert unread == {2: 1}


def test_sizes_of_records_include_unreadable_images(capsys):
  found = survey.Survey(
    np.ones((3, 2)), np.zeros((3, 4)), np.arange(3), np.zeros(3), np.zeros(3),
    0, 0, 0, np.zeros(0),
    collections.Counter({0: 3, 1: 1}), bad_images.BadImages(max_warnings=0),
  )  # fmt: skip
  found.unreadable.report("x", "torn")
  inspect_data._say_classes(found, collections.Counter(), ("a", "b"))
  assert (
    "2; their sizes count what cannot be read too (1)\n"
    in capsys.readouterr().out
  )


@pytest.mark.slow
def test_transparent_and_uniform_images_are_counted(tmp_path, capsys):
  random = np.random.default_rng(0)
  opaque = np.full((24, 24, 1), 255, np.uint8)
  for name, color, alpha in (
    ("plain", random.integers(0, 256, (24, 24, 3), np.uint8), opaque),
    ("shape", random.integers(0, 256, (24, 24, 3), np.uint8), opaque // 2),
    ("drawn_in_white", np.full((24, 24, 3), 255, np.uint8), opaque // 3),
    ("blank", np.full((24, 24, 3), 7, np.uint8), opaque),
  ):
    image = Image.fromarray(np.concatenate([color, alpha], -1))
    image.save(tmp_path / f"{name}.png")
  config = folder_config(tmp_path)
  inspect_data.report(config, 0, str(tmp_path / "out" / "x.png"))
  found = capsys.readouterr()
  assert "2 have transparent pixels (data.background=white)" in found.out
  assert "2 of 4 images are uniform" in found.err
  assert "--config.data.background, since 2 have transparent" in found.err


def photos(number: int) -> list[Image.Image]:
  """Returns unlike photographs: smooth random colors with some noise."""
  random = np.random.default_rng(number)
  found = []
  for _ in range(number):
    small = Image.fromarray(random.integers(0, 200, (6, 6, 3), np.uint8))
    large = np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC))
    noise = random.integers(0, 20, large.shape, np.uint8)
    found.append(Image.fromarray(large // 2 + noise))
  return found


def test_held_out_images_that_are_trained_on_are_found(tmp_path, capsys):
  for name in ("train/a", "train/b", "val/a", "val/b"):
    (tmp_path / name).mkdir(parents=True)
  images = photos(12)
  for number, image in enumerate(images[:8]):
    image.save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
  val = tmp_path / "val"
  images[0].save(val / "b" / "equal.png")
  images[3].save(val / "a" / "jpeg.jpg", quality=60)
  images[4].resize((96, 72)).save(val / "a" / "large.png")
  images[5].point(lambda x: min(1.2 * x + 5, 255)).save(
    val / "b" / "bright.png"
  )
  for number, image in enumerate(images[8:]):
    image.save(val / "a" / f"{number}.png")
  images[6].transpose(Image.Transpose.ROTATE_180).save(val / "a" / "turned.png")
  for name in ("train/a/black.png", "val/a/black.png", "val/b/black.png"):
    Image.new("RGB", (64, 48)).save(tmp_path / name)
  (val / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  out = str(tmp_path.parent / f"{tmp_path.name}.png")
  inspect_data.report(folder_config(tmp_path), 0, out)
  message = capsys.readouterr()
  # Black and broken images are not compared.
  assert (
    "leaked              4 of 9 held-out images, compared with 8 to train on"
    in message.out
  )
  (line,) = (x for x in message.err.splitlines() if "held-out images look" in x)
  assert "4 held-out images look like images to train on" in line
  assert "val/b/equal.png = train/a/0.png" in line
  assert line.count(" = ") == 3
  table = out.replace(".png", "_leaked.csv")
  assert line.endswith(f", ...; all are in {table}")
  rows = pathlib.Path(table).read_text().splitlines()
  assert rows[0] == "held out,to train on"
  assert len(rows) == 5
  assert "val/b/equal.png,train/a/0.png" in rows


def test_copies_among_arrays_are_named_by_number(tmp_path, capsys, monkeypatch):
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (9, 8, 8, 1), np.uint8)
  splits = {"train": images[:6], "eval": images[[7, 4, 8]]}

  monkeypatch.setattr(
    sources,
    "open_source",
    lambda data, split: sources.Arrays.create(splits[split], {}),
  )
  inspect_data.report(tiny.config(), 3, str(tmp_path / "x.png"))  # 0, 2 and 4
  message = capsys.readouterr()
  assert "1 of 3 held-out images, compared with 3 to train on" in message.out
  assert "(the held-out one comes first): 1 = 4; all are in " in message.err


@pytest.mark.slow
def test_the_value_range_is_found(tmp_path, tmp_path_factory, capsys):
  random = np.random.default_rng(0)
  for number in range(4):
    x_ray = random.integers(300, 4000, (24, 24), np.uint16)
    Image.fromarray(x_ray).save(tmp_path / f"{number}.png")
  data = {"channels": 1, "mean": (0.5,), "std": (0.3,)}
  out = str(tmp_path_factory.mktemp("out") / "x.png")
  inspect_data.report(folder_config(tmp_path, **data), 0, out)
  found = capsys.readouterr()
  (line,) = (x for x in found.out.splitlines() if "value_range=" in x)
  low, high = map(float, line.partition("=")[2].split(","))
  assert 300 <= low < 330
  assert 3970 < high < 4000
  assert found.err.count("8 bits keep") == 1
  assert "8 bits keep 15 of" in found.err
  assert "for 8 bits: with the value range above, inspect again" in found.out
  ranged = folder_config(tmp_path, **data, value_range=(low, high))
  inspect_data.report(ranged, 0, out)
  found = capsys.readouterr()
  assert "8 bits keep" not in found.err
  assert "mean                0.5" in found.out


def test_with_a_value_range_the_numbers_are_those_of_training(tmp_path, capsys):
  random = np.random.default_rng(0)
  low, high = 500.0, 3500.0
  seen = []
  for number in range(8):
    stored = random.integers(0, 4096, (24 + number, 30), np.uint16)
    path = tmp_path / f"{number}"
    if number % 4 == 0:
      np.save(f"{path}.npy", stored.astype(np.float32))
    elif number % 4 == 1:
      Image.fromarray(stored.astype(np.float32)).save(f"{path}.tiff")
    else:
      Image.fromarray(stored).save(f"{path}.png")
    seen.append(((stored - low) / (high - low)).clip(0, 1))
  mean = np.mean([image.mean() for image in seen])
  square = np.mean([(image**2).mean() for image in seen])
  config = folder_config(tmp_path, channels=1, value_range=(low, high))
  found = look(config.data)
  np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
  np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=1e-5)
  inspect_data.report(config, 0, str(tmp_path.parent / "ranged.png"))
  printed = capsys.readouterr().out
  assert f"mean                {mean:.4f} (configured: 0.5000)" in printed
  assert f"--config.data.mean={mean:.4f} --config.data.std=0.3" in printed
  clipped = ((found.values < low) | (found.values > high)).mean()
  assert clipped == pytest.approx((500 + 595) / 4096, abs=0.03)
  assert f"(configured: 500,3500, which clips {clipped:.1%})" in printed
  assert "for 8 bits" not in printed


def test_arrays_of_unknown_range_get_one(tmp_path):
  for number in range(3):
    values = np.linspace(0, 2, 24 * 24, dtype=np.float32).reshape(24, 24)
    np.save(tmp_path / f"{number}.npy", values)
  with pytest.raises(ConfigError, match=r"set --config.data.value_range=0"):
    inspect_data.report(folder_config(tmp_path), 0, str(tmp_path / "x.png"))


def test_the_settings_can_be_pasted(tmp_path, capsys):
  flags = ["--config=configs/digits.py", f"--out={tmp_path}/x.png"]
  main.main(["inspect", *flags])
  found = capsys.readouterr()
  assert found.err.count("warning") == 0
  assert "0% of the whole images, 100% of the smallest crops" in found.out
  (line,) = (x for x in found.out.splitlines() if "as flags" in x)
  pasted = line.split()[3:]
  assert [flag.partition("=")[0] for flag in pasted] == [
    "--config.data.mean", "--config.data.std",
  ]  # fmt: skip
  main.main(["inspect", *flags, *pasted, "--limit=10"])
  assert "looked at           10 of" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--config=configs/digits.py", "--limit=-1"), "--limit=-1 must be"),
    (("--config=configs/digits.py", "--out=x.jpg"), "does not end in .png"),
    ((), "--config is missing"),
    (("--config=configs/digits.py", "x"), "'x' is not a flag"),
    (
      ("--config=configs/vit_b.py", "--config.data.source=folder",
       "--config.data.path=/nowhere"),
      "/nowhere",
    ),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(flags, message: str):
  found = commands.command("inspect", *flags)
  assert found.returncode == 1
  assert message in found.stderr
  assert found.stderr.count("\n") == 1


def test_data_without_readable_images(tmp_path):
  for number in range(3):
    (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  config = folder_config(tmp_path)
  out = tmp_path / "x.png"
  with pytest.raises(ConfigError, match="none of 3 images"):
    inspect_data.report(config, 0, str(out))
  assert not out.exists()
