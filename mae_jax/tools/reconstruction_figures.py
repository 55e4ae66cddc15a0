"""Makes the pictures, scores and sheets of `reconstruct`."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from mae_jax.config import check_name, lookup
from mae_jax.data import image_headers, listing, prepare
from mae_jax.evals import image_metrics, reconstruction
from mae_jax.models import masking
from mae_jax.tools import cli, reconstructor
from mae_jax.tools import photo as photos
from mae_jax.utils import colormaps, console, image_grid
from mae_jax.utils.errors import ConfigError

FILLS = ("once", "multipass")
ERROR = 128  # of 255: the error of the brightest color
_SCALE = image_grid.ColorScale("magma", "error: 0", f"{ERROR} of 255")
_TITLES = {
  "original": "original",
  "truth": "truth",
  "masked": "masked",
  "reconstruction": "reconstruction",
  "pasted": "visible pasted in",
  "error": "error",
} | {name: name for name in image_metrics.BASELINES}
_PAINTED = ("reconstruction", "pasted", "error")
_WARNINGS = {"true": "uses ground truth", "raw": "normalized, as predicted"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The flags of `reconstruct` that say how pictures are made."""

  mask_ratio: tuple[float, ...] = ()
  strategy: tuple[str, ...] = ("random",)
  masks: int = 1
  seed: int = 0
  mask: str | None = None
  truth: str | None = None
  fill: str = "once"
  fit: str | None = None
  statistics: str = "visible"
  baselines: bool = False
  whole_patches: bool = False

  def check(self) -> None:
    """Checks the flags.

    Raises:
      ConfigError: if one cannot work.
    """
    cli.at_least("masks", self.masks)
    if "grid" in self.strategy and self.masks > 1:
      raise ConfigError(
        f"--masks={self.masks}: all masks of --strategy=grid are the same: "
        "leave --masks out"
      )
    for number, name in enumerate(self.strategy):
      lookup(masking.STRATEGIES, name, "--strategy")
      if name in self.strategy[:number]:
        raise ConfigError(
          f"--strategy={','.join(self.strategy)}: write each name once"
        )
    for name, known in (
      ("fill", FILLS),
      ("fit", prepare.FITS),
      ("statistics", reconstruction.STATISTICS),
    ):
      value = getattr(self, name)
      if value is not None:
        check_name(known, value, f"--{name}")
    for name in ("mask", "truth"):
      path = getattr(self, name)
      if path is not None and not (path and epath.Path(path).exists()):
        raise ConfigError(f"--{name}={path}: there is no such file or folder")
    if self.truth is not None and self.mask is None:
      raise ConfigError(
        "--truth is for --mask: without it the images themselves are the truth"
      )
    if self.whole_patches and self.mask is None:
      raise ConfigError("--whole_patches is for --mask: leave it out")
    given = (self.mask_ratio, self.strategy, self.masks, self.seed)
    if self.mask is not None and given != ((), ("random",), 1, 0):
      raise ConfigError(
        "--mask says what is masked: leave --mask_ratio, --strategy, --masks "
        "and --seed out"
      )
    if self.mask is not None and self.statistics == "true" and not self.truth:
      raise ConfigError(
        "--statistics=true takes statistics of masked pixels, and with --mask "
        "that is damaged: add --truth, the image without damage"
      )
    if not 0 <= self.seed < 2**31:
      raise ConfigError(f"--seed={self.seed} is not in 0 to {2**31 - 1}")
    for number, ratio in enumerate(self.mask_ratio):
      if not 0 < ratio < 1 or ratio in self.mask_ratio[:number]:
        raise ConfigError(
          f"--mask_ratio={','.join(map(str, self.mask_ratio))}: write shares "
          "between 0 and 1, each once"
        )


