"""Tests of nearest neighbors against all distances."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from mae_jax.tools import features, neighbors
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs
from tests.helpers.commands import command, write_images

NAMES = tuple(f"{k % 3}/{k}.png" for k in range(11))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("images"), NAMES)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return runs.pretrained(tmp_path_factory.mktemp("run"))


def rows(out) -> list[dict[str, str]]:
  with (out / "neighbors.csv").open() as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_nearest_by_cosine(workdir, images, tmp_path, pool: str):
  out = tmp_path / "out"
  neighbors.write(
    str(workdir), str(images), str(images / "1"), str(out), count=4, pool=pool,
    batch_size=4,
  )  # fmt: skip
  file = tmp_path / "x.npz"
  features.write(str(workdir), str(images), str(file), pool=pool)
  with np.load(file) as found:
    names, vectors = found["names"].tolist(), found["features"]
  vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  queries = [name for name in names if name.startswith("1/")]
  wanted = []
  for query in queries:
    cosine = vectors @ vectors[names.index(query)]
    cosine[names.index(query)] = -2  # no image is its own neighbor
    for rank, place in enumerate(np.argsort(-cosine)[:4], 1):
      wanted.append((query[2:], str(rank), names[place], cosine[place]))
  got = rows(out)
  assert [tuple(row.values())[:3] for row in got] == [w[:3] for w in wanted]
  values = [float(row["similarity"]) for row in got]
  np.testing.assert_allclose(values, [w[3] for w in wanted], atol=2e-6)
  sheet = np.asarray(Image.open(out / "sheet.png"))
  assert sheet.shape[1] == 4 + 5 * (128 + 4)


def test_a_copy_is_the_nearest(workdir, images, tmp_path):
  copy = tmp_path / "copy.png"
  copy.write_bytes((images / NAMES[4]).read_bytes())
  neighbors.write(
    str(workdir), str(images), str(copy), str(tmp_path / "out"), count=50
  )
  found = rows(tmp_path / "out")
  assert found[0]["file"] == NAMES[4]
  assert float(found[0]["similarity"]) == pytest.approx(1, abs=1e-5)
  assert len(found) == len(NAMES)


def test_a_folder_with_only_the_query_is_refused(workdir, images, tmp_path):
  alone = str(images / NAMES[4])
  with pytest.raises(ConfigError, match="nothing but the query"):
    neighbors.write(str(workdir), alone, alone, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_mistakes(workdir, images, tmp_path):
  out = str(tmp_path / "out")
  for query, more, output in (
    ("/nowhere", {}, "--query=/nowhere: there is no such"),
    (str(images), {"count": 0}, "--count=0 must be at least 1"),
    (str(images), {"pool": "max"}, "--pool='max'"),
  ):
    with pytest.raises(ConfigError, match=output):
      neighbors.write(str(workdir), str(images), query, out, **more)


@pytest.mark.slow
def test_the_command(workdir, images, tmp_path):
  out = tmp_path / "out"
  found = command(
    "neighbors",
    f"--checkpoint={workdir}",
    f"--images={images}",
    f"--query={images / NAMES[0]}",
    f"--out={out}",
    "--count=2",
  )
  assert found.returncode == 0, found.stderr
  assert f"{out}: neighbors of 1 image among 11" in found.stdout
  assert len(rows(out)) == 2
