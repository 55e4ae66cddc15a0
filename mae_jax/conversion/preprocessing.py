"""Preparation of evaluation images in the words of transformers and timm.

Both libraries read it from a file beside the weights. What they cannot say, or
say and we cannot do, becomes a note.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from mae_jax.conversion import json_fields
from mae_jax.conversion.model_info import ModelInfo

CROP, SQUASH = "crop", "squash"  # values of data.eval_fit
# Numbers of Pillow's filters, by our values of data.eval_resample.
_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
_OFFSET_NOTE = (
  "{library} rounds half a pixel of the crop's offset down, and this project "
  "to even as torchvision does: its crop lies one pixel before ours"
)

_LONG_NOTE = (
  "images that are not square: if the resized longer side exceeds the crop by "
  "3, 7, 11, ... pixels, transformers' crop lies one pixel before ours, as it "
  "rounds half a pixel down"
)


@dataclasses.dataclass(frozen=True)
class Preparation:
  """A preparation of evaluation images, with notes on what is not supported.

  Attributes:
    eval_fit: as in `DataConfig`; also the next two.
    eval_resample: interpolation.
    eval_crop: the fraction of the resized image's sides to keep; None if it is
      not stated.
    notes: differences from what the file states.
  """

  eval_fit: str = CROP
  eval_resample: str = "bicubic"
  eval_crop: float | None = None
  notes: tuple[str, ...] = ()

  def fields(self) -> dict[str, Any]:
    """Returns the fields of `ModelInfo`."""
    found = dataclasses.asdict(self)
    return {name: value for name, value in found.items() if value is not None}


def covered_size(info: ModelInfo) -> tuple[int, int]:
  """Returns the size that a resized image covers before the crop."""
  assert info.image_size is not None
  height, width = (round(side / info.eval_crop) for side in info.image_size)
  return height, width


def to_transformers(info: ModelInfo) -> dict[str, Any]:
  """Returns the geometry of a preprocessor_config.json."""
  assert info.image_size is not None
  height, width = info.image_size
  size = {"height": height, "width": width}
  common = {
    "do_resize": True,
    "resample": _FILTERS[info.eval_resample],
    "do_convert_rgb": info.channels == 3,
  }
  if info.eval_fit == SQUASH:
    return {
      "image_processor_type": "ViTImageProcessor",
      "size": size,
      "do_center_crop": False,
      **common,
    }
  return {
    # transformers 4's ViTImageProcessor does not crop.
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": max(covered_size(info))},
    "do_center_crop": True,
    "crop_size": size,
    **common,
  }


def transformers_notes(info: ModelInfo) -> list[str]:
  """Lists differences between transformers' pixels and ours."""
  assert info.image_size is not None
  if info.eval_fit == SQUASH:
    return []
  cover = covered_size(info)
  if info.image_size[0] != info.image_size[1]:
    return [
      "transformers cannot resize an image to cover a rectangle: its shorter "
      f"side becomes {max(cover)} pixels, and the crop shows less of the image "
      "than this project's evaluation; prepare images yourself, or train with "
      "--config.data.eval_fit=squash"
    ]
  short = _offset_notes("transformers", cover[0] - info.image_size[0])
  return short or [_LONG_NOTE]


def _offset_notes(library: str, margin: int) -> list[str]:
  # Half of 3, 7, 11 ... is rounded to 2, 4, 6 here.
  return [_OFFSET_NOTE.format(library=library)] if margin % 4 == 3 else []


