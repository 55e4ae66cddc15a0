"""Draws reconstructions of masked images: `python -m mae_jax reconstruct`."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from mae_jax.data import image_files, prepare
from mae_jax.tools import cli, image_stream, output_folder, photo, reconstructor
from mae_jax.tools.reconstruction_figures import FigureMaker, Picture, Settings
from mae_jax.utils import console

SCORES = "scores.csv"
COLUMNS = (
  "file", "variant", "masked", "method", "psnr", "psnr_masked", "ssim",
  "ssim_masked",
)  # fmt: skip
_PRINTED = 20  # images with a printed line


def write(
  checkpoint: cli.Path,
  images: cli.Path,
  out: cli.Path,
  *,
  mask_ratio: cli.Numbers = (),
  strategy: cli.Words = ("random",),
  masks: int = 1,
  seed: int = 0,
  mask: cli.Path | None = None,
  truth: cli.Path | None = None,
  fill: str = "once",
  fit: str | None = None,
  statistics: str = "visible",
  baselines: bool = False,
  whole_patches: bool = False,
  target: str | None = None,
  image_size: cli.Size | None = None,
) -> None:
  """Reconstructs masked images and draws pictures.

  They show the original, the visible patches, the reconstruction, the visible
  patches pasted into it, and the error, with PSNR and SSIM; with --mask also
  restored photographs.

  Args:
    checkpoint: a workdir (its newest checkpoint), one of its
      checkpoints/STEP, weights of facebook, transformers or timm,
      hf://ORG/NAME on the Hugging Face Hub, or digits, a small network that
      comes with this package.
    images: one image, or a folder with all its subfolders.
    out: a folder, which appears when all is done; a folder that this command
      made before is replaced.
    mask_ratio: share of masked patches, or several as 0.75,0.85,0.95; by
      default the checkpoint's.
    strategy: how patches are masked: random, block or grid, or several as
      random,block.
    masks: masks of each image.
    seed: of the masks, which also depend on the number of an image among the
      others.
    mask: replaces the four flags above: a picture as large as the image in
      which missing pixels are white, or a folder with one of the same name (any
      suffix) for each image. A patch is masked if any of its pixels is white.
      On a transparent layer, what you painted in one color is missing; of a
      photograph with erased parts, those are.
      restored.png is the whole photograph with the white pixels reconstructed,
      and mixed with it up to 3 pixels around them.
    truth: with --mask: the image without damage, or a folder of them, for
      scores; those of restored.png are of the photograph's size.
    fill: once: reconstruct the masked patches; multipass: reconstruct all
      patches, with masks that show every patch once.
    fit: crop: the middle of each image; squash: all of it; by default as in
      evaluation (data.eval_fit).
    statistics: where the mean and deviation of patches come from if the
      network predicts normalized patches: visible (the patches around), true
      (ground truth; the pictures say so), or raw (none).
    baselines: also fill with the mean color and with scikit-image's
      biharmonic inpainting, which takes seconds an image.
    whole_patches: replace all pixels of the masked patches in restored.png.
    target: norm_pix or raw, for weights that do not say what they predict.
    image_size: 224, or height and width as 192,256; by default the
      checkpoint's. Positions are interpolated.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  flags = dict(locals())
  names = [each.name for each in dataclasses.fields(Settings)]
  settings = Settings(**{name: flags[name] for name in names})
  began = time.monotonic()
  settings.check()
  image_stream.check(checkpoint, images, pictures=out)
  recorded = {"checkpoint": checkpoint, "images": images} | dataclasses.asdict(
    settings
  )
  with output_folder.replacing(out, "reconstruct", recorded) as folder:
    checkpoint, heading = image_stream.title(checkpoint)
    network = reconstructor.load(
      checkpoint, target=target, image_size=image_size
    )
    if mask is None:
      heading += f", seed {seed}"
    figures = FigureMaker(network, settings, heading)
    data = prepare.with_fit(network.data, fit)
    source = image_files.open_images(images, data)
    total = len(source.names)
    figures.check_given(
      (photo.path_of(images, name), name) for name in source.names
    )
    folders = output_folder.image_folders(source.names)
    sheets = output_folder.Sheets[Sequence[Picture]](
      folder, figures.sheet, figures.num_masks
    )
    rows: list[Sequence[Any]] = [COLUMNS]
    number, painting = 0, 0.0
    for index, name, image in photo.open_photos(source, data):
      start = time.monotonic()
      path = photo.path_of(images, name)
      pictures = figures.pictures(path, image, name, index)
      painting += time.monotonic() - start
      number += 1
      sheets.add(pictures)
      place = f"images/{folders[name]}"
      _save(folder, place, pictures)
      folder.png(f"{place}/{output_folder.SHEET}", figures.sheet([pictures]))
      rows += [
        (name, each.name, int(each.hidden.sum()), method, *score)
        for each in pictures
        for method, score in each.scores.items()
      ]
      if number <= _PRINTED:
        for picture in pictures:
          console.info(f"{name}, {picture}")
    look_at = sheets.finish(out)
    folder.table(SCORES, rows)
  console.info(
    f"{out}: pictures of {image_stream.readable(number, total)} in "
    f"{time.monotonic() - began:.1f} s, {painting / number:.2f} s an image; "
    f"look at {look_at}"
  )


def _save(
  folder: output_folder.OutputFolder, place: str, pictures: Sequence[Picture]
) -> None:
  folder.png(f"{place}/original.png", pictures[0].cells["original"])
  for number, picture in enumerate(pictures, 1):
    after = f"_{number}" if len(pictures) > 1 else ""
    for kind in picture.cells:
      if kind != "original":
        file = f"{place}/{kind.replace(' ', '_')}{after}.png"
        folder.png(file, picture.cell(kind).draw())
    if picture.restored is not None:
      folder.png(f"{place}/restored.png", picture.restored)
