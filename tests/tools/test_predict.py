"""Tests of predictions against a plain loop, printed and in a file."""

from __future__ import annotations

import csv
import os

import jax
import numpy as np
import pytest
from pyarrow import parquet

from mae_jax.config import ClassifyConfig, EvalConfig
from mae_jax.models import classifiers, factory
from mae_jax.tools import cli, image_stream, predict
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.commands import (
  command,
  normalized_pixels,
  pixels,
  write_images,
)

CLASSES = ("ant", "bee", "cow")
NAMES = ("deep/er/2.png", "deep/x.jpg", "é, 1.png")


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
  """Class folders, created in another order than that of their names."""
  root = tmp_path_factory.mktemp("labeled")
  for name in ("cow", "ant", "bee"):
    write_images(root, (f"{name}/{number}.png" for number in range(4)))
  return root


def config(task, labeled, **sections):
  data = {"source": "folder", "path": str(labeled), "batch_size": 8}
  return tiny.config(
    task=task,
    data=data | {"eval_crop": 0.8},
    train={"length": "3 steps"},
    classify=ClassifyConfig(head_std=0.5, norm_group=8),
    **sections,
  )


@pytest.fixture(scope="module")
def trained(labeled, tmp_path_factory):
  """Settings and workdir of a run."""
  workdir = tmp_path_factory.mktemp("trained")
  settings = config("finetune", labeled)
  runs.train(settings, workdir)
  return settings, workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture
def rows(tmp_path):
  """A function that runs the tool and reads the rows of its file."""

  def write(checkpoint, images, **changes):
    out = tmp_path / "predictions.csv"
    predict.write(str(checkpoint), str(images), str(out), **changes)
    text = out.read_bytes().decode("utf-8", "surrogateescape")
    found = list(csv.DictReader(text.splitlines()))
    assert all(tuple(row) == predict.COLUMNS for row in found)
    return found

  return write


def test_probabilities_equal_those_of_a_plain_loop(trained, photos, rows):
  settings, workdir = trained
  params = runs.params(workdir, settings)["model"]
  model = factory.classifier(settings, len(CLASSES))
  found = rows(workdir, photos, batch_size=2)
  assert len(found) == len(NAMES) * len(
    CLASSES
  )  # there are fewer than five classes
  forward = jax.jit(lambda x: model.apply({"params": params}, x)[0])
  for number, name in enumerate(NAMES):
    logits = np.asarray(
      forward(normalized_pixels(photos / name, settings.data))
    )
    wanted = np.exp(logits.astype(np.float64))
    wanted /= wanted.sum()
    mine = found[3 * number : 3 * number + 3]
    assert [row["file"] for row in mine] == [name] * 3
    assert [row["rank"] for row in mine] == ["1", "2", "3"]
    labels = [int(row["label"]) for row in mine]
    assert labels == np.argsort(-wanted).tolist()
    assert [row["class"] for row in mine] == [CLASSES[x] for x in labels]
    values = np.array([float(row["probability"]) for row in mine])
    np.testing.assert_allclose(values, wanted[labels], atol=1e-6)
    assert values.sum() == pytest.approx(1, abs=1e-6)
  assert len({row["probability"] for row in found}) > len(CLASSES)


@pytest.mark.slow
def test_a_linear_probe(labeled, photos, rows, tmp_path):
  settings = config("linprobe", labeled)
  runs.train(settings, tmp_path / "run")
  params = runs.params(tmp_path / "run", settings)
  probe = classifiers.probe(settings, len(CLASSES), "cpu")
  for row, name in zip(
    rows(tmp_path / "run", photos, top=1), NAMES, strict=True
  ):
    logits = probe.logits(params, pixels(photos / name, settings.data))[0]
    assert row["file"] == name
    assert int(row["label"]) == logits.argmax()
    score = float(jax.nn.softmax(logits).max())
    assert float(row["probability"]) == pytest.approx(score, abs=1e-5)


@pytest.mark.slow
def test_batch_size_and_devices_do_not_change_predictions(
  trained, photos, rows
):
  workdir = trained[1]
  first = rows(workdir, photos, mesh=runs.devices_mesh(1))
  assert rows(workdir, photos, mesh=runs.devices_mesh(1)) == first
  for devices, size in ((1, 1), (2, 64)):
    mesh = runs.devices_mesh(devices)
    again = rows(workdir, photos, batch_size=size, mesh=mesh)
    for a, b in zip(first, again, strict=True):
      assert {**a, "probability": 0} == {**b, "probability": 0}
      values = [float(each["probability"]) for each in (a, b)]
      assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_print(trained, photos, rows, capsys):
  found = rows(trained[1], photos, top=2)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(NAMES) + 1
  for number, line in enumerate(lines[:-1]):
    first, second = found[2 * number : 2 * number + 2]
    shown = ", ".join(
      f"{row['class']} {100 * float(row['probability']):.1f} %"
      for row in (first, second)
    )
    assert line == f"{NAMES[number]}: {shown}"
  assert lines[-1].startswith("3 images in ")
  assert lines[-1].endswith("predictions.csv")


def test_accuracy_where_folders_are_classes(trained, labeled, rows, capsys):
  found = rows(trained[1], labeled, top=1)
  right = [row["file"].split("/")[0] == row["class"] for row in found]
  lines = capsys.readouterr().out.splitlines()
  assert len(right) == 12
  assert lines[-2] == (
    f"top-1 {100 * sum(right) / 12:.1f} % of 12 images, whose folders are "
    "classes of the network"
  )


