"""Builds wheel and sdist, and uses them in empty environments.

The environments are made from the package registry, as `make` does it.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from mae_jax.config import recipe_names
from mae_jax.utils.extras import EXTRAS
from mae_jax.utils.version import __version__
from tests.helpers import sample_checkpoints

ROOT = pathlib.Path(__file__).parents[2]
COPIED = (
  *("mae_jax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in"),
  *("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt"),
)
# Packages of mae_jax that the core can import whole. Others train, too.
CORE = (
  *("api", "checkpoints", "config", "conversion", "distributed", "models"),
  "utils",
)
# A program of a user who has the core alone.
PROGRAM = """
import pathlib
import sys

import mae_jax

assert "jax" not in sys.modules
import numpy as np
from PIL import Image

model = mae_jax.from_pretrained("digits")
images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
pathlib.Path("images").mkdir()
for number, image in enumerate(images):
  Image.fromarray(image[..., 0]).save(f"images/{number}.png")
features = model.features("images")
assert np.isfinite(features.values).all() and features.values.shape == (5, 64)
assert set(model.features(images, layers=[1, 4])) == {1, 4}
assert model.reconstruct(images).sheet().width > 100
assert model.attention(images).sheet().width > 100
model.save_pretrained("copy")
again = mae_jax.from_pretrained("copy").features(images)
assert np.abs(again.values - features.values).max() < 1e-5
other = mae_jax.create_model("vit_ti16", image_size=32, depth=1, num_classes=2)
assert other.predict(images).labels.shape == (5, 2)
try:
  mae_jax.train("digits", "run")
except mae_jax.ConfigError as error:
  assert "pip install 'mae_jax[train]'" in str(error), error
else:
  raise AssertionError("trained without TensorFlow")
"""
# Checked by mypy, as a program of a user.
TYPED = """
import mae_jax
import numpy as np

model: mae_jax.Model = mae_jax.from_pretrained("digits")
one: np.ndarray = model.features("x.png").values
several: dict[int, np.ndarray] = model.features("x.png", layers=[1])
run: mae_jax.Run = mae_jax.train(mae_jax.recipe("digits"), "runs")
reveal_type(model.predict("x.png").probabilities)
model.features("x.png", pool=3)
"""

pytestmark = pytest.mark.slow


def run(*words: object, cwd: pathlib.Path) -> str:
  """Runs a program as a user does, who is in no checkout."""
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [str(word) for word in words],
    cwd=cwd,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
  """The files of a fresh checkout."""
  copy = tmp_path_factory.mktemp("source")
  ignored = shutil.ignore_patterns("__pycache__")
  for name in COPIED:
    path = ROOT / name
    if path.is_dir():
      shutil.copytree(path, copy / name, ignore=ignored)
    else:
      shutil.copy(path, copy / name)
  return copy


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
  """An sdist, and the wheel that is made from it."""
  out = tmp_path_factory.mktemp("dist")
  build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out)
  run(*build, source, cwd=out)
  (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
  return wheel, sdist


def install(place: pathlib.Path, what: str) -> pathlib.Path:
  """Makes an empty environment, and installs into it; returns its programs."""
  run(sys.executable, "-m", "venv", place / "venv", cwd=place)
  programs = place / "venv" / "bin"
  pip = (programs / "python", "-m", "pip", "install", "--quiet")
  run(*pip, "--constraint", ROOT / "constraints.txt", what, cwd=place)
  return programs


@pytest.fixture(scope="module")
def core(built, tmp_path_factory) -> pathlib.Path:
  return install(tmp_path_factory.mktemp("core"), str(built[0]))


def test_contents(built):
  wheel, sdist = built
  assert wheel.name == f"mae_jax-{__version__}-py3-none-any.whl"
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
    metadata = file.read(f"mae_jax-{__version__}.dist-info/METADATA").decode()
  recipes = {path.name for path in (ROOT / "configs").glob("*.py")}
  assert {
    pathlib.Path(name).name
    for name in names
    if name.startswith("mae_jax/configs/")
  } == recipes
  modules = {
    str(path.relative_to(ROOT)) for path in (ROOT / "mae_jax").rglob("*.py")
  }
  pages = {f"mae_jax/tools/{name}/page.html" for name in ("demo", "report")}
  assert modules | pages | {"mae_jax/py.typed"} <= names
  tops = {name.partition("/")[0] for name in names}
  assert tops == {"mae_jax", f"mae_jax-{__version__}.dist-info"}
  assert "# mae_jax" in metadata  # the README
  for extra in (*EXTRAS.values(), "all", "test", "docs", "cuda12", "cuda13"):
    assert f"Provides-Extra: {extra}\n" in metadata
  with tarfile.open(sdist) as file:
    found = {name.partition("/")[2] for name in file.getnames()}
  files = {name for name in COPIED if "." in name}
  assert {*files, "LICENSE", "configs/digits.py"} <= found


def test_the_core_needs_no_extra(core, tmp_path):
  assert "usage: mae-jax" in run(core / "mae-jax", "--help", cwd=tmp_path)
  text = run(core / "mae-jax", "convert", "--help", cwd=tmp_path)
  assert "--to" in text
  code = f"""
