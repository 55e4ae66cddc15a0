"""Tests of features against the network applied by hand, and of their file."""

from __future__ import annotations

import dataclasses
import os
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from mae_jax.config import ClassifyConfig, EvalConfig
from mae_jax.evals import load_model
from mae_jax.models import (
  batch_norm,
  classifiers,
  factory,
  pos_embed,
  transformer,
)
from mae_jax.tools import cli, feature_extractor, features, image_stream
from mae_jax.train import loop
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError
from tests.helpers import disks, runs, tiny
from tests.helpers import fake_gcs as bucket_lib
from tests.helpers.commands import (
  command,
  normalized_pixels,
  pixels,
  write_images,
)
from tests.helpers.params import slow

SMALL = {
  "data": {"eval_crop": 0.8, "eval_split": ""},
  "train": {"length": "3 steps"},
  "eval": EvalConfig(images=0),
}
PRETRAIN = tiny.config(**SMALL)
# Sorted by path: "a.png" is before "a/..." and after "a-".
NAMES = (
  "a-/x.png", "a.png", "a/0.jpg", "a/b/c/1.webp", "a/b2.png", "val/train/z.bmp",
  "val/é.png",
)  # fmt: skip


def labeled(task, start, **classify):
  settings = {"classify": ClassifyConfig(**classify)}
  return tiny.config(task=task, init_from=str(start), **SMALL, **settings)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  root = write_images(tmp_path_factory.mktemp("photos"), NAMES)
  (root / "a" / "notes.txt").write_text("no image")
  (root / ".hidden.png").write_bytes(b"")
  return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pretrained")
  runs.train(PRETRAIN, workdir)
  return workdir


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory):
  """Settings and workdir of a run by pooling."""
  result = {}
  for pooling, more in (("mean", {"ema": 0.5}), ("cls", {"trainable": "mlp"})):
    workdir = tmp_path_factory.mktemp(pooling)
    settings = labeled("finetune", pretrained, pooling=pooling, **more)
    runs.train(settings, workdir)
    result[pooling] = settings, workdir
  return result


@pytest.fixture
def written(tmp_path, photos):
  """A function that runs the tool and reads its file."""

  def write(checkpoint, images=photos, **changes):
    out = tmp_path / "features.npz"
    features.write(str(checkpoint), str(images), str(out), **changes)
    with np.load(out) as file:
      return {name: file[name] for name in file}

  return write


def by_hand(model, params, photos, data):
  """Returns the tokens of each image, computed one image at a time."""
  forward = jax.jit(lambda x: model.apply({"params": params}, x))
  tokens = [forward(normalized_pixels(photos / name, data)) for name in NAMES]
  return (
    np.concatenate([each.cls for each in tokens]),
    np.concatenate([each.patches for each in tokens]),
  )


def test_pooled_features_equal_a_plain_loop(pretrained, photos, written):
  params = runs.params(pretrained, PRETRAIN)["model"]["encoder"]
  encoder = factory.masked_autoencoder(PRETRAIN).encoder
  cls, patches = by_hand(encoder, params, photos, PRETRAIN.data)
  wanted = {
    "cls": cls,
    "mean": patches.mean(axis=1),
    "all": np.concatenate([cls[:, None], patches], axis=1),
  }
  for pool, each in wanted.items():
    # Two batches; the last one is not full.
    found = written(pretrained, pool=pool, batch_size=4)
    assert found["features"].dtype == np.float32
    assert found["features"].shape == each.shape
    np.testing.assert_allclose(found["features"], each, atol=1e-5)
    assert found["names"].tolist() == list(NAMES)
    assert found["readable"].tolist() == [True] * len(NAMES)


