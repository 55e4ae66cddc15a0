"""Pictures of what a pre-trained network makes of hidden patches.

python -m mae_jax reconstruct --checkpoint=WORKDIR --images=DIR --out=pictures

Of each image there are files of the original, what the network saw, the
reconstruction, the reconstruction with what is visible pasted in, and its
error; sheets of them; and `scores.csv`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from mae_jax import conversion
from mae_jax.config import MeshConfig
from mae_jax.conversion import model_info
from mae_jax.distributed import sharding
from mae_jax.evals import reconstruction
from mae_jax.models import masking
from mae_jax.tools import cli, output_folder, photo, reconstructor
from mae_jax.tools import reconstruction_figures as studio_lib
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError

SCORES = "scores.csv"
COLUMNS = (
  "file", "variant", "hidden", "method", "psnr", "psnr_hidden", "ssim",
)  # fmt: skip
_ROWS = 24  # of the sheet of all images, at most
_TOLD = 20  # images of which a line is printed


def write(
  checkpoint: str,
  images: str,
  out: str,
  *,
  mask_ratio: Sequence[float] = (),
  strategy: str = "random",
  masks: int = 1,
  seed: int = 0,
  mask: str | None = None,
  truth: str | None = None,
  fill: str = "once",
  fit: str = "crop",
  statistics: str = "visible",
  baselines: bool = False,
  target: str | None = None,
) -> None:
  """Writes pictures of images to a folder.

  Args:
    checkpoint: see `dialects.load_any`.
    images: a folder or one file.
    out: a folder, which appears when all is done.
    mask_ratio: shares of patches to hide, each in turn; () for the
      checkpoint's.
    strategy: a name in `masking.STRATEGIES`.
    masks: how many of each.
    seed: of the masks.
    mask: a picture in which what is missing is white, or a folder with one for
      each image; in place of the four above.
    truth: with `mask`, the image without damage, or a folder of them.
    fill: a name in `studio.FILLS`.
    fit: a name in `photos.FITS`.
    statistics: see `reconstruction.to_pixels`.
    baselines: whether pictures of plain methods stand beside.
    target: of weights that do not say what they predict: norm_pix or raw.

  Raises:
    ConfigError: if something cannot work, or no image can be read. `out` is as
      it was.
  """
  began = time.monotonic()
  settings = studio_lib.Settings(
    mask_ratio=tuple(mask_ratio),
    strategy=strategy,
    masks=masks,
    seed=seed,
    mask=mask,
    truth=truth,
    fill=fill,
    fit=fit,
    statistics=statistics,
    baselines=baselines,
  )
  settings.check()
  cli.check(checkpoint, images, 1)
  cli.check_apart(images, out)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  hints = conversion.ModelOverrides(target=target, insist=target is not None)
  told = {"checkpoint": checkpoint, "images": images} | settings.to_dict()
  with output_folder.replacing(out, "reconstruct", told) as album:
    network = reconstructor.Reconstructor(checkpoint, mesh, hints)
    if target is not None and model_info.TARGETS[target] != network.normalized:
      raise ConfigError(
        f"--target={target} contradicts {checkpoint}: leave the flag out"
      )
    studio = studio_lib.FigureMaker(network, settings)
    source = cli.open_images(images, network.data)
    pages = _Pages(album, studio)
    total = source.num_examples
    painting = 0.0
    names = [source.name(index) for index in range(total)]
    studio.check_given((photo.path_of(images, name), name) for name in names)
    with cli.progress_bar(total) as bar:
      for index, name in enumerate(names):
        path = photo.path_of(images, name)
        start = time.monotonic()
        try:
          pictures = studio.pictures(path, name, index)
        except photo.UnreadableError as error:
          console.warn(f"{path} cannot be read ({error}): it is left out")
        else:
          painting += time.monotonic() - start
          pages.add(name, pictures)
        bar.update()
    if not pages.number:
      raise ConfigError(
        f"no image can be read, of {total}: the warnings above say why; mend "
        "or replace them"
      )
    pages.close()
  cli.info(
    f"{out}: pictures of {cli.readable(pages.number, total)} in "
    f"{time.monotonic() - began:.1f} s, {painting / pages.number:.2f} s an "
    f"image; look at {os.path.join(out, output_folder.SHEET)}{pages.shown}"
  )


class _Pages:
  """What is written of each image, and of all.

  Attributes:
    number: of images so far.
  """

  def __init__(
    self, album: output_folder.OutputFolder, studio: studio_lib.FigureMaker
  ):
    self._album, self._studio = album, studio
    self._shown: list[Sequence[studio_lib.Picture]] = []
    self._rows: list[Sequence[Any]] = [COLUMNS]
    self.number = 0

  def add(self, name: str, pictures: Sequence[studio_lib.Picture]) -> None:
    """Writes the files of an image."""
    self.number += 1
    place = f"images/{name}"
    self._album.png(f"{place}/original.png", pictures[0].cells["original"])
    for number, picture in enumerate(pictures, 1):
      after = f"_{number}" if len(pictures) > 1 else ""
      for kind, cell in picture.cells.items():
        if kind != "original":
          file = kind.replace(" ", "_") + after
          self._album.png(f"{place}/{file}.png", cell)
      if picture.restored is not None:
        self._album.png(f"{place}/restored.png", picture.restored)
      self._rows += [
        (name, picture.name, int(picture.hidden.sum()), method, *score)
        for method, score in picture.scores.items()
      ]
      if self.number <= _TOLD:
        cli.info(f"{name}, {picture}")
    self._album.png(
      f"{place}/{output_folder.SHEET}", self._studio.sheet([pictures])
    )
    if len(self._shown) * len(pictures) < _ROWS:
      self._shown.append(pictures)

  @property
  def shown(self) -> str:
    """How many are on the sheet of all, if that is not all."""
    number = len(self._shown)
    return "" if number == self.number else f", of the first {number}"

  def close(self) -> None:
    """Writes what is of all images."""
    self._album.png(output_folder.SHEET, self._studio.sheet(self._shown))
    self._album.table(SCORES, self._rows)


def _ratios(text: str) -> tuple[float, ...]:
  try:
    return tuple(float(part) for part in text.split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} are no shares: write 0.75, or several as 0.75,0.85,0.95"
    ) from None


def parser() -> cli.Parser:
  """The flags."""
  flags = cli.Parser(
    "reconstruct",
    "Pictures of what a pre-trained network makes of hidden patches: original, "
    "masked, reconstruction, pasted, error; PSNR and SSIM; and restored "
    "photographs.",
  )
  flags.add_checkpoint()
  flags.add_pictures()
  hide = flags.add_argument_group("what is hidden")
  hide.add_argument(
    "--mask_ratio",
    type=_ratios,
    default=(),
    help="share of patches, or several as 0.75,0.85,0.95 (default: what the "
    "checkpoint was trained with)",
  )
  hide.add_argument(
    "--strategy",
    default="random",
    help=f"{', '.join(masking.STRATEGIES)} (default: random)",
  )
  hide.add_argument(
    "--masks", type=int, default=1, help="masks of each image (default: 1)"
  )
  hide.add_argument(
    "--seed",
    type=int,
    default=0,
    help="of the masks, which also hang on the place of an image among the "
    "others (default: 0)",
  )
  hide.add_argument(
    "--mask",
    type=os.path.expanduser,
    help="in place of these: a picture as large as the image, in which what is "
    "missing is white, or a folder that has one by the same name (of any "
    "suffix) for each. A patch is hidden if any of it is white. restored.png "
    "is then the whole photograph, painted",
  )
  hide.add_argument(
    "--truth",
    type=os.path.expanduser,
    help="with --mask: the image without damage, or a folder of them, for "
    "scores",
  )
  paint = flags.add_argument_group("how it is painted")
  paint.add_argument(
    "--fill",
    default="once",
    help="once: what is hidden; multipass: all patches, each from others, by "
    "masks that show every patch once (default: once)",
  )
  paint.add_argument(
    "--statistics",
    default="visible",
    help="of a network that predicts normalized patches, where their mean and "
    f"deviation come from: {', '.join(reconstruction.STATISTICS)} (default: "
    "visible, from the patches around; true uses ground truth, and the "
    "pictures say so)",
  )
  paint.add_argument(
    "--baselines",
    action="store_true",
    help="also paint with the mean color and with scikit-image's biharmonic "
    "inpainting, which takes seconds an image",
  )
  paint.add_argument(
    "--target",
    choices=tuple(model_info.TARGETS),
    help="of weights that do not say what they predict",
  )
  return flags


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  cli.main(parser(), write, argv)