import importlib, pathlib, sys
import mae_jax
root = pathlib.Path(mae_jax.__file__).parent
for package in {CORE}:
  for path in sorted((root / package).rglob("*.py")):
    parts = path.relative_to(root.parent).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    importlib.import_module(name)
print([name for name in {tuple(EXTRAS)} if name in sys.modules])
print(*mae_jax.config.recipe_names())
"""
  imported, names = run(core / "python", "-c", code, cwd=tmp_path).splitlines()
  # Dependencies of etils and Orbax.
  assert imported in ("[]", "['importlib_resources']")
  assert tuple(names.split()) == recipe_names()


def test_the_core_serves_a_notebook(core, tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  run(core / "python", "-W", "error", "program.py", cwd=tmp_path)


def test_the_core_runs_commands(core, tmp_path):
  random = np.random.default_rng(0)
  Image.fromarray(random.integers(0, 256, (9, 12), np.uint8)).save(
    tmp_path / "x.png"
  )
  flags = ("--checkpoint=digits", "--images=x.png")
  for words, made in (
    (("features", *flags, "--out=x.npz"), "x.npz"),
    (("reconstruct", *flags, "--out=pictures"), "pictures/sheet.png"),
    (("export", "--checkpoint=digits", "--out=served"), "served/export.json"),
  ):
    run(core / "mae-jax", *words, cwd=tmp_path)
    assert (tmp_path / made).stat().st_size


def test_types_are_known_outside(core, tmp_path):
  (tmp_path / "program.py").write_text(TYPED)
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mypy", "--strict", "program.py"),
      *("--python-executable", core / "python", "--cache-dir", tmp_path / "c"),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  lines = done.stdout.splitlines()
  assert "numpy.ndarray" in lines[0], done.stdout
  errors = [line for line in lines if ": error:" in line]
  assert len(errors) == 1, done.stdout
  assert errors[0].startswith("program.py:10: error: No overload")


def test_the_core_converts_weights(core, tmp_path):
  checkpoint = sample_checkpoints.save(tmp_path / "run", "mae")
  out = tmp_path / "out"
  convert = (core / "mae-jax", "convert", checkpoint, out)
  run(*convert, "--to=transformers", cwd=tmp_path)
  assert (out / "model.safetensors").stat().st_size > 1000
  assert (out / "config.json").exists()


def test_a_missing_extra_is_named(core, tmp_path):
  for command, extra in (
    (("train", "--config=digits", "--workdir=w"), "train"),
    (("report", "--workdir=w"), "report"),
    (("demo",), "viz"),
    (("serve",), "serve"),
  ):
    done = subprocess.run(
      [core / "mae-jax", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f" is not installed: pip install 'mae_jax[{extra}]'" in done.stderr
  assert list(tmp_path.iterdir()) == []


def test_an_editable_install_finds_the_recipes(core, source, tmp_path):
  pip = (core / "python", "-m", "pip", "install", "--quiet", "--no-deps")
  run(*pip, "--no-build-isolation", "setuptools", cwd=tmp_path)
  run(*pip, "--no-build-isolation", "--editable", source, cwd=tmp_path)
  (source / "configs" / "mine.py").write_text("")
  code = (
    "from mae_jax.config import overrides as o;"
    "print(*o.recipe_names()); print(o.find_recipe('vit_l:epochs=9'))"
  )
  names, path = run(core / "python", "-c", code, cwd=tmp_path).splitlines()
  assert sorted(names.split()) == sorted([*recipe_names(), "mine"])
  assert path == f"{source}/configs/vit_l.py:epochs=9"


def test_the_wheel_trains(built, tmp_path):
  programs = install(tmp_path, f"{built[0]}[train]")
  run(programs / "python", "-c", "import mae_jax", cwd=tmp_path)
  done = run(
    *(programs / "mae-jax", "train", "--config=digits", "--workdir=run"),
    "--config.train.length=20 steps",
    "--config.optim.warmup=2 steps",
    cwd=tmp_path,
  )
  assert "trained to step 20" in done
  assert "linear probe, 5 per class" in done
  assert (tmp_path / "run" / "reconstructions.png").exists()
  # The notebook of the first steps, whose cells a notebook would run.
  text = (ROOT / "docs" / "quickstart" / "notebook.md").read_text()
  cells = re.findall(r"```{code-cell}[^\n]*\n(.*?)```", text, re.DOTALL)
  assert len(cells) > 5
  (tmp_path / "notebook.py").write_text("\n".join(cells))
  run(programs / "python", "notebook.py", cwd=tmp_path)