@dataclasses.dataclass(frozen=True)
class Picture:
  """The reconstruction of one image with one mask.

  Attributes:
    file: name of the image.
    name: description of the mask.
    hidden: bool [L], the masked patches.
    pixels: bool [h, w], the masked pixels.
    predicted: bool [h, w], the pixels that the network reconstructed.
    cells: pictures uint8 [h, w, C] by the names of `_TITLES`.
    scores: scores of pictures, if the truth is known.
    restored: uint8 [H, W, C], the whole photograph with reconstructed pixels;
      None without --mask. Its score is that of its own size.
  """

  file: str
  name: str
  hidden: np.ndarray
  pixels: np.ndarray
  predicted: np.ndarray
  cells: dict[str, np.ndarray]
  scores: dict[str, image_metrics.Score]
  restored: np.ndarray | None = None

  def __str__(self) -> str:
    text = f"{self.name}: {self.hidden.sum()} of {self.hidden.size} patches"
    found = [f"{name} {_words(score)}" for name, score in self.scores.items()]
    return "; ".join([f"{text} masked", *found])

  def cell(self, name: str) -> image_grid.Cell:
    """Returns a picture; of masked or visible pixels, none that mean nothing.

    Masked patches are hatched. A reconstruction lacks the patches that the
    network saw: no loss trains their predictions.
    """
    if name == "masked":
      return image_grid.Cell(self.cells["original"], hatched=self.pixels)
    blank = ~self.predicted if name == "reconstruction" else None
    return image_grid.Cell(self.cells[name], blank=blank)

  def below(self, name: str) -> str:
    """Returns the caption of a cell."""
    if name in ("original", "masked"):
      return self.name if name == "masked" else self.file
    return _words(self.scores[name], "\n") if name in self.scores else ""


