"""What each dialect calls our parameters, and how it lays them out.

One table a dialect from modules (or single arrays) of ours to names of theirs;
`{layer}` is the number of a block, which ours have stacked. One table of
layouts for all. Reading, writing and checking go by these alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

Names = Mapping[str, str | tuple[str, ...]]

_BLOCK: Names = {
  "norm1": "norm1",
  "attn/qkv": "attn.qkv",
  "attn/proj": "attn.proj",
  "norm2": "norm2",
  "mlp/fc1": "mlp.fc1",
  "mlp/fc2": "mlp.fc2",
}
_TRANSFORMERS_BLOCK: Names = {
  "norm1": "layernorm_before",
  "attn/qkv": (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
  ),
  "attn/proj": "attention.output.dense",
  "norm2": "layernorm_after",
  "mlp/fc1": "intermediate.dense",
  "mlp/fc2": "output.dense",
}


def _blocks(ours: str, theirs: str, block: Names) -> Names:
  """The modules of a stack."""

  def one(name: str) -> str:
    return f"{theirs}.{{layer}}.{name}"

  return {
    f"{ours}/stack/blocks/{module}": (
      one(name) if isinstance(name, str) else tuple(map(one, name))
    )
    for module, name in block.items()
  }


# timm's too, which has no decoder and no BatchNorm.
FACEBOOK: Names = {
  "model/encoder/cls_token": "cls_token",
  "model/encoder/pos_embed": "pos_embed",
  "model/encoder/patch_embed": "patch_embed.proj",
  **_blocks("model/encoder", "blocks", _BLOCK),
  "model/encoder/norm": "norm",
  "model/decoder/mask_token": "mask_token",
  "model/decoder/pos_embed": "decoder_pos_embed",
  "model/decoder/embed": "decoder_embed",
  **_blocks("model/decoder", "decoder_blocks", _BLOCK),
  "model/decoder/norm": "decoder_norm",
  "model/decoder/pred": "decoder_pred",
  "model/fc_norm": "fc_norm",
  "model/head": "head",
  "head": "head.1",
  "stats/mean": "head.0.running_mean",
  "stats/var": "head.0.running_var",
}
# As files on the Hub have them.
TRANSFORMERS: Names = {
  "model/encoder/cls_token": "vit.embeddings.cls_token",
  "model/encoder/pos_embed": "vit.embeddings.position_embeddings",
  "model/encoder/patch_embed": "vit.embeddings.patch_embeddings.projection",
  **_blocks("model/encoder", "vit.encoder.layer", _TRANSFORMERS_BLOCK),
  "model/encoder/norm": "vit.layernorm",
  "model/decoder/mask_token": "decoder.mask_token",
  "model/decoder/pos_embed": "decoder.decoder_pos_embed",
  "model/decoder/embed": "decoder.decoder_embed",
  **_blocks("model/decoder", "decoder.decoder_layers", _TRANSFORMERS_BLOCK),
  "model/decoder/norm": "decoder.decoder_norm",
  "model/decoder/pred": "decoder.decoder_pred",
  "model/head": "classifier",
}
# Of DistributedDataParallel and torch.compile, in front of every name.
WRAPPERS = (r"^((module|_orig_mod)\.)+", "")
# Other spellings of these, as regular expressions, each tried in this order.
SPELLINGS: Sequence[tuple[str, str]] = (
  WRAPPERS,
  # The encoder alone has no prefix.
  (r"^(embeddings|encoder|layers|layernorm|pooler)\b", r"vit.\1"),
  # Modules of transformers 5, and the files that 5.23 writes of decoders.
  (r"^vit\.layers\.", "vit.encoder.layer."),
  (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
  (r"\.attention\.q_proj\.", ".attention.attention.query."),
  (r"\.attention\.k_proj\.", ".attention.attention.key."),
  (r"\.attention\.v_proj\.", ".attention.attention.value."),
  (r"\.attention\.o_proj\.", ".attention.output.dense."),
  (r"^(vit|decoder)(.*)\.mlp\.fc1\.", r"\1\2.intermediate.dense."),
  (r"^(vit|decoder)(.*)\.mlp\.fc2\.", r"\1\2.output.dense."),
)

_SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array is laid out elsewhere.

  Attributes:
    ours: their array and our shape -> our array.
    theirs: our array and their shape -> their array.
    shape: of theirs, by our shape and the patch's height, width, channels.
  """

  ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  theirs: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  shape: Callable[[tuple[int, ...], tuple[int, int, int]], tuple[int, ...]]


