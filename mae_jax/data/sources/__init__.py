"""Sources of images, by name.

To add a source, write a function `(DataConfig, split) -> Source | None` and
give it a name in `SOURCES` of `mae_jax/config/schema.py`.
"""

import pkgutil
from typing import Literal, overload

from mae_jax import distributed
from mae_jax.config import SOURCES, DataConfig, lookup
from mae_jax.data.sources.base import (
  Arrays,
  Files,
  Indexed,
  Records,
  Source,
  Split,
)
from mae_jax.utils import storage

__all__ = [
  "Arrays",
  "Files",
  "Indexed",
  "Records",
  "Source",
  "Split",
  "open_source",
]


@overload
def open_source(data: DataConfig, split: Literal["train"]) -> Source: ...


@overload
def open_source(data: DataConfig, split: Literal["eval"]) -> Source | None: ...


def open_source(data: DataConfig, split: Split) -> Source | None:
  """Opens the images of one split; reads names and counts, but no image yet.

  Args:
    data: the `data` section; `source` is a name in `SOURCES`.
    split: "train", or "eval" for held-out images.

  Returns:
    The source. None for "eval" if `data.eval_split` is "" or there are no
    held-out images.

  Raises:
    ConfigError: if the source is unknown or has no image, if the data
      contradict the settings, or if other processes see other images.
  """
  function = lookup(SOURCES, data.source, "data.source")
  if split == "eval" and not data.eval_split:
    return None
  with storage.os_errors(data.path):
    source = pkgutil.resolve_name(function)(data, split)
  distributed.check_same_data(split, source.identity if source else None)
  return source