class FigureMaker:
  """A maker of pictures, with one network and one choice of flags."""

  def __init__(
    self,
    network: reconstructor.Reconstructor,
    settings: Settings,
    heading: str = "",
  ):
    """Samples a mask of each kind, so that a wrong flag is reported early.

    Args:
      network: the network.
      settings: the flags.
      heading: text above each sheet.

    Raises:
      ConfigError: if a flag contradicts the network.
    """
    self._network, self._settings = network, settings
    self._heading = heading
    warning = ""
    if network.normalized:
      warning = _WARNINGS.get(settings.statistics, "")
    warned = {name: f"{_TITLES[name]}\n{warning}" for name in _PAINTED}
    self._titles = _TITLES | (warned if warning else {})
    self._highlighted = list(warned.values()) if warning else ()
    self._ratios = settings.mask_ratio or (network.mask_ratio,)
    if settings.mask is None:
      for strategy, ratio in self._kinds():
        network.masks(strategy, ratio, 1, settings.seed)
    if settings.statistics != "visible" and not network.normalized:
      raise ConfigError(
        f"--statistics={settings.statistics} is for networks that predict "
        "normalized patches, and this one predicts pixels: leave it out"
      )

  @property
  def num_masks(self) -> int:
    """Number of masks of each image."""
    if self._settings.mask is not None:
      return 1
    return len(list(self._kinds())) * self._settings.masks

  def pictures(
    self, path: epath.PathLike, photo: photos.Photo, name: str, index: int
  ) -> list[Picture]:
    """Makes the pictures of one image, with each mask.

    Args:
      path: path of the image.
      photo: the image.
      name: name of the image, which finds its mask and truth.
      index: number of the image, which selects its masks.

    Raises:
      ConfigError: if its mask or its truth cannot be read, or does not fit.
    """
    if self._settings.mask is None:
      return [
        self._picture(name, photo, photo, word, hidden)
        for word, hidden in self._drawn(index)
      ]
    if lost := photos.lost(path, self._network.data.channels):
      console.warn(f"{path}: restored.png is without {lost}")
    missing, hidden = self._given(photo, name)
    truth = self._truth(photo, name)
    found = self._picture(name, photo, truth, "mask", hidden)
    return [self._restored(found, photo, truth, missing)]

  def check_given(self, named: Iterable[tuple[epath.PathLike, str]]) -> None:
    """Checks the masks and truths of images, given by path and name.

    Raises:
      ConfigError: if one is missing, or does not fit its image.
    """
    if self._settings.mask is None:
      return
    for path, name in named:
      with contextlib.suppress(image_headers.UnreadableError):  # reported later
        photo = self._photo(path)
        self._given(photo, name)
        self._truth(photo, name)

  def sheet(self, groups: Sequence[Sequence[Picture]]) -> np.ndarray:
    """Arranges pictures of images side by side.

    Args:
      groups: for each image the pictures with each mask. A sheet of one image
        or one mask has all cells, others have visible patches and
        reconstruction.

    Returns:
      uint8 [H, W, 3].
    """
    if len(groups) == 1 or len(groups[0]) == 1:
      names = [name for name in _TITLES if name in groups[0][0].cells]
      rows = [
        [(each, name) for name in names] for group in groups for each in group
      ]
    else:
      few = ("masked", "pasted")
      pairs = [
        [(each, name) for each in group for name in few] for group in groups
      ]
      rows = [[(row[0][0], "original"), *row] for row in pairs]
    return image_grid.draw_grid(
      [[each.cell(name) for each, name in row] for row in rows],
      [self._titles[name] for _, name in rows[0]],
      [[each.below(name) for each, name in row] for row in rows],
      heading=self._heading,
      highlighted=self._highlighted,
      scale=_SCALE if any(name == "error" for _, name in rows[0]) else None,
    )

  def _photo(self, path: epath.PathLike) -> photos.Photo:
    data = prepare.with_fit(self._network.data, self._settings.fit)
    return photos.open_photo(path, data)

  def _drawn(self, index: int) -> Iterator[tuple[str, np.ndarray]]:
    settings = self._settings
    for strategy, ratio in self._kinds():
      drawn = self._network.masks(
        strategy, ratio, settings.masks, settings.seed, index
      )
      for number, hidden in enumerate(drawn, 1):
        after = f", mask {number}" if len(drawn) > 1 else ""
        yield f"{100 * ratio:.4g} % {strategy}{after}", hidden

  def _kinds(self) -> Iterator[tuple[str, float]]:
    """Yields each strategy with each ratio."""
    return itertools.product(self._settings.strategy, self._ratios)

  def _given(
    self, photo: photos.Photo, name: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mask; returns its pixels [H, W] and its patches [L]."""
    path = _beside(self._settings.mask, name, "mask")
    with _readable(path, "--mask"):
      missing = photos.read_mask(path)
    _check_size(path, missing, photo, "--mask")
    if photos.outside(missing, photo):
      raise ConfigError(
        f"--mask: {path} has white where --fit=crop shows the network nothing "
        f"of {name}: --fit=squash shows it all"
      )
    hidden = photos.snap(missing, photo, self._network.grid).reshape(-1)
    if hidden.all() or not hidden.any():
      remedy = "leave some black" if hidden.all() else "paint it white"
      raise ConfigError(
        f"--mask: {path} has white in {hidden.sum()} of the {hidden.size} "
        f"patches of {name}: what is missing is white, and {remedy}"
      )
    return missing, hidden

  def _truth(self, photo: photos.Photo, name: str) -> photos.Photo | None:
    if self._settings.truth is None:
      return None
    path = _beside(self._settings.truth, name, "truth")
    with _readable(path, "--truth"):
      truth = self._photo(path)
    _check_size(path, truth.whole, photo, "--truth")
    return truth

  def _picture(
    self,
    file: str,
    photo: photos.Photo,
    original: photos.Photo | None,
    word: str,
    hidden: np.ndarray,
  ) -> Picture:
    settings, shown = self._settings, photo.picture
    truth = None if original is None else original.picture
    multipass = settings.fill == "multipass"
    painted = self._network.paint(
      photo.shown[None],
      hidden[None],
      truth=None if truth is None else truth[None],
      statistics=settings.statistics,
      passes=self._passes(hidden) if multipass else 1,
    )
    pasted = painted.pasted(shown[None])[0]
    cells = {
      "original": shown,
      "masked": painted.masked(shown[None])[0],
      "reconstruction": painted.reconstruction[0],
      "pasted": pasted,
    }
    best = "reconstruction" if multipass else "pasted"
    measured = [best]
    if settings.truth is not None and truth is not None:
      cells["truth"] = truth
    if settings.baselines:
      for name, paint in image_metrics.BASELINES.items():
        cells[name] = paint(shown, painted.hidden[0])
        measured.append(name)
    found = {}
    if truth is not None:
      cells["error"] = error_map(cells[best], truth)
      found = {
        name: image_metrics.score(cells[name], truth, painted.hidden[0])
        for name in measured
      }
    masked = painted.hidden[0]
    # Several passes reconstruct the visible patches as well.
    predicted = np.ones_like(masked) if multipass else masked
    return Picture(file, word, hidden, masked, predicted, cells, found)

  def _restored(
    self,
    picture: Picture,
    photo: photos.Photo,
    truth: photos.Photo | None,
    missing: np.ndarray,
  ) -> Picture:
    """Adds the whole photograph, restored where `missing` [H, W] says."""
    grid = picture.hidden.reshape(self._network.grid)
    cover = (
      photos.cover_patches(photo, grid)
      if self._settings.whole_patches
      else photos.soften(missing)
    )
    restored = photos.paste(photo, picture.cells["pasted"], cover)
    scores = dict(picture.scores)
    if truth is not None:
      scores["restored"] = image_metrics.score(restored, truth.whole, missing)
    return dataclasses.replace(picture, restored=restored, scores=scores)

  def _passes(self, hidden: np.ndarray) -> int:
    """Returns the number of passes that shows the trained share of patches."""
    shown = 1 - self._network.mask_ratio
    return max(2, round((~hidden).mean() / shown))


@contextlib.contextmanager
def _readable(path: str, flag: str) -> Iterator[None]:
  """Turns an unreadable mask or truth into a ConfigError."""
  try:
    yield
  except image_headers.UnreadableError as error:
    raise ConfigError(
      f"{flag}: {path} cannot be read ({error}): fix or replace it"
    ) from None


def error_map(picture: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Draws the absolute error of uint8 [H, W, C] as colors uint8 [H, W, 3]."""
  error = np.abs(picture.astype(np.float64) - truth).mean(axis=-1) / ERROR
  colors = colormaps.apply("magma", error)
  return np.round(255 * colors).astype(np.uint8)


def _words(score: image_metrics.Score, between: str = ", ") -> str:
  return between.join(
    (
      f"PSNR {score.psnr:.1f} dB",
      f"masked {score.psnr_masked:.1f}",
      f"SSIM {score.ssim:.2f}",
    )
  )


def _check_size(
  path: str, array: np.ndarray, photo: photos.Photo, flag: str
) -> None:
  found, wanted = array.shape[:2], photo.whole.shape[:2]
  if found != wanted:
    raise ConfigError(
      f"{flag}: {path} is of {found[1]} x {found[0]} pixels, but the image of "
      f"{wanted[1]} x {wanted[0]}: make them equal"
    )


def _beside(given: str | None, name: str, flag: str) -> str:
  """Finds the mask or truth of an image: the given file, or one in a folder."""
  assert given is not None
  folder = epath.Path(given)
  if not folder.is_dir():
    return given
  place = folder / name
  if place.exists():
    return os.fspath(place)
  stem = os.path.splitext(place.name)[0]
  found = []
  if place.parent.is_dir():
    found = [
      each
      for each in sorted(place.parent.iterdir())
      if os.path.splitext(each.name)[0] == stem
      and each.name.lower().endswith(listing.SUFFIXES)
    ]
  if len(found) == 1:
    return os.fspath(found[0])
  if found:
    raise ConfigError(
      f"--{flag}={given} has more than one file for {name}: "
      f"{', '.join(each.name for each in found)}; leave one"
    )
  raise ConfigError(
    f"--{flag}={given} has no file for {name}: add one by that name, of any "
    "suffix"
  )