@pytest.mark.slow
def test_images_are_prepared_as_pillow_would(pretrained, photos, written):
  """Allows for rounding, which changes a pixel by at most 1/255."""
  data = PRETRAIN.data
  shown = []
  for name in NAMES:
    image = Image.open(photos / name).convert("RGB").convert("L")
    scale = 10 / min(image.size)  # 8 pixels are 0.8 of the side
    width, height = (int(scale * side + 1e-9) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = (round((side - 8) / 2) for side in (height, width))
    shown.append(np.asarray(image.crop((left, top, left + 8, top + 8))))
  x = (np.stack(shown)[..., None] / 255 - data.mean) / np.asarray(data.std)
  params = runs.params(pretrained, PRETRAIN)["model"]["encoder"]
  encoder = factory.masked_autoencoder(PRETRAIN).encoder
  tokens = encoder.apply({"params": params}, x.astype(np.float32))
  found = written(pretrained, pool="cls")["features"]
  assert np.abs(found - tokens.cls).max() < 0.03
  assert found.std(axis=0).mean() > 0.1  # features of different images differ


@pytest.mark.slow
def test_batch_size_and_devices_do_not_change_features(pretrained, written):
  wanted = written(pretrained, pool="all", mesh=runs.devices_mesh(1))
  again = written(pretrained, pool="all", mesh=runs.devices_mesh(1))
  np.testing.assert_array_equal(again["features"], wanted["features"])
  for devices, size in ((1, 3), (2, 3), (8, 64)):
    mesh = runs.devices_mesh(devices)
    found = written(pretrained, pool="all", batch_size=size, mesh=mesh)
    np.testing.assert_allclose(found["features"], wanted["features"], atol=1e-5)


def test_two_equal_runs_write_equal_files(pretrained, photos, tmp_path):
  for name in ("a.npz", "b.npz"):
    features.write(str(pretrained), str(photos), str(tmp_path / name))
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.slow
def test_a_layer_is_the_output_of_its_block(pretrained, photos, written):
  """Compares with the first block applied by hand to patches and positions."""
  params = runs.params(pretrained, PRETRAIN)["model"]["encoder"]
  block = jax.tree.map(lambda leaf: leaf[0], params["stack"]["blocks"])
  config = transformer.TransformerConfig(32, depth=1, heads=4, mlp_dim=64)
  table = pos_embed.sincos_2d((4, 4), 32)
  wanted = []
  for name in NAMES:
    x = normalized_pixels(photos / name, PRETRAIN.data)
    x = x.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 4)
    x = x @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
    x = np.concatenate([params["cls_token"][0], x + table])[None]
    y, _ = transformer.Block(config).apply({"params": block}, x, None)
    wanted.append(y[0])
  found = written(pretrained, pool="all", layer=1)["features"]
  np.testing.assert_allclose(found, np.stack(wanted), atol=1e-5)
  mean = written(pretrained, layer=1)["features"]
  np.testing.assert_allclose(mean, found[:, 1:].mean(axis=1), atol=1e-6)
  last = written(pretrained, pool="all", layer=2)["features"]
  np.testing.assert_array_equal(
    last, written(pretrained, pool="all")["features"]
  )


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_of_a_fine_tuned_network_are_the_input_of_its_head(
  finetuned, photos, written, pooling
):
  """The head on the features gives the network's logits, with averages."""
  settings, workdir = finetuned[pooling]
  params = runs.params(workdir, settings)
  params = params["averaged" if pooling == "mean" else "model"]
  model = factory.classifier(settings, 10)
  forward = jax.jit(lambda x: model.apply({"params": params}, x))
  x = [normalized_pixels(photos / name, settings.data) for name in NAMES]
  wanted = np.concatenate([forward(each) for each in x])
  seen = written(workdir, pool=pooling)["features"]
  logits = seen @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-7)
  if pooling == "mean":  # the final norm is not for other tokens
    raw = written(workdir, pool="all")["features"][:, 1:].mean(axis=1)
    assert np.abs(raw - seen).max() > 0.01
    normed = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    normed = normed * params["fc_norm"]["scale"] + params["fc_norm"]["bias"]
    np.testing.assert_allclose(normed, seen, atol=1e-4)


@pytest.mark.slow
def test_features_of_a_linear_probe_are_the_input_of_its_batch_norm(
  pretrained, photos, written, tmp_path
):
  settings = labeled("linprobe", pretrained, norm_group=16, head_std=0.1)
  runs.train(settings, tmp_path)
  params = runs.params(tmp_path, settings)
  seen = written(tmp_path)["features"]
  np.testing.assert_allclose(seen, written(pretrained)["features"], atol=1e-5)
  probe = classifiers.probe(settings, 10, "cpu")
  x = batch_norm.normalize(seen, batch_norm.Statistics(**params["stats"]))
  logits = x @ params["head"]["kernel"] + params["head"]["bias"]
  for name, each in zip(NAMES, logits, strict=True):
    wanted = probe.logits(params, pixels(photos / name, settings.data))[0]
    np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pretrained", "mean"])
