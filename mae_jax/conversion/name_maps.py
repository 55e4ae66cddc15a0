"""Parameter names and array layouts of other weight formats.

Each format's file has a table from this project's modules (or single arrays) to
its own names. `{layer}` stands for the number of a block, which are stacked
here. The table of layouts is common to all formats. Import, export and checks
use only these tables.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import einops
import numpy as np

Names = Mapping[str, str | tuple[str, ...]]


def blocks(module: str, prefix: str, block: Names) -> Names:
  """Returns the names of stacked blocks.

  Args:
    module: our module that has the stack, such as "model/encoder".
    prefix: what precedes the number of a block in their names.
    block: names within a block.
  """

  def in_layer(name: str) -> str:
    return f"{prefix}.{{layer}}.{name}"

  return {
    f"{module}/stack/blocks/{part}": (
      in_layer(name) if isinstance(name, str) else tuple(map(in_layer, name))
    )
    for part, name in block.items()
  }


# Parts of names that torch.compile, FSDP and activation checkpointing add to
# any module, and DistributedDataParallel to the whole network.
INNER_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
WRAPPERS = (rf"^((module|{INNER_WRAPPERS})\.)+|({INNER_WRAPPERS})\.", "")

_SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


@dataclasses.dataclass(frozen=True)
class Layout:
  """The layout of an array in other programs.

  Attributes:
    to_ours: converts their array to ours, given our shape.
    to_foreign: converts our array to theirs, given their shape.
    foreign_shape: their shape, given our shape and the patch's height, width
      and channels.
  """

  to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  to_foreign: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  foreign_shape: Callable[
    [tuple[int, ...], tuple[int, int, int]], tuple[int, ...]
  ]


# By the ending of our path; the first that matches applies.
LAYOUTS: Sequence[tuple[str, Layout]] = (
  (
    "patch_embed/kernel",
    Layout(
      lambda weight, _: einops.rearrange(weight, "d c p q -> (p q c) d"),
      lambda kernel, shape: einops.rearrange(
        kernel, "(p q c) d -> d c p q", c=shape[1], p=shape[2]
      ),
      lambda shape, patch: (shape[1], patch[2], *patch[:2]),
    ),
  ),
  (
    "kernel",
    Layout(lambda x, _: x.T, lambda x, _: x.T, lambda shape, _: shape[::-1]),
  ),
  ("", Layout(lambda x, _: x, lambda x, _: x, lambda shape, _: shape)),
)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A tensor of another format, and its slice of our array.

  Attributes:
    name: the tensor's name.
    layer: index along our first axis; None if the array is not stacked.
    part: index along our last axis, which has `parts` equal parts.
    parts: number of parts.
    shape: shape of the slice of our array.
    foreign_shape: shape of the tensor.
    layout: converts between both.
  """

  name: str
  layer: int | None
  part: int
  parts: int
  shape: tuple[int, ...]
  foreign_shape: tuple[int, ...]
  layout: Layout

  def view(self, array: np.ndarray) -> np.ndarray:
    """Returns the slice of our array, as a view."""
    view = array if self.layer is None else array[self.layer]
    if self.parts == 1:
      return view
    length = self.shape[-1]
    return view[..., self.part * length : (self.part + 1) * length]

  def to_foreign(self, array: np.ndarray) -> np.ndarray:
    """Extracts the other format's tensor from our array."""
    return self.layout.to_foreign(self.view(array), self.foreign_shape)

  def from_foreign(self, array: np.ndarray, tensor: np.ndarray) -> None:
    """Writes the other format's tensor into our array."""
    self.view(array)[...] = self.layout.to_ours(tensor, self.shape)


def pieces(
  path: str,
  shape: tuple[int, ...],
  names: Names,
  patch: tuple[int, int, int],
) -> list[Piece]:
  """Lists the tensors of a format that make up one of our arrays.

  Args:
    path: our path, such as "model/encoder/stack/blocks/attn/qkv/kernel".
    shape: our shape.
    names: the format's names.
    patch: height, width and channels of a patch.

  Returns:
    The pieces; empty if the format has no such tensor.
  """
  module, _, leaf = path.rpartition("/")
  theirs = names.get(path) or names.get(module)
  if theirs is None:
    return []
  suffix = "" if path in names else _SUFFIXES[leaf]
  parts = (theirs,) if isinstance(theirs, str) else theirs
  stacked = "{layer}" in parts[0]
  own = shape[1:] if stacked else shape
  own = (*own[:-1], own[-1] // len(parts))
  layout = next(layout for end, layout in LAYOUTS if path.endswith(end))
  return [
    Piece(
      name=name.format(layer=layer) + suffix,
      layer=layer,
      part=part,
      parts=len(parts),
      shape=own,
      foreign_shape=layout.foreign_shape(own, patch),
      layout=layout,
    )
    for layer in (range(shape[0]) if stacked else (None,))
    for part, name in enumerate(parts)
  ]


def num_parameters(
  shapes: Mapping[str, tuple[int, ...]], prefix: str = ""
) -> int:
  """Counts the values of arrays whose path starts with `prefix`."""
  return sum(
    math.prod(shape)
    for path, shape in shapes.items()
    if path.startswith(prefix)
  )


def all_pieces(
  shapes: Mapping[str, tuple[int, ...]],
  names: Names,
  patch: tuple[int, int, int],
) -> dict[str, list[Piece]]:
  """Lists the pieces of each array by its path, in the order of `shapes`."""
  return {
    path: pieces(path, shape, names, patch) for path, shape in shapes.items()
  }
