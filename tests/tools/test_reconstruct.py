"""Tests of the pictures of `reconstruct` against the network by hand."""

from __future__ import annotations

import csv
import json
import math
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from mae_jax.config import MeshConfig
from mae_jax.data import prepare
from mae_jax.distributed import sharding
from mae_jax.evals import reconstruction
from mae_jax.models import factory, losses, masking, patchify
from mae_jax.tools import output_folder, reconstruct, reconstructor
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.commands import command, write_images
from tests.helpers.params import slow

NAMES = ("a.png", "b/c.jpg", "b/sheet.png")
COLOR = {
  "image_size": (8, 12),
  "channels": 3,
  "mean": (0.4, 0.5, 0.3),
  "std": (0.2, 0.3, 0.25),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("images"), NAMES)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """Workdirs of networks that predict normalized and raw patches."""
  return {
    name: runs.pretrained(
      tmp_path_factory.mktemp(name), objective={"target": name}
    )
    for name in ("norm_pix", "raw")
  }


def run(workdir, images, out, **flags) -> dict[str, list[dict[str, str]]]:
  """Runs the tool; returns the rows of scores by image."""
  reconstruct.write(str(workdir), str(images), str(out), **flags)
  with (out / "scores.csv").open() as file:
    rows = list(csv.DictReader(file))
  return {
    name: [row for row in rows if row["file"] == name]
    for name in {row["file"] for row in rows}
  }


def png(path: pathlib.Path) -> np.ndarray:
  array = np.asarray(Image.open(path))
  return array[..., None] if array.ndim == 2 else array


@pytest.mark.parametrize("target", ["norm_pix", slow("raw")])
def test_pictures_show_the_networks_predictions(
  workdirs, images, tmp_path, target: str
):
  out = tmp_path / "out"
  rows = run(workdirs[target], images, out, mask_ratio=(0.5,), seed=3)
  config = tiny.config(objective={"target": target})
  model = factory.masked_autoencoder(config)
  params = runs.params(workdirs[target], config)["model"]
  mean, std = config.data.mean[0], config.data.std[0]
  for name in NAMES:
    place = (out / "images" / name).with_suffix("")
    original, masked, whole, pasted = (
      png(place / f"{kind}.png")
      for kind in ("original", "masked", "reconstruction", "pasted")
    )
    # The whole reconstruction has its visible patches in one gray.
    cover = (whole != 232).any(axis=-1)
    hidden = np.asarray(patchify.patchify(cover[None, ..., None], (2, 2)))[0]
    hidden = hidden.any(axis=-1)
    assert hidden.sum() == 8
    cover = hidden.reshape(4, 4).repeat(2, axis=0).repeat(2, axis=1)
    assert np.isin(masked[cover], (120, 232)).all()  # hatched
    np.testing.assert_array_equal(masked[~cover], original[~cover])
    x = (original[None] / 255 - mean) / std
    masked_ = masking.random_masking(hidden[None].astype(np.float32), 8)
    pred = model.apply(
      {"params": params}, x.astype(np.float32), masked_, method="reconstruct"
    )
    if target == "raw":
      wanted = np.clip(np.asarray(pred) * std + mean, 0, 1) * 255
      wanted = np.asarray(patchify.unpatchify(wanted, (2, 2), (8, 8)))[0]
      assert np.abs(whole - wanted)[cover].max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(pasted[~cover], original[~cover])
    np.testing.assert_array_equal(pasted[cover], whole[cover])
    (row,) = rows[name]
    error = np.square(pasted.astype(float) - original).mean()
    assert float(row["psnr"]) == pytest.approx(10 * np.log10(255**2 / error))
    assert (row["masked"], row["variant"]) == ("8", "50 % random")


def test_folders_of_images_are_named_like_their_files():
  found = output_folder.image_folders(
    ["a.png", "b/a.jpg", "c.jpg", "c.png", "c_png.png", "d.tar.png"]
  )
  assert list(found.values()) == [
    "a",
    "b/a",
    "c_jpg",
    "c_png_",
    "c_png",
    "d.tar",
  ]