def test_another_image_size_resizes_positions_like_fine_tuning(
  pretrained, finetuned, photos, written, tmp_path, start
):
  """Compares with the encoder that fine-tuning on such images starts from."""
  workdir = pretrained if start == "pretrained" else finetuned[start][1]
  settings = labeled("finetune", workdir, pooling="cls")
  if start == "mean":
    settings = labeled("finetune", workdir, pooling="mean")
  data = dataclasses.replace(settings.data, image_size=(12, 8))
  settings = dataclasses.replace(settings, data=data)
  mesh = runs.devices_mesh()
  task, images = runs.open_task(settings, mesh)
  state = loop.initial_state(task, images, settings, mesh, tmp_path / "none")
  params = jax.device_get(state.params["model"]["encoder"])
  encoder = factory.classifier(settings, 10).encoder
  cls, patches = by_hand(encoder, params, photos, data)
  found = written(workdir, pool="all", image_size=(12, 8))["features"]
  assert found.shape == (len(NAMES), 1 + 6 * 4, 32)
  np.testing.assert_allclose(found[:, 0], cls, atol=1e-5)
  np.testing.assert_allclose(found[:, 1:], patches, atol=1e-5)
  same = written(workdir, image_size=(8, 8))["features"]
  np.testing.assert_array_equal(same, written(workdir)["features"])


def test_unreadable_images_keep_their_rows(
  pretrained, written, tmp_path, capfd
):
  names = [f"{number:02}.png" for number in range(19)]
  root = write_images(tmp_path / "photos", names)
  whole = written(pretrained, root)
  (root / "03.png").write_bytes(b"no image")
  (root / "18.png").write_bytes((root / "18.png").read_bytes()[:200])
  capfd.readouterr()
  found = written(pretrained, root, batch_size=8)
  assert found["names"].tolist() == names
  assert np.flatnonzero(~found["readable"]).tolist() == [3, 18]
  assert np.isnan(found["features"][[3, 18]]).all()
  good = found["readable"]
  np.testing.assert_allclose(
    found["features"][good], whole["features"][good], atol=1e-5
  )
  output = capfd.readouterr()
  assert "warning: 03.png cannot be read: it is not JPEG" in output.err
  assert "warning: 18.png cannot be read" in output.err
  assert "of 19 images (2 cannot be read)" in output.out


def test_one_file(pretrained, photos, written):
  found = written(pretrained, photos / "a" / "0.jpg")
  assert found["names"].tolist() == ["0.jpg"]
  place = NAMES.index("a/0.jpg")
  np.testing.assert_allclose(
    found["features"][0], written(pretrained)["features"][place], atol=1e-5
  )


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"checkpoint": "nowhere"}, "no checkpoint in nowhere: name a workdir"),
    ({"images": "nowhere"}, "--images=nowhere: there is no such folder or"),
    ({"images": ""}, "--images=: there is no such folder or file"),
    ({"images": "{tmp}"}, r"have no image \(\.jpg, .*name another folder"),
    (
      {"out": "x.npy"},
      "x.npy does not end in .npz or .parquet: .* as x.npz",
    ),
    ({"out": "/proc/x/y.npz"}, "the folder of --out=/proc/x cannot be made"),
    ({"out": "{tmp}/d.npz"}, r"d.npz cannot be written \(it is a folder\)"),
    (
      {"pool": "max"},
      "--pool='max' is not known: known are all, cls, grid, mean",
    ),
    ({"layer": 9}, "^--layer=9: the encoder has blocks 1 to 2$"),
    ({"layer": 0}, "^--layer=0: the encoder has blocks 1 to 2$"),
    ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
    ({"image_size": (9, 8)}, "^--image_size=9 is not a multiple of model.patc"),
    ({"image_size": (0, 8)}, r"^--image_size=\(0, 8\) must be at least 1"),
  ],
)
def test_mistakes(pretrained, photos, tmp_path, changes, text):
  (tmp_path / "d.npz").mkdir()
  settings = {
    "checkpoint": str(pretrained),
    "images": str(photos),
    "out": "{tmp}/out/features.npz",
  }
  settings = {
    name: value.format(tmp=tmp_path) if isinstance(value, str) else value
    for name, value in (settings | changes).items()
  }
  with pytest.raises(ConfigError, match=text) as caught:
    features.write(**settings)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.rglob("*features*"))


def test_a_folder_without_write_permission_is_refused(
  pretrained, photos, monkeypatch
):
  monkeypatch.chdir("/proc")
  text = "--out=x.npz cannot be written .*in a writable folder"
  with pytest.raises(ConfigError, match=text):
    features.write(str(pretrained), str(photos), "x.npz")


def test_a_folder_without_readable_images_is_refused(pretrained, tmp_path):
  (tmp_path / "x.png").write_bytes(b"no image")
  with pytest.raises(ConfigError, match="no image can be read, of"):
    features.write(str(pretrained), str(tmp_path), str(tmp_path / "x.npz"))
  assert os.listdir(tmp_path) == ["x.png"]