def _convolution_to_dense(
  weight: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """[D, C, p, q] -> [p * q * C, D]."""
  return weight.transpose(2, 3, 1, 0).reshape(shape)


def _dense_to_convolution(
  kernel: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """[p * q * C, D] -> [D, C, p, q]."""
  width, channels, height, breadth = shape
  pixels = kernel.reshape(height, breadth, channels, width)
  return pixels.transpose(3, 2, 0, 1)


_SAME = Layout(lambda x, _: x, lambda x, _: x, lambda shape, _: shape)
# The first ending of our path that fits.
LAYOUTS: Sequence[tuple[str, Layout]] = (
  (
    "patch_embed/kernel",
    Layout(
      _convolution_to_dense,
      _dense_to_convolution,
      lambda shape, patch: (shape[1], patch[2], *patch[:2]),
    ),
  ),
  (
    "kernel",
    Layout(lambda x, _: x.T, lambda x, _: x.T, lambda shape, _: shape[::-1]),
  ),
  ("", _SAME),
)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A tensor of theirs, and the part of an array of ours that it is.

  Attributes:
    name: theirs.
    layer: along our first axis; None if that is no axis of blocks.
    part: along our last axis, of `parts` equal ones.
    parts: likewise.
    shape: of that part of ours.
    their_shape: of theirs.
    layout: from one to the other.
  """

  name: str
  layer: int | None
  part: int
  parts: int
  shape: tuple[int, ...]
  their_shape: tuple[int, ...]
  layout: Layout

  def of(self, array: np.ndarray) -> np.ndarray:
    """The part of our array, as a view."""
    view = array if self.layer is None else array[self.layer]
    if self.parts == 1:
      return view
    length = self.shape[-1]
    return view[..., self.part * length : (self.part + 1) * length]

  def take(self, array: np.ndarray) -> np.ndarray:
    """Their tensor, out of our array."""
    return self.layout.theirs(self.of(array), self.their_shape)

  def put(self, array: np.ndarray, theirs: np.ndarray) -> None:
    """Writes their tensor into our array."""
    self.of(array)[...] = self.layout.ours(theirs, self.shape)


def pieces(
  path: str,
  shape: tuple[int, ...],
  names: Names,
  patch: tuple[int, int, int],
) -> list[Piece]:
  """The tensors of a dialect that make up an array of ours.

  Args:
    path: of the array, e.g. "model/encoder/stack/blocks/attn/qkv/kernel".
    shape: of it.
    names: of the dialect.
    patch: height, width and channels of a patch.

  Returns:
    None of them if the dialect has no place for it.
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
      their_shape=layout.shape(own, patch),
      layout=layout,
    )
    for layer in (range(shape[0]) if stacked else (None,))
    for part, name in enumerate(parts)
  ]


def size(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> int:
  """How many numbers the arrays have whose path begins so."""
  return sum(
    math.prod(shape)
    for path, shape in shapes.items()
    if path.startswith(prefix)
  )


def all_pieces(
  shapes: Mapping[str, tuple[int, ...]],
  names: Names,
  patch: tuple[int, int, int],
) -> Iterator[tuple[str, list[Piece]]]:
  """Those of each array, in the order of the arrays."""
  for path, shape in shapes.items():
    yield path, pieces(path, shape, names, patch)
