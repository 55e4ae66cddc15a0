"""Results of a model's methods: arrays with names, shown in notebooks."""

import collections
import dataclasses
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from mae_jax.evals import image_metrics
from mae_jax.evals.reconstruction import Reconstructed
from mae_jax.tools import attention_maps
from mae_jax.utils import image_grid

_MAX_ROWS = 24  # images on a sheet


class _Sheet:
  """A result with a row for each image, which a notebook shows as a sheet."""

  names: Sequence[str]

  def sheet(self) -> Image.Image:
    """Draws the first images side by side."""
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self.names)

  def _repr_png_(self) -> bytes:
    file = io.BytesIO()
    self.sheet().save(file, format="png")
    return file.getvalue()


@dataclasses.dataclass(frozen=True, repr=False)
class Features:
  """Features of images.

  Attributes:
    values: float32 [N, ...]; NaN where an image cannot be read.
    names: N file names, or numbers of images that are no files.
    readable: bool [N].
  """

  values: np.ndarray
  names: Sequence[str]
  readable: np.ndarray

  def __array__(self, dtype: object = None, copy: bool | None = None):
    return np.array(self.values, dtype=dtype, copy=copy)  # type: ignore[call-overload]

  def __len__(self) -> int:
    return len(self.names)

  def __repr__(self) -> str:
    return f"Features({list(self.values.shape)}, names={_few(self.names)})"


class LayerFeatures(dict[int, np.ndarray]):
  """Features after several blocks: float32 [N, ...] by number of the block.

  Attributes:
    names: N file names, or numbers of images that are no files.
    readable: bool [N]; values of other images are NaN.
  """

  def __init__(
    self,
    values: dict[int, np.ndarray],
    names: Sequence[str],
    readable: np.ndarray,
  ):
    super().__init__(values)
    self.names, self.readable = names, readable

  def __repr__(self) -> str:
    shapes = ", ".join(f"{k}: {list(v.shape)}" for k, v in self.items())
    return f"LayerFeatures({{{shapes}}}, names={_few(self.names)})"


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions:
  """The most likely classes of images, best first.

  Attributes:
    names: N file names, or numbers of images that are no files.
    labels: int [N, k].
    probabilities: float32 [N, k], softmax over all classes; NaN where an image
      cannot be read.
    class_names: the name of each label.
  """

  names: Sequence[str]
  labels: np.ndarray
  probabilities: np.ndarray
  class_names: Sequence[str]

  @property
  def classes(self) -> list[list[str]]:
    """Names of the classes in `labels`, with the label where two are equal.

    ImageNet has two classes "crane" and two "maillot".
    """
    count = collections.Counter(self.class_names)
    words = [
      name if count[name] == 1 else f"{name} ({label})"
      for label, name in enumerate(self.class_names)
    ]
    return [[words[x] for x in row] for row in self.labels]

  def __len__(self) -> int:
    return len(self.names)

  def __iter__(self) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each image's name, and its probabilities by class."""
    for name, words, values in zip(
      self.names, self.classes, self.probabilities, strict=True
    ):
      yield name, dict(zip(words, map(float, values), strict=True))

  def __repr__(self) -> str:
    lines = []
    for name, found in list(self)[:_MAX_ROWS]:
      text = ", ".join(f"{word} {100 * p:.1f} %" for word, p in found.items())
      lines.append(f"{name}: {text}")
    if len(self) > _MAX_ROWS:
      lines.append(f"and {len(self) - _MAX_ROWS} more")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, repr=False)