def test_a_full_disk_is_reported_before_any_work(
  pretrained, photos, tmp_path, monkeypatch
):
  usage = atomic_write.shutil.disk_usage(tmp_path)._replace(free=100)
  monkeypatch.setattr(atomic_write.shutil, "disk_usage", lambda _: usage)
  monkeypatch.setattr(image_stream, "stream", None)
  text = r"needs 0.0 GB, but its disk has 0.0 GB: name a file on another disk"
  with pytest.raises(ConfigError, match=text):
    features.write(str(pretrained), str(photos), str(tmp_path / "x.npz"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(
  pretrained, photos, tmp_path, monkeypatch, error
):
  out = tmp_path / "x.npz"
  features.write(str(pretrained), str(photos), str(out))
  before = out.read_bytes()
  whole = image_stream.stream

  def interrupted(*args, **kwargs):
    yield next(whole(*args, **kwargs))
    assert len(os.listdir(tmp_path)) == 2
    raise error

  monkeypatch.setattr(image_stream, "stream", interrupted)
  with pytest.raises(error):
    features.write(str(pretrained), str(photos), str(out), layer=1)
  assert out.read_bytes() == before
  assert os.listdir(tmp_path) == ["x.npz"]


def test_a_disk_that_fills_up_is_named(tmp_path):
  out = tmp_path / "x.npz"
  rows = np.zeros((100, 100), np.float32)
  with (
    disks.full_disk(),
    pytest.raises(OSError, match=r"x\.npz") as caught,
    atomic_write.atomic_file(str(out)) as file,
    zipfile.ZipFile(file, "w") as npz,
  ):
    atomic_write.add_array(npz, "features", rows.shape, rows.dtype, [rows])
  assert caught.value.filename == str(out)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ("args", "text"),
  [
    ([], "required: --checkpoint, --images, --out; --help"),
    (["--wrong=3"], "--wrong is not a flag; --help"),
    (["--lay=3"], "--lay is not a flag: did you mean --layer?"),
    (["--layer=x"], "--layer: invalid int value: 'x'"),
    (["--image_size=big"], "'big' is no size: write 224, or height and"),
    (["--image_size=1,2,3"], "'1,2,3' is no size"),
  ],
)
def test_wrong_flags(args, text):
  needed = ["--checkpoint=a", "--images=b", "--out=c.npz"] if args else []
  with pytest.raises(SystemExit) as caught:
    cli.parser(features.write, "features").parse_args(needed + args)
  assert str(caught.value.code).startswith("error: ")
  assert text in caught.value.code


def test_sizes():
  flags = ["--checkpoint=a", "--images=b", "--out=c.npz"]
  for text, size in (("24", (24, 24)), ("(8,12)", (8, 12)), ("8, 12", (8, 12))):
    read = cli.parser(features.write, "features").parse_args(
      [*flags, f"--image_size={text}"]
    )
    assert read.image_size == size


@pytest.mark.slow
def test_the_command_also_in_a_bucket(
  pretrained, photos, written, tmp_path_factory, tmp_path
):
  """Names that are not UTF-8 are written unchanged."""
  odd = os.fsencode(tmp_path / "odd") + b"/\xff\n.png"
  os.mkdir(tmp_path / "odd")
  with open(odd, "wb") as file:
    file.write((photos / "a.png").read_bytes())
  with bucket_lib.serve(tmp_path_factory.mktemp("bucket")) as bucket:
    for name in NAMES:
      bucket.put(f"photos/{name}", (photos / name).read_bytes())
    done = command(
      "features",
      f"--checkpoint={pretrained}",
      "--images=gs://bucket/photos",
      "--out=gs://bucket/deep/x.npz",
      environ=bucket.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "gs://bucket/deep/x.npz: features [7, 32] after" in done.stdout
    kept = [name for name in bucket.objects if not name.endswith("/")]
    assert sorted(kept) == ["deep/x.npz", *(f"photos/{x}" for x in NAMES)]
    (tmp_path / "x.npz").write_bytes(bucket.objects["deep/x.npz"][0])
  wanted = written(pretrained)
  with np.load(tmp_path / "x.npz") as found:
    assert found["names"].tolist() == list(NAMES)
    np.testing.assert_allclose(found["features"], wanted["features"], atol=1e-5)
  name = written(pretrained, tmp_path / "odd")["names"][0]
  assert os.fsencode(str(name)) == b"\xff\n.png"


@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_line(photos, tmp_path):
  args = [f"--images={photos}", f"--checkpoint={tmp_path}", "--out=x.npz"]
  done = command("features", *args)
  assert done.returncode == 1
  assert done.stdout == ""
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith(f"error: there is no checkpoint in {tmp_path}")
  done = command("features", *args, "--debug")
  assert done.returncode == 1
  assert "Traceback" in done.stderr


def test_the_last_layer_of_the_extractor_has_its_shape(pretrained):
  network = feature_extractor.from_checkpoint(
    pretrained, runs.devices_mesh(), pool="all", layer=2
  )
  assert network.shape == (17, 32)
  assert network.layer == 2


@pytest.mark.parametrize(
  "pool", [x if x == "grid" else slow(x) for x in feature_extractor.POOLS]
)
def test_several_layers_equal_single_ones(pretrained, pool):
  mesh = runs.devices_mesh()
  found = load_model.load(pretrained, mesh)
  depth = found.encoder.config.depth
  shape = (2, *found.config.data.image_size, found.config.data.channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  both = feature_extractor.extractor(
    found, mesh, pool=pool, layers=range(1, depth + 1)
  )
  outputs = both.apply(both.params, images)
  assert len(outputs) == depth == 2
  for layer, output in enumerate(outputs, 1):
    one = feature_extractor.extractor(found, mesh, pool=pool, layers=[layer])
    np.testing.assert_allclose(
      output, one.apply(one.params, images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_several_layers_in_one_file(pretrained, photos, tmp_path, suffix):
  out = tmp_path / f"out.{suffix}"
  features.write(
    str(pretrained), str(photos), str(out), layers=(2, 1), batch_size=3
  )
  if suffix == "npz":
    with np.load(out) as npz:
      found = dict(npz)
    assert list(found) == ["names", "features_1", "features_2", "readable"]
    names = found["names"].tolist()
  else:
    table = parquet.read_table(out)
    assert table.column_names == [
      "name",
      "readable",
      "features_1",
      "features_2",
    ]
    names = table["name"].to_pylist()
    found = {
      name: np.stack(table[name].to_numpy()) for name in table.column_names[2:]
    }
  assert names == list(NAMES)
  for layer in (1, 2):
    single = tmp_path / "single.npz"
    features.write(
      str(pretrained), str(photos), str(single), layer=layer, batch_size=3
    )
    with np.load(single) as npz:
      np.testing.assert_array_equal(found[f"features_{layer}"], npz["features"])


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"layers": (1, 2), "layer": 1}, "--layer=1 and --layers=1,2: give one"),
    ({"layers": (1, 9)}, "--layers=9: the encoder has blocks 1 to 2"),
    ({"pool": "grid"}, "--pool=grid gives many: name an .npz file"),
  ],
)
def test_wrong_tables(pretrained, photos, tmp_path, changes, text):
  out = tmp_path / "out.parquet"
  with pytest.raises(ConfigError, match=text):
    features.write(str(pretrained), str(photos), str(out), **changes)
  assert not out.exists()


def test_a_grid_is_the_patch_tokens_in_place(pretrained):
  mesh = runs.devices_mesh()
  found = load_model.load(pretrained, mesh)
  size = (24, 40)  # not square: rows and columns differ
  shape = (2, *size, found.config.data.channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  outputs = {}
  for pool in ("grid", "all"):
    network = feature_extractor.extractor(
      found, mesh, pool=pool, image_size=size
    )
    outputs[pool] = np.asarray(network.apply(network.params, images))
  rows, columns = (
    side // patch
    for side, patch in zip(size, found.encoder.patch_size, strict=True)
  )
  np.testing.assert_array_equal(
    outputs["grid"],
    outputs["all"][:, 1:].reshape(2, rows, columns, -1),
  )


def test_the_fit_is_a_flag(pretrained, tmp_path):
  random = np.random.default_rng(0)
  wide = Image.fromarray(random.integers(0, 256, (8, 20), np.uint8))
  wide.save(tmp_path / "wide.png")
  squashed = wide.resize((8, 8), Image.Resampling.BICUBIC)
  squashed.save(tmp_path / "squashed.png")
  found = {}
  for name, fit in (("wide", "squash"), ("squashed", "squash"), ("wide", None)):
    out = tmp_path / "out.npz"
    path = str(tmp_path / f"{name}.png")
    features.write(str(pretrained), path, str(out), fit=fit)
    found[name, fit] = np.load(out)["features"]
  np.testing.assert_array_equal(
    found["wide", "squash"], found["squashed", "squash"]
  )
  assert (found["wide", None] != found["wide", "squash"]).any()
  with pytest.raises(ConfigError, match="--fit='x' is not known"):
    features.write(str(pretrained), path, str(out), fit="x")