@pytest.mark.slow
def test_masks_ratios_and_strategies(workdirs, images, tmp_path):
  out = tmp_path / "out"
  rows = run(
    workdirs["raw"], images, out, mask_ratio=(0.5, 0.75), masks=2, seed=1
  )
  assert {name: len(found) for name, found in rows.items()} == dict.fromkeys(
    NAMES, 4
  )
  place = out / "images" / "a"
  seen = [png(place / f"masked_{number}.png") for number in (1, 2, 3, 4)]
  counts = [int(np.isin(each, (120, 232)).sum()) // 4 for each in seen]
  assert all(
    count >= wanted
    for count, wanted in zip(counts, (8, 8, 12, 12), strict=True)
  )
  assert (seen[0] != seen[1]).any()
  assert len(list(place.glob("original*"))) == 1
  again = run(
    workdirs["raw"], images, tmp_path / "again", mask_ratio=(0.5,), masks=2,
    seed=1,
  )  # fmt: skip
  assert again["a.png"] == rows["a.png"][:2]
  blocks = run(workdirs["raw"], images, out, strategy=("block",), seed=1)
  assert not (place / "masked_1.png").exists()  # the folder is replaced
  assert blocks["a.png"][0]["variant"] == "75 % block"


def test_many_images_take_several_sheets(
  workdirs, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(output_folder, "PAGE_ROWS", 2)
  folder = tmp_path / "in"
  folder.mkdir()
  random = np.random.default_rng(0)
  for number in range(5):
    pixels = random.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
  out = tmp_path / "out"
  run(workdirs["raw"], folder, out, strategy=("random", "block"), seed=4)
  assert sorted(path.name for path in out.glob("*.png")) == [
    "sheet.png", *(f"sheet_{number}.png" for number in range(2, 6)),
  ]  # fmt: skip
  assert f"look at {out}/sheet.png to sheet_5.png" in capsys.readouterr().out
  # One image: the sheet of the page is that of the image.
  for number, page in enumerate(("sheet", "sheet_2")):
    one = png(out / "images" / str(number) / "sheet.png")
    np.testing.assert_array_equal(one, png(out / f"{page}.png"))


def test_true_statistics_are_labeled_in_the_picture(workdirs, images, tmp_path):
  """Each sheet with true statistics has one more line, in red."""
  sheets = {}
  for statistics in reconstruction.STATISTICS:
    out = tmp_path / statistics
    run(workdirs["norm_pix"], images / "a.png", out, statistics=statistics)
    sheets[statistics] = png(out / "sheet.png").astype(int)
    one = png(out / "images" / "a" / "sheet.png")
    np.testing.assert_array_equal(one, sheets[statistics])

  def red(sheet: np.ndarray) -> bool:
    titles = sheet[22:38]
    return bool((titles[..., 0] - titles[..., 1] > 100).any())

  assert [red(sheet) for sheet in sheets.values()] == [False, True, True]
  assert sheets["true"].shape[0] == sheets["visible"].shape[0] + 16
  # A network that predicts pixels needs no statistics.
  with pytest.raises(ConfigError, match="this one predicts pixels"):
    run(workdirs["raw"], images / "a.png", tmp_path / "x", statistics="true")


def perfect(network: reconstructor.Reconstructor, monkeypatch) -> None:
  """Makes a network predict the true targets of masked patches."""

  def predict(pixels, hidden):
    x = (pixels / 255 - np.array(network.data.mean)) / network.data.std
    target = patchify.patchify(x, network.patch_size)
    if network.normalized:
      target = losses.normalize_patches(target)
    return np.asarray(target)

  monkeypatch.setattr(network, "predict", predict)


@pytest.mark.parametrize("target", ["norm_pix", "raw"])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_perfect_network_reconstructs_the_original(
  workdirs, target: str, passes: int, monkeypatch
):
  mesh = sharding.make_mesh(MeshConfig(), runs.devices_mesh(1).devices.flat)
  network = reconstructor.load(workdirs[target], mesh)
  perfect(network, monkeypatch)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  hidden = network.masks("random", 0.5, 2, 0)
  painted = network.paint(pixels, hidden, statistics="true", passes=passes)
  np.testing.assert_array_equal(painted.reconstruction, pixels)
  assert painted.hidden.sum() == hidden.sum() * 4


def test_multipass_predicts_each_patch_without_seeing_it(workdirs, monkeypatch):
  mesh = sharding.make_mesh(MeshConfig(), runs.devices_mesh(1).devices.flat)
  network = reconstructor.load(workdirs["raw"], mesh)
  shown = []
  predict = network.predict
  monkeypatch.setattr(
    network, "predict", lambda x, h: shown.append(~h) or predict(x, h)
  )
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  hidden = np.zeros((2, 16), bool)
  hidden[:, :3] = True
  one = network.paint(pixels, hidden, passes=4)
  assert len(shown) == 4
  total = np.sum(shown, axis=0)
  assert total.max() == 1
  assert (total[:, :3] == 0).all()
  assert (total.sum(axis=1) == 12).all()  # 13 visible, 3 in each pass
  # A pixel does not influence its own patch.
  other = pixels.copy()
  other[:, 4:6, 4:6] = 255 - other[:, 4:6, 4:6]
  two = network.paint(other, hidden, passes=4)
  same = one.reconstruction == two.reconstruction
  assert same[:, 4:6, 4:6].all()
  assert not same.all()


def test_restoring_a_photograph(workdirs, tmp_path):
  """Pixels outside the mask and its soft edge are unchanged, bit for bit."""
  image = prepare.resize(
    np.random.default_rng(0).integers(0, 256, (5, 5, 1), np.uint8), (50, 70)
  )
  missing = np.zeros((50, 70), np.uint8)
  missing[12:20, 30:40] = 255
  damaged = np.where(missing[..., None] > 0, 255, image).astype(np.uint8)
  for name, array in (
    ("damaged", damaged[..., 0]), ("mask", missing), ("truth", image[..., 0]),
  ):  # fmt: skip
    Image.fromarray(array).save(tmp_path / f"{name}.png")
  # Rows 12 to 20 of 50 are in the first and second of four patches.
  for whole_patches, changed in (
    (False, np.s_[9:23, 27:43]), (True, np.s_[:25, 17:53]),
  ):  # fmt: skip
    out = tmp_path / f"out{whole_patches}"
    rows = run(
      workdirs["raw"],
      tmp_path / "damaged.png",
      out,
      mask=str(tmp_path / "mask.png"),
      truth=str(tmp_path / "truth.png"),
      fit="squash",
      baselines=True,
      whole_patches=whole_patches,
    )["damaged.png"]
    restored = png(out / "images" / "damaged" / "restored.png")
    assert restored.shape == image.shape
    kept = np.ones((50, 70), bool)
    kept[changed] = False
    np.testing.assert_array_equal(restored[kept], damaged[kept])
    assert (restored[missing > 0] != damaged[missing > 0]).any()
    methods = [row["method"] for row in rows]
    assert methods == ["pasted", "mean color", "biharmonic", "restored"]
    assert {row["masked"] for row in rows} == {"4"}
    # The score is that of the whole photograph at its own size.
    error = np.square(restored.astype(float) - image)
    for name, each in (("psnr", error), ("psnr_masked", error[missing > 0])):
      wanted = 10 * np.log10(255**2 / each.mean())
      assert float(rows[-1][name]) == pytest.approx(wanted)
    assert -1 <= float(rows[-1]["ssim_masked"]) <= 1


def test_scores_need_the_original(workdirs, images, tmp_path):
  mask = np.zeros(png(images / "a.png").shape[:2], np.uint8)
  mask[: len(mask) // 2] = 255
  masks = tmp_path / "masks"
  masks.mkdir()
  Image.fromarray(mask).save(masks / "a.webp", lossless=True)
  out = tmp_path / "out"
  rows = run(
    workdirs["raw"], images / "a.png", out, mask=str(masks), fit="squash"
  )
  assert rows == {}
  assert not (out / "images" / "a" / "error.png").exists()


@pytest.mark.slow
def test_odd_files_give_a_picture_or_a_warning(workdirs, tmp_path, capsys):
  folder = tmp_path / "odd"
  folder.mkdir()
  random = np.random.default_rng(0)

  def save(name: str, mode: str, size: tuple[int, int], **how) -> None:
    shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
    array = random.integers(0, 256, shape, np.uint8)
    Image.fromarray(array, mode).save(folder / name, **how)

  exif = Image.Exif()
  exif[0x112] = 6  # rotated by EXIF
  save("gray.png", "L", (31, 17))
  save("rgba.png", "RGBA", (20, 33))
  save("turned.jpg", "RGB", (40, 16), exif=exif)
  save("pixel.png", "L", (1, 1))
  save("thin.png", "RGB", (900, 1))
  save("large.png", "L", (5000, 4000))
  np.save(folder / "array.npy", random.integers(0, 256, (9, 9), np.uint8))
  (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
  (folder / "text.png").write_text("no image")
  out = tmp_path / "out"
  run(workdirs["raw"], folder, out)
  made = {path.name for path in (out / "images").iterdir()}
  assert made == {
    "gray", "rgba", "turned", "pixel", "thin", "large", "array",
  }  # fmt: skip
  message = capsys.readouterr()
  for name in ("broken.jpg", "text.png"):
    assert re.search(rf"{name} cannot be read \(.*it is left out", message.err)
  assert "9 images (2 cannot be read)" in message.out


def test_only_earlier_outputs_are_replaced(workdirs, images, tmp_path):
  out = tmp_path / "out"
  run(workdirs["raw"], images / "a.png", out)
  run(workdirs["raw"], images / "a.png", out)
  (out / "images" / "mine.txt").write_text("mine")
  with pytest.raises(ConfigError, match="has other files"):
    run(workdirs["raw"], images / "a.png", out)
  assert (out / "images" / "mine.txt").exists()
  settings = json.loads((out / "made_by.json").read_text())
  assert settings["settings"]["strategy"] == ["random"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"strategy": ("stripes",)}, r"--strategy='stripes'.*block, grid, random"),
    ({"mask_ratio": (1.5,)}, r"--mask_ratio=1.5: write shares between"),
    ({"mask_ratio": (0.5, 0.5)}, r"--mask_ratio=0.5,0.5: .* each once"),
    ({"mask_ratio": (math.nan,)}, r"--mask_ratio=nan: write shares"),
    ({"mask_ratio": (0.99,)}, r"--mask_ratio=0.99 keeps 0 of 16"),
    ({"seed": 2**31}, r"--seed=2147483648 is not in 0 to"),
    ({"mask": ""}, "--mask=: there is no such file"),
    ({"mask": ".", "statistics": "true"}, "add --truth, the image without"),
    ({"strategy": ("grid",), "masks": 2}, r"--masks=2: .*leave --masks out"),
    (
      {"strategy": ("grid",), "mask_ratio": (0.6,)},
      "a grid cannot keep 6 of 4 x 4",
    ),
    ({"masks": 0}, "--masks=0 must be at least 1"),
    ({"fill": "twice"}, "--fill='twice'"),
    ({"fit": "stretch"}, "--fit='stretch'"),
    ({"statistics": "mean"}, "--statistics='mean'"),
    ({"truth": "."}, "--truth is for --mask"),
    ({"whole_patches": True}, "--whole_patches is for --mask"),
    ({"mask": "/nowhere.png"}, "--mask=/nowhere.png: there is no such file"),
    ({"mask": ".", "masks": 2}, "leave --mask_ratio, --strategy, --masks and"),
    ({"target": "norm_pix"}, "--target=norm_pix contradicts"),
    ({"target": "normal"}, "--target='normal' is not known"),
  ],
)
def test_mistakes_are_reported_before_any_work(
  workdirs, images, tmp_path, flags, message
):
  out = tmp_path / "out"
  with pytest.raises(ConfigError, match=message):
    run(workdirs["raw"], images, out, **flags)
  assert not out.exists()


@pytest.mark.parametrize("white", [0, 255])
def test_a_mask_of_no_or_all_patches_is_refused(
  workdirs, images, tmp_path, white: int
):
  size = png(images / "a.png").shape[:2]
  mask = tmp_path / "mask.png"
  Image.fromarray(np.full(size, white, np.uint8)).save(mask)
  choice = {"mask": str(mask), "fit": "squash"}
  with pytest.raises(ConfigError, match=r"white in .* of the 16"):
    run(workdirs["raw"], images / "a.png", tmp_path / "out", **choice)
  Image.fromarray(np.zeros((3, 3), np.uint8)).save(mask)
  with pytest.raises(ConfigError, match="is of 3 x 3 pixels"):
    run(workdirs["raw"], images / "a.png", tmp_path / "out", **choice)


def test_masks_are_checked_before_any_prediction(
  workdirs, images, tmp_path, monkeypatch
):
  masks = tmp_path / "masks"
  masks.mkdir()
  size = png(images / "a.png").shape[:2]
  half = np.zeros(size, np.uint8)
  half[: size[0] // 2] = 255
  Image.fromarray(half).save(masks / "a.png")

  def paint(*args, **kwargs):
    raise AssertionError("painted")

  monkeypatch.setattr(reconstructor.Reconstructor, "paint", paint)
  choice = {"mask": str(masks), "fit": "squash"}
  with pytest.raises(ConfigError, match=r"no file for"):
    run(workdirs["raw"], images, tmp_path / "out", **choice)


def test_a_bad_mask_is_not_a_bad_image(workdirs, images, tmp_path):
  masks = tmp_path / "masks"
  masks.mkdir()
  (masks / "a.jpg").write_text("no image")
  (masks / "a.bak").write_text("nor this")
  choice = {"mask": str(masks), "fit": "squash"}
  with pytest.raises(ConfigError, match=r"a.jpg cannot be read"):
    run(workdirs["raw"], images / "a.png", tmp_path / "out", **choice)
  (masks / "a.webp").write_text("two")
  with pytest.raises(ConfigError, match=r"a.jpg, a.webp; leave one"):
    run(workdirs["raw"], images / "a.png", tmp_path / "out", **choice)
  with pytest.raises(ConfigError, match=r"no file for c.jpg"):
    run(workdirs["raw"], images / "b" / "c.jpg", tmp_path / "out", **choice)


def test_damage_outside_the_visible_part_is_reported(workdirs, tmp_path):
  image, mask = tmp_path / "image.png", tmp_path / "mask.png"
  Image.fromarray(np.full((8, 30, 3), 99, np.uint8)).save(image)
  missing = np.zeros((8, 30), np.uint8)
  missing[3, 2] = missing[3, 15] = 255
  Image.fromarray(missing).save(mask)
  with pytest.raises(ConfigError, match="--fit=squash shows it all"):
    run(workdirs["raw"], image, tmp_path / "out", mask=str(mask))


def test_detail_lost_by_restoring_is_reported(workdirs, tmp_path, capsys):
  image, mask = tmp_path / "image.png", tmp_path / "mask.png"
  Image.fromarray(np.full((8, 8, 4), 99, np.uint8)).save(image)
  Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(mask)
  run(workdirs["raw"], image, tmp_path / "out", mask=str(mask))
  message = capsys.readouterr().err
  assert (
    "without its colors, as the network takes one channel, its al" in message
  )


def test_true_statistics_use_the_undamaged_image(workdirs, tmp_path):
  """The damaged image would give the statistics of the damage."""
  random = np.random.default_rng(0)
  truth = random.integers(0, 256, (8, 8), np.uint8)
  mask = np.zeros((8, 8), np.uint8)
  mask[2:4, 2:4] = 255
  found = []
  for damage in (0, 255):
    files = {"truth": truth, "mask": mask}
    files["image"] = np.where(mask > 0, np.uint8(damage), truth)
    for name, array in files.items():
      Image.fromarray(array).save(tmp_path / f"{name}.png")
    out = tmp_path / f"out{damage}"
    run(
      workdirs["norm_pix"],
      tmp_path / "image.png",
      out,
      mask=str(tmp_path / "mask.png"),
      truth=str(tmp_path / "truth.png"),
      statistics="true",
    )
    found.append(png(out / "images" / "image" / "restored.png"))
  np.testing.assert_array_equal(*found)


def test_wrong_output_paths_are_refused(
  workdirs, images, tmp_path, monkeypatch
):
  inside = images / "pictures"
  for out in (inside, images, images.parent):
    with pytest.raises(ConfigError, match="lie in each other"):
      run(workdirs["raw"], images, out)
  assert not inside.exists()
  here = tmp_path / "here"
  here.mkdir()
  monkeypatch.chdir(here)
  for out in ("", ".", ".."):
    with pytest.raises(ConfigError, match="runs in, or a parent of it"):
      reconstruct.write(str(workdirs["raw"]), str(images / "a.png"), out)
  assert here.exists()


def test_a_link_is_kept_and_its_target_replaced(workdirs, images, tmp_path):
  real, link = tmp_path / "real", tmp_path / "link"
  link.symlink_to(real)
  for _ in range(2):  # at first, its target does not exist
    run(workdirs["raw"], images / "a.png", link)
    assert link.is_symlink()
    assert (real / "sheet.png").exists()
  assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


@pytest.mark.slow
def test_a_classifier_has_no_decoder(workdirs, images, tmp_path):
  start = tmp_path / "finetuned"
  config = tiny.config(
    task="finetune",
    init_from=str(workdirs["raw"]),
    data={"eval_split": ""},
    train={"length": "3 steps"},
  )
  runs.train(config, start)
  with pytest.raises(ConfigError, match="has no decoder"):
    run(start, images, tmp_path / "out")


@pytest.mark.slow
def test_the_command(workdirs, images, tmp_path):
  out = tmp_path / "out"
  found = command(
    "reconstruct",
    f"--checkpoint={workdirs['norm_pix']}",
    f"--images={images}",
    f"--out={out}",
    "--mask_ratio=0.5,0.75",
  )
  assert found.returncode == 0, found.stderr
  assert f"{out}: pictures of 3 images in" in found.stdout
  assert (out / "sheet.png").exists()
  found = command("reconstruct", "--mask_ratio=half", "--checkpoint=x")
  assert found.returncode == 1
  assert "'half' is not a number, or several" in found.stderr
  assert found.stderr.count("\n") == 1
