"""The description of an export: `export.json` in its folder."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from mae_jax.data import prepare
from mae_jax.tools.feature_extractor import ImageFunction

NAME = "export.json"
_MAKER = "mae_jax.export"  # stored in files: not a module
# Settings of images before the program.
_PREPARATION = (
  "image_size", "eval_fit", "eval_crop", "eval_resample", "exif_rotate",
  "background", "value_range",
)  # fmt: skip
# Of the input after images, if there is one.
_MASK = {"meaning": "true for masked patches, row by row; any number of them"}
_PACKAGES = ("mae_jax", "jax", "jaxlib", "flax")


def describe(
  network: ImageFunction, output_shape: tuple[int, ...], fit: str | None = None
) -> dict[str, Any]:
  """Describes a network.

  Args:
    network: the network.
    output_shape: shape of the output for one image.
    fit: how to fit images to it; None for `data.eval_fit`.
  """
  data = prepare.with_fit(network.data, fit)
  how = {name: getattr(data, name) for name in _PREPARATION}
  if code := prepare.as_code(data, normalized=False):
    how["python"] = code.splitlines()
  images, *others = (
    {"name": name, "shape": ["batch", *each.shape], "dtype": each.dtype.name}
    for name, each in network.inputs.items()
  )
  return {
    "input": images,
    **{each["name"]: {**each, **_MASK} for each in others},
    "output": {
      "name": network.output,
      "shape": ["batch", *output_shape],
      "dtype": "float32",
    },
    # The program normalizes; mean and std are information.
    "normalized_inside": {"mean": list(data.mean), "std": list(data.std)},
    "preparation": how,
    **network.info,
  }


def write(folder: epath.Path, content: Mapping[str, Any]) -> None:
  """Writes `export.json`, with a list of the other files in the folder."""
  content = {
    "made_by": _MAKER,
    "files": sorted(each.name for each in folder.iterdir()),
    **content,
    "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  (folder / NAME).write_text(json.dumps(content, indent=2) + "\n")


def is_export(folder: epath.Path) -> bool:
  """Checks whether a folder is an export without additional files."""
  try:
    content = json.loads((folder / NAME).read_text())
    made, files = content["made_by"], {NAME, *content["files"]}
  except (OSError, ValueError, KeyError, TypeError):
    return False
  return made == _MAKER and {each.name for each in folder.iterdir()} <= files
