"""Tests of splits and subsets of sources."""

from __future__ import annotations

import numpy as np
import pytest

from mae_jax.data.sources import base

PIECES = (
  base.Piece("a", 2, 7),
  base.Piece("b", 0, 1),
  base.Piece("c", 5, 12),
)


def numbers(pieces):
  """Lists (file, record number) of all records of some pieces."""
  return [
    (piece.path, piece.skip + k * piece.stride)
    for piece in pieces
    for k in range(piece.take)
  ]


def records(shuffled=True):
  return base.Records(PIECES, None, lambda record: record, shuffled)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20, 23])
def test_split_has_each_record_once_in_order(parts):
  split = records().split(parts)
  sizes = [len(numbers(part)) for part in split]
  assert len(split) == parts
  assert max(sizes) - min(sizes) <= 1
  together = [number for part in split for number in numbers(part)]
  assert together == numbers(PIECES)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 8, 19, 20, 99])
def test_subset_of_records(limit, shuffled):
  subset = records(shuffled).subset(limit)
  found = numbers(subset.pieces)
  assert len(found) == subset.num_examples == min(limit, 20)
  assert len(set(found)) == len(found)
  assert set(found) <= set(numbers(PIECES))
  split = [number for part in subset.split(4) for number in numbers(part)]
  assert split == found


def test_subset_of_sorted_files_is_spread_over_each():
  subset = records(shuffled=False).subset(10)
  last = [number for name, number in numbers(subset.pieces) if name == "c"]
  assert np.ptp(last) >= 10


def test_subset_of_an_indexed_source_is_evenly_spaced():
  source = base.Indexed(10, None, lambda index: {"image": index})
  chosen = source.subset(4).load(np.arange(4))["image"]
  np.testing.assert_array_equal(chosen, [0, 2, 5, 7])
  assert source.subset(0) is source
  assert source.subset(11) is source


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], [0.0, 1.0, 2.0]])
def test_arrays_need_an_integer_label_for_each_image(labels):
  images = np.zeros((3, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match=r"labels of .* for 3 images"):
    base.Arrays.create(images, {}, labels=np.array(labels))