class Reconstruction(_Sheet):
  """Reconstructions of masked images; a notebook shows them as a sheet.

  Attributes:
    names: N file names, or numbers of images that are no files.
    original: uint8 [N, H, W, C], the images as the network sees them.
    mask: bool [N, rows, columns], True for masked patches.
    reconstruction: uint8 [N, H, W, C], all patches as predicted.
  """

  names: Sequence[str]
  original: np.ndarray
  mask: np.ndarray
  reconstruction: np.ndarray

  @property
  def pixel_mask(self) -> np.ndarray:
    """Bool [N, H, W], the masked pixels."""
    _, height, width, _ = self.original.shape
    rows, columns = self.mask.shape[1:]
    tall = self.mask.repeat(height // rows, axis=1)
    return tall.repeat(width // columns, axis=2)

  @property
  def masked(self) -> np.ndarray:
    """uint8 [N, H, W, C], the originals with hatched masked patches."""
    return self._painted.masked(self.original)

  @property
  def pasted(self) -> np.ndarray:
    """uint8 [N, H, W, C], the reconstruction with the visible patches."""
    return self._painted.pasted(self.original)

  @property
  def _painted(self) -> Reconstructed:
    return Reconstructed(self.reconstruction, self.pixel_mask)

  @property
  def psnr(self) -> np.ndarray:
    """Float [N], PSNR of the masked pixels in dB."""
    return np.array(
      [
        image_metrics.psnr(painted[masked], truth[masked])
        for painted, truth, masked in zip(
          self.reconstruction, self.original, self.pixel_mask, strict=True
        )
      ]
    )

  @property
  def scores(self) -> list[image_metrics.Score]:
    """PSNR and SSIM of each image of `pasted`."""
    return [
      image_metrics.score(*each)
      for each in zip(self.pasted, self.original, self.pixel_mask, strict=True)
    ]

  def sheet(self) -> Image.Image:
    """Draws original, masked and `pasted` of up to 24 images, side by side."""
    titles = ("original", "masked", "reconstruction")
    rows = [
      (image, image_grid.Cell(image, hatched=hidden), pasted)
      for image, hidden, pasted in zip(
        self.original[:_MAX_ROWS],
        self.pixel_mask[:_MAX_ROWS],
        self.pasted[:_MAX_ROWS],
        strict=True,
      )
    ]
    share = f"{self.mask.mean():.0%} masked"
    captions = [
      (name, share, f"PSNR {value:.1f} dB")
      for name, value in zip(
        self.names[:_MAX_ROWS], self.psnr[:_MAX_ROWS], strict=True
      )
    ]
    return Image.fromarray(image_grid.draw_grid(rows, titles, captions))

  def __repr__(self) -> str:
    return (
      f"Reconstruction({list(self.original.shape)}, {self.mask.mean():.0%} "
      f"masked, PSNR of masked pixels {self.psnr.mean():.1f} dB)"
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Attention(_Sheet):
  """Attention of one block; a notebook shows it as a sheet.

  Attributes:
    names: N file names, or numbers of images that are no files.
    original: uint8 [N, H, W, C], the images as the network sees them.
    heads: float32 [N, heads, rows, columns], attention of the query token to
      each patch; a row of attention without the class token's own share.
    rollout: float [N, rows, columns], attention rollout from the class token
      over all blocks up to this one (Abnar and Zuidema 2020).
    layer: number of the block, from 1.
  """

  names: Sequence[str]
  original: np.ndarray
  heads: np.ndarray
  rollout: np.ndarray
  layer: int

  @property
  def mean(self) -> np.ndarray:
    """float32 [N, rows, columns], the mean over heads."""
    return self.heads.mean(axis=1)

  def sheet(self) -> Image.Image:
    """Draws original, mean of heads and rollout of up to 24 images."""
    rows, captions = [], []
    grid = self.rollout.shape[1:]
    for index, name in enumerate(self.names[:_MAX_ROWS]):
      image = self.original[index]
      maps = self.mean[index].reshape(-1), self.rollout[index].reshape(-1)
      overlays = [attention_maps.overlay(image, each, grid) for each in maps]
      rows.append([image, *overlays])
      ranges = [f"{each.min():.2g} to {each.max():.2g}" for each in maps]
      captions.append([name, *ranges])
    titles = ("original", "mean of heads", "rollout")
    sheet = image_grid.draw_grid(
      rows,
      titles,
      captions,
      heading=f"block {self.layer}",
      scale=attention_maps.SCALE,
    )
    return Image.fromarray(sheet)

  def __repr__(self) -> str:
    return (
      f"Attention(block {self.layer}, heads {list(self.heads.shape)}, "
      f"names={_few(self.names)})"
    )


def _few(names: Sequence[str]) -> str:
  more = f", and {len(names) - 3} more" if len(names) > 3 else ""
  return f"[{', '.join(map(repr, names[:3]))}{more}]"