def from_transformers(
  content: Mapping[str, Any],
  image_size: tuple[int, int],
  path: pathlib.Path,
) -> Preparation:
  """Reads the geometry of a preprocessor_config.json.

  Args:
    content: the file.
    image_size: height and width of the network's images.
    path: the file, for messages.
  """
  notes = []
  kind = content.get("image_processor_type") or content.get(
    "feature_extractor_type", ""
  )
  square = "vit" in str(kind).lower() or not kind
  number = content.get("resample")
  number = (_FILTERS["bilinear"] if square else 3) if number is None else number
  names = {value: name for name, value in _FILTERS.items()}
  resample = names.get(number, "bicubic")
  if number not in names:
    notes.append(f"{path.name} resizes with Pillow's filter {number}")
  size = content.get("size")
  if isinstance(size, dict) and "shortest_edge" in size:
    edge = json_fields.number(size, "shortest_edge", path)
    keep = min(max(image_size) / edge, 1.0) if edge > 0 else 1.0
    if content.get("do_center_crop") is False:
      notes.append(f"{path.name} does not crop images that are not square")
    return Preparation(CROP, resample, keep, _differences(notes))
  if content.get("do_resize") is False:
    notes.append(f"{path.name} does not resize images")
  if content.get("do_center_crop"):
    notes.append(f"{path.name} crops images after it changed their aspect")
  if size is None and not square:
    return Preparation(CROP, resample, None, _differences(notes))
  return Preparation(SQUASH, resample, 1.0, _differences(notes))


def _differences(notes: list[str]) -> tuple[str, ...]:
  return tuple(
    f"{note}, which this project does not: its pixels differ" for note in notes
  )


def to_timm(info: ModelInfo) -> dict[str, Any]:
  """Returns the geometry of a pretrained_cfg."""
  crop = info.eval_fit == CROP
  return {
    "interpolation": info.eval_resample,
    "crop_mode": "center" if crop else "squash",
    "crop_pct": _crop_pct(info) if crop else 1.0,
  }


def _crop_pct(info: ModelInfo) -> float:
  """Returns the fraction with which timm resizes to the same size.

  timm rounds the size down, and this project to the nearest.
  """
  if _timm_cover(info, info.eval_crop) == covered_size(info):
    return info.eval_crop
  assert info.image_size is not None
  pairs = zip(info.image_size, covered_size(info), strict=True)
  largest = min(side / cover for side, cover in pairs)
  return math.nextafter(largest, 0.0)


def _timm_cover(info: ModelInfo, crop_pct: float) -> tuple[int, int]:
  assert info.image_size is not None
  height, width = (math.floor(side / crop_pct) for side in info.image_size)
  return height, width


def timm_notes(info: ModelInfo) -> list[str]:
  """Lists differences between timm's pixels and ours."""
  assert info.image_size is not None
  if info.eval_fit == SQUASH or info.image_size[0] == info.image_size[1]:
    return []
  return [
    "timm rounds the sides of resized images to the nearest pixel, and this "
    "project down: the crop may lie one pixel from ours"
  ]


def from_timm(
  preprocessing: Mapping[str, Any],
  image_size: tuple[int, int] | None,
  path: pathlib.Path,
) -> Preparation:
  """Reads the geometry of a pretrained_cfg.

  Args:
    preprocessing: the pretrained_cfg.
    image_size: height and width of the network's images; None if unknown.
    path: the file, for messages.
  """
  notes = []
  keep = None
  if preprocessing.get("crop_pct") is not None:
    keep = json_fields.number(preprocessing, "crop_pct", path)
  resample = preprocessing.get("interpolation") or "bicubic"
  if resample not in _FILTERS:
    notes.append(f"{path.name} has interpolation={resample}")
    resample = "bicubic"
  mode = preprocessing.get("crop_mode") or "center"
  if mode == "border":
    notes.append(f"{path.name} pads images to keep their aspect")
  elif mode == SQUASH and keep not in (None, 1.0):
    notes.append(f"{path.name} crops images after it changed their aspect")
  if mode in ("border", SQUASH):
    return Preparation(SQUASH, resample, keep, _differences(notes))
  if keep is not None and image_size is not None:
    keep = _keep_rounded_down(keep, image_size)
  return Preparation(CROP, resample, keep, _differences(notes))


def _keep_rounded_down(keep: float, size: tuple[int, int]) -> float:
  """Returns the fraction with which this project resizes as timm does."""
  cover = [math.floor(side / keep) for side in size]
  if [round(side / keep) for side in size] == cover:
    return keep
  return min(side / each for side, each in zip(size, cover, strict=True))