@pytest.mark.slow
def test_printed_predictions_are_shortened_only_with_a_file(
  trained, rows, tmp_path, capsys
):
  names = [f"{number:02}.png" for number in range(23)]
  root = write_images(tmp_path / "many", names)
  (root / "02.png").write_bytes(b"no image")
  found = rows(trained[1], root, top=1, batch_size=8)
  names.remove("02.png")
  assert [row["file"] for row in found] == names
  output = capsys.readouterr()
  lines = output.out.splitlines()
  assert [line.partition(":")[0] for line in lines[:20]] == names[:20]
  assert lines[20].startswith("and 2 more, which are in ")
  assert lines[21].startswith("23 images (1 cannot be read) in ")
  assert "warning: 02.png cannot be read" in output.err
  predict.write(str(trained[1]), str(root), top=1)
  lines = capsys.readouterr().out.splitlines()
  assert [line.partition(":")[0] for line in lines[:-1]] == names


def test_names_of_classes_can_be_given(trained, photos, rows, tmp_path):
  file = tmp_path / "names.txt"
  file.write_text("\ufeffAmeise, rot\r\nBiene\r\nKuh \r\n\r\n", "utf-8")
  found = rows(trained[1], photos, class_names=str(file))
  wanted = ("Ameise, rot", "Biene", "Kuh")
  for row in found:
    assert row["class"] == wanted[int(row["label"])]


def test_a_parquet_file_equals_the_csv_file(trained, photos, rows, tmp_path):
  _, workdir = trained
  out = tmp_path / "out.parquet"
  predict.write(str(workdir), str(photos), str(out), top=2)
  table = parquet.read_table(out).to_pylist()
  assert list(table[0]) == list(predict.COLUMNS)
  wanted = rows(workdir, photos, top=2)
  for row, same in zip(table, wanted, strict=True):
    probability = float(same.pop("probability"))
    assert row.pop("probability") == pytest.approx(probability, rel=1e-6)
    assert {name: str(value) for name, value in row.items()} == same


def test_odd_names_of_files(trained, photos, rows, tmp_path, capsys):
  odd = os.fsencode(tmp_path / "odd") + b"/\xff.png"
  os.mkdir(tmp_path / "odd")
  with open(odd, "wb") as file:
    file.write((photos / NAMES[0]).read_bytes())
  found = rows(trained[1], tmp_path / "odd", top=1)
  assert os.fsencode(found[0]["file"]) == b"\xff.png"
  assert capsys.readouterr().out.startswith("\\udcff.png: ")


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"top": 0}, "--top=0 must be at least 1"),
    (
      {"out": "x.txt"},
      "--out=x.txt does not end in .csv or .parquet: .* as x.csv",
    ),
    ({"images": "nowhere"}, "--images=nowhere: there is no such folder or"),
    ({"class_names": "{tmp}/2"}, "2 has 2 lines, but the head has 3 classes"),
    ({"class_names": "nowhere"}, r"cannot be read \(No such file or"),
    ({"class_names": "{tmp}/x.png"}, "cannot be read .*utf-8.*name a text"),
  ],
)
def test_mistakes(trained, photos, tmp_path, changes, text):
  (tmp_path / "2").write_text("a\nb\n")
  (tmp_path / "x.png").write_bytes(b"\xff\xfe")
  changes = {
    name: value.format(tmp=tmp_path) if isinstance(value, str) else value
    for name, value in changes.items()
  }
  settings = {
    "checkpoint": str(trained[1]),
    "images": str(photos),
    "out": str(tmp_path / "p.csv"),
  }
  with pytest.raises(ConfigError, match=text) as caught:
    predict.write(**(settings | changes))
  assert "\n" not in str(caught.value)
  assert sorted(os.listdir(tmp_path)) == ["2", "x.png"]


def test_an_interrupted_write_keeps_the_old_file(
  trained, photos, tmp_path, monkeypatch
):
  out = tmp_path / "x.csv"
  predict.write(str(trained[1]), str(photos), str(out))
  before = out.read_bytes()
  whole = image_stream.stream

  def interrupted(*args, **kwargs):
    yield next(whole(*args, **kwargs))
    raise RuntimeError

  monkeypatch.setattr(image_stream, "stream", interrupted)
  with pytest.raises(RuntimeError):
    predict.write(str(trained[1]), str(photos), str(out), top=1)
  assert out.read_bytes() == before
  assert os.listdir(tmp_path) == ["x.csv"]


def test_the_command(trained, photos, rows, tmp_path):
  done = command(
    "predict",
    f"--checkpoint={trained[1]}",
    f"--images={photos}",
    f"--out={tmp_path}/x.csv",
    "--top=1",
  )
  assert done.returncode == 0, done.stderr
  found = rows(trained[1], photos, top=1)
  for line, row in zip(done.stdout.splitlines(), found, strict=False):
    assert line.startswith(f"{row['file']}: {row['class']} ")
  assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + len(NAMES)


@pytest.mark.slow
def test_a_checkpoint_without_a_head_is_one_line(tmp_path, photos):
  settings = tiny.config(
    data={"eval_split": ""},
    train={"length": "3 steps"},
    eval=EvalConfig(images=0),
  )
  runs.train(settings, tmp_path / "run")
  done = command(
    "predict", f"--checkpoint={tmp_path}/run", f"--images={photos}"
  )
  assert done.returncode == 1
  assert done.stdout == ""
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith(f"error: {tmp_path}/run has no head: it is of a run")


def test_wrong_flags():
  with pytest.raises(SystemExit, match=r"^error: .*: --checkpoint, --images;"):
    cli.parser(predict.write, "predict").parse_args([])
