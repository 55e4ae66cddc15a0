"""Masks differ by example, have the exact size, and can be undone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import factory, masking
from tests.helpers import tiny

BATCH, LENGTH = 16, 30


def draw(seed: int = 0) -> np.ndarray:
  random = np.random.default_rng(seed)
  return random.uniform(size=(BATCH, LENGTH)).astype(np.float32)


@pytest.mark.parametrize("keep", [1, 7, 29, 30])
def test_the_smallest_noise_is_kept_in_its_order(keep: int):
  noise = draw(keep)
  masked = masking.random_masking(jnp.asarray(noise), keep)
  assert masked.ids_keep.shape == (BATCH, keep)
  assert masked.mask.dtype == jnp.float32
  for row in range(BATCH):
    order = sorted(range(LENGTH), key=lambda i, row=row: noise[row, i])
    assert list(masked.ids_keep[row]) == order[:keep]
    for place, patch in enumerate(order):
      assert masked.ids_restore[row, patch] == place
      assert masked.mask[row, patch] == (place >= keep)


def test_each_example_has_its_own_mask_of_the_exact_size():
  masked = masking.random_masking(jnp.asarray(draw()), 7)
  np.testing.assert_array_equal(masked.mask.sum(axis=1), LENGTH - 7)
  assert len({tuple(np.flatnonzero(row)) for row in masked.mask}) == BATCH


def test_unshuffle_puts_each_token_where_it_was():
  random = np.random.default_rng(3)
  tokens = random.normal(size=(BATCH, LENGTH, 4)).astype(np.float32)
  mask_token = np.full((1, 1, 4), 9.0, np.float32)
  masked = masking.random_masking(jnp.asarray(draw()), 7)
  visible = masking.visible_only(jnp.asarray(tokens), masked)
  whole = masking.unshuffle(visible, jnp.asarray(mask_token), masked)
  assert visible.shape == (BATCH, 7, 4)
  assert whole.shape == tokens.shape
  for row in range(BATCH):
    for patch in range(LENGTH):
      hidden = masked.mask[row, patch] == 1
      wanted = mask_token[0, 0] if hidden else tokens[row, patch]
      np.testing.assert_array_equal(whole[row, patch], wanted)


@pytest.mark.parametrize(
  ("length", "ratio", "keep"),
  [
    (196, 0.75, 49),
    (256, 0.75, 64),
    (16, 0.75, 4),
    (10, 0.75, 2),  # int() rounds towards masking more
    (4, 0.25, 3),
    (10, 0.9, 0),  # 10 * (1 - 0.9) is 0.99...: as the reference
    (16, 0.95, 0),
    (16, 0.0, 16),
    (16, 1.0, 0),
    (16, -0.5, 24),
    (1, 0.5, 0),
  ],
)
def test_number_of_kept_patches(length: int, ratio: float, keep: int):
  assert int(length * (1 - ratio)) == keep
  if 0 < keep < length:
    assert masking.num_kept(length, ratio) == keep
    return
  with pytest.raises(ValueError, match=r"at least one and mask") as error:
    masking.num_kept(length, ratio)
  assert f"mask_ratio={ratio} keeps {keep} of {length}" in str(error.value)


@pytest.mark.parametrize("length", [2, 3, 10, 16, 196, 256, 1024, 20000])
def test_the_remedy_in_the_error_works(length: int):
  with pytest.raises(ValueError, match="above 0 and at most") as error:
    masking.num_kept(length, 1.0)
  highest = float(str(error.value).split("at most ")[1])
  assert masking.num_kept(length, highest) >= 1
  assert masking.num_kept(length, 0.001) == int(length * 0.999)
  with pytest.raises(ValueError, match="smaller patches or larger images"):
    masking.num_kept(1, 0.5)


@pytest.mark.parametrize("keep", [0, -1, LENGTH + 1])
def test_a_wrong_number_is_refused(keep: int):
  with pytest.raises(ValueError, match=rf"num_keep={keep} is not in 1..30"):
    masking.random_masking(jnp.asarray(draw()), keep)


def masked_by(
  strategy: str,
  grid: tuple[int, int],
  keep: int,
  batch: int = 64,
  seed: int = 0,
) -> np.ndarray:
  """Samples masks, bool [batch, rows, columns]."""
  draw = masking.STRATEGIES[strategy]
  noise = draw(jax.random.key(seed), batch, grid, keep)
  assert noise.shape == (batch, grid[0] * grid[1])
  mask = masking.random_masking(noise, keep).mask
  return np.asarray(mask > 0).reshape(batch, *grid)


@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize(
  ("grid", "keep"), [((14, 14), 49), ((14, 14), 98), ((4, 9), 1), ((1, 5), 2)]
)
def test_strategies_hide_as_many_and_differ(strategy, grid, keep: int):
  hidden = masked_by(strategy, grid, keep)
  np.testing.assert_array_equal((~hidden).sum(axis=(1, 2)), keep)
  assert len({row.tobytes() for row in hidden}) > 1
  again = masked_by(strategy, grid, keep)
  np.testing.assert_array_equal(again, hidden)
  other = masked_by(strategy, grid, keep, seed=1)
  assert (other != hidden).any()


def borders(hidden: np.ndarray) -> float:
  """Computes the fraction of neighbor pairs of which one is masked."""
  across = hidden[:, :, 1:] != hidden[:, :, :-1]
  down = hidden[:, 1:] != hidden[:, :-1]
  return np.concatenate([across.ravel(), down.ravel()]).mean()


@pytest.mark.parametrize("keep", [98, 49])  # the paper's 50 and 75 %
def test_blocks_are_blocks(keep: int):
  """Random patches would give 2 p (1 - p) of differing neighbor pairs."""
  blocks, random = (
    borders(masked_by(strategy, (14, 14), keep))
    for strategy in ("block", "random")
  )
  share = keep / 196
  assert random == pytest.approx(2 * share * (1 - share), abs=0.02)
  assert blocks < random / 2


def test_blocks_are_anywhere():
  # Blocks lie within the image, so corners are masked least, but not never.
  often = masked_by("block", (14, 14), 98, batch=512).mean(axis=0)
  assert often.min() > 0.03
  assert often.max() < 0.9
  np.testing.assert_allclose(often, often[::-1, ::-1], rtol=0, atol=0.12)


def test_blocks_are_rectangles_of_sixteen_patches_and_more():
  """Except for patches masked at random at the end, in few images."""
  hidden = masked_by("block", (14, 14), 98, batch=256)
  alone = 0
  for image in np.pad(hidden, ((0, 0), (1, 1), (1, 1))):
    around = image[1:-1, :-2] | image[1:-1, 2:] | image[:-2, 1:-1]
    around |= image[2:, 1:-1]
    alone += (image[1:-1, 1:-1] & ~around).sum()
  assert alone / hidden.sum() < 0.02


def reference_blocks(keep: int, batch: int) -> np.ndarray:
  """Samples BEiT's rectangles on 14 x 14: from 16 patches, aspects 0.3 to 3.3.

  As `masked_by`, from other random numbers.
  """
  random, want = np.random.default_rng(0), 196 - keep
  hidden = np.zeros((batch, 14, 14), bool)
  for image in hidden:
    for _ in range(64):
      left = want - image.sum()
      area = random.uniform(16, left) if left > 16 else left
      aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
      height = min(max(round(math.sqrt(area * aspect)), 1), 14)
      width = min(max(round(math.sqrt(area / aspect)), 1), 14)
      y, x = random.integers(15 - height), random.integers(15 - width)
      more = image.copy()
      more[y : y + height, x : x + width] = True
      if more.sum() <= want:
        image[:] = more
    free = random.permutation(np.flatnonzero(~image))
    image.ravel()[free[: want - image.sum()]] = True
  return hidden


@pytest.mark.parametrize("keep", [98, 49])
def test_blocks_are_of_their_areas_and_aspects(keep: int):
  """Compares the borders.

  With 98 masked patches 12.8 % of neighbors differ. It would be 14.7 % if
  blocks could be single patches, 12.4 % for aspects from 0.5 to 2, and 17.9 %
  for aspects from 0.02.
  """
  found = borders(masked_by("block", (14, 14), keep, batch=1024))
  assert found == pytest.approx(
    borders(reference_blocks(keep, 1024)), abs=0.002
  )


def test_a_grid_is_regular():
  hidden = masked_by("grid", (14, 14), 49, batch=2)
  wanted = np.ones((14, 14), bool)
  wanted[::2, ::2] = False
  for each in hidden:
    np.testing.assert_array_equal(each, wanted)
  half = masked_by("grid", (4, 6), 12, batch=1)[0]
  assert (half[:, 1:] != half[:, :-1]).all()
  assert (half[1:] != half[:-1]).all()
  quarter = masked_by("grid", (4, 6), 18, batch=1)[0]
  np.testing.assert_array_equal(quarter.sum(axis=1), [3, 0, 3, 0])


def test_a_grid_that_cannot_be_is_refused_with_what_can():
  with pytest.raises(ValueError, match="mask_ratio of ") as caught:
    masked_by("grid", (14, 14), 78)
  ratios = str(caught.value).rpartition("mask_ratio of ")[2].split(", ")
  assert "0.75" in ratios
  assert "0.5" in ratios
  for ratio in map(float, ratios):
    masked_by("grid", (14, 14), masking.num_kept(196, ratio))


CROSS = ("0110", "1111", "0110")
CORNERS = ("1001", "1111", "1001")


@pytest.mark.parametrize("length", [2, 10, 16, 20, 196, 256, 50176])
def test_any_number_has_a_ratio(length: int):
  """Error messages suggest these ratios."""
  for keep in {*range(1, length, -(-length // 300)), length - 1}:
    ratio = masking._ratio_keeping(keep, length)
    assert masking.num_kept(length, ratio) == keep


def test_given_masks_are_those_that_were_given():
  noise = masking.given_noise(
    (*CROSS, *CORNERS), jax.random.key(0), 64, (3, 4), 4
  )
  masked = masking.random_masking(noise, 4)
  found = {
    tuple("".join(map(str, row)) for row in mask)
    for mask in np.asarray(masked.mask, int).reshape(-1, 3, 4)
  }
  assert found == {CROSS, CORNERS}
  # Visible patches are in random order, which carries no information.
  assert len({tuple(row) for row in np.asarray(masked.ids_keep)}) > 20


@pytest.mark.parametrize(
  ("rows", "text"),
  [
    ((), "mask_rows= has 0 rows: write 3 rows per mask"),
    (CROSS[:2], "has 2 rows: write 3 rows per mask"),
    (("0110", "111", "0110"), "a row '111': write 4 digits per row"),
    (("0110", "11x1", "0110"), "a row '11x1'.* each 0 .visible. or 1"),
    (
      (*CROSS, "1101", "1111", "1001"),
      r"mask 2 keeps 3 of 12 patches instead of 4: .* mask_ratio=0.75",
    ),
  ],
)
def test_given_masks_that_are_none(rows, text: str):
  with pytest.raises(ValueError, match=text):
    masking.given_noise(rows, jax.random.key(0), 2, (3, 4), 4)


@pytest.mark.parametrize("masked_input", ["dropped", "mask_tokens"])
def test_masking_in_place_predicts_as_shuffling_does(masked_input):
  """Also with another number of masked patches in each image."""
  config = tiny.config(
    objective={"masked_input": masked_input}, model={"depth": 1}
  )
  network = factory.masked_autoencoder(config)
  params = {"params": tiny.random_params(tiny.shapes(config))}
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
  noise = np.random.default_rng(1).random((2, 16)).argsort(axis=1)
  mask = (noise >= np.array([[3], [11]])).astype(np.float32)

  @jax.jit
  def reconstruct(images, masked):
    return network.apply(params, images, masked, method="reconstruct")

  found = reconstruct(images, masking.masking_in_place(mask))
  for row, keep in enumerate((3, 11)):
    one = slice(row, row + 1)
    masked = masking.random_masking(mask[one], keep)
    wanted = reconstruct(images[one], masked)
    np.testing.assert_allclose(found[one], wanted, atol=1e-5)
