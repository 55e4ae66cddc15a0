"""Random masking by shuffling patches, and strategies that choose them.

No sparse operation is needed: an argsort of noise shuffles the tokens, the
encoder gets the first K, and the decoder undoes the shuffle (He et al. 2021,
section 3, "Simple implementation").
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.distributed import sharding
from mae_jax.utils import rng


@flax.struct.dataclass
class Masking:
  """The masked patches of each example, and how to restore their order.

  Attributes:
    ids_shuffle: [B, L] patches in shuffled order; the first K are visible.
    ids_restore: [B, L] position of each patch in the shuffled order.
    mask: [B, L] float32, 1 = removed.
    num_keep: K.
    in_place: whether the encoder processes all L patches in order, and only
      its attention ignores the masked ones; K is L.
  """

  ids_shuffle: jax.Array
  ids_restore: jax.Array
  mask: jax.Array
  num_keep: int = flax.struct.field(pytree_node=False)
  in_place: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def ids_keep(self) -> jax.Array:
    """Visible patches [B, K], in shuffled order."""
    return self.ids_shuffle[:, : self.num_keep]


def num_kept(num_patches: int, mask_ratio: float) -> int:
  """Computes K, the number of visible patches: int(L * (1 - mask_ratio)).

  Raises:
    ValueError: if no patch would be masked or none visible.
  """
  keep = _unchecked_num_kept(num_patches, mask_ratio)
  if not 0 < keep < num_patches:
    # Round down, so that the suggested value keeps at least one patch.
    highest = math.floor(1e4 * (1 - 1 / num_patches) - 1e-6) / 1e4
    remedy = (
      f"use a value above 0 and at most {highest}"
      if num_patches > 1
      else "use smaller patches or larger images"
    )
    raise ValueError(
      f"mask_ratio={mask_ratio} keeps {keep} of {num_patches} patches; it must "
      f"keep at least one and mask at least one: {remedy}"
    )
  return keep


def _unchecked_num_kept(num_patches: int, mask_ratio: float) -> int:
  return int(num_patches * (1 - mask_ratio))


def random_masking(noise: jax.Array, num_keep: int) -> Masking:
  """Chooses which patches the encoder sees.

  Args:
    noise: [B, L] uniform noise, one row per example; the K smallest are kept.
    num_keep: K, the number of patches to keep.

  Returns:
    A Masking with ids_keep [B, K], ids_restore [B, L] and mask [B, L] (1 =
    removed), as in He et al. 2021, section 3 ("Simple implementation").

  Raises:
    ValueError: if num_keep is not in 1..L.
  """
  length = noise.shape[1]
  if not 1 <= num_keep <= length:
    raise ValueError(f"num_keep={num_keep} is not in 1..{length}")
  ids_shuffle = jnp.argsort(noise, axis=1)
  ids_restore = jnp.argsort(ids_shuffle, axis=1)
  mask = (ids_restore >= num_keep).astype(jnp.float32)
  return Masking(ids_shuffle, ids_restore, mask, num_keep)


def random_noise(
  key: jax.Array, batch: int, grid: tuple[int, int], num_keep: int
) -> jax.Array:
  """Samples uniform noise, by which `random_masking` keeps random patches.

  Args:
    key: random key of this step.
    batch: B.
    grid: rows and columns of patches, L in all.
    num_keep: K, the number of patches to keep; unused here.

  Returns:
    [B, L] float32; the K smallest are kept.
  """
  del num_keep
  return jax.random.uniform(key, (batch, grid[0] * grid[1]))


_BLOCK_TRIES = 64
_MIN_BLOCK_PATCHES = 16  # as in BEiT
_MIN_ASPECT = 0.3  # as in BEiT


def block_noise(
  key: jax.Array, batch: int, grid: tuple[int, int], num_keep: int
) -> jax.Array:
  """Samples noise that masks large blocks; arguments as in `random_noise`.

  Adds rectangles of BEiT's areas and aspect ratios (Bao et al. 2021, algorithm
  1) until no more fits. Further patches are masked at random, so that exactly K
  stay visible. For He et al. 2021, figure 6, "block-wise".
  """
  rows, columns = grid
  length = rows * columns
  row, column = jnp.arange(rows)[:, None], jnp.arange(columns)

  def add_block(masked: jax.Array, noise: jax.Array) -> tuple[jax.Array, None]:
    left = length - num_keep - masked.sum()
    min_area = jnp.minimum(_MIN_BLOCK_PATCHES, left)
    area = min_area + noise[0] * (left - min_area)
    aspect = jnp.exp((2 * noise[1] - 1) * math.log(_MIN_ASPECT))
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
    top = jnp.floor(noise[2] * (rows - height + 1))
    left_edge = jnp.floor(noise[3] * (columns - width + 1))
    block = (top <= row) & (row < top + height)
    block &= (left_edge <= column) & (column < left_edge + width)
    extended = masked | block
    fits = extended.sum() <= length - num_keep
    return jnp.where(fits, extended, masked), None

  def mask_one(noise: jax.Array) -> jax.Array:
    masked, _ = jax.lax.scan(add_block, jnp.zeros(grid, bool), noise)
    return masked.reshape(length)

  keys = jax.random.split(key)
  noise = jax.random.uniform(keys[0], (batch, _BLOCK_TRIES, 4))
  # Each device adds the blocks of its own images.
  masked = jax.vmap(mask_one)(sharding.constrain_batch(noise))
  return masked + random_noise(keys[1], batch, grid, num_keep)


def grid_noise(
  key: jax.Array, batch: int, grid: tuple[int, int], num_keep: int
) -> jax.Array:
  """Samples noise that keeps, or masks, a regular grid of patches.

  A ratio of 75 % keeps one of every four patches (He et al. 2021, figure 6,
  "grid-wise"). Only the order of patches is random. Arguments are as in
  `random_noise`.

  Raises:
    ValueError: if no regular grid keeps K patches.
  """
  patterns = _grid_patterns(grid)
  if num_keep not in patterns:
    length = grid[0] * grid[1]
    ratios = [_ratio_keeping(n, length) for n in patterns]
    raise ValueError(
      f"a grid cannot keep {num_keep} of {grid[0]} x {grid[1]} patches: use "
      f"another mask, or a mask_ratio of {', '.join(map(str, sorted(ratios)))}"
    )
  masked = jnp.asarray(~patterns[num_keep].reshape(-1), jnp.float32)
  return masked + random_noise(key, batch, grid, num_keep)


def _ratio_keeping(num_keep: int, num_patches: int) -> float:
  """Finds the shortest mask ratio for which `num_kept` is `num_keep`."""
  exact = 1 - num_keep / num_patches
  for digits in range(2, 12):
    unit = 10.0**-digits
    for ratio in (exact, exact - unit):  # rounded up or down
      ratio = round(ratio, digits)
      if _unchecked_num_kept(num_patches, ratio) == num_keep:
        return ratio
  raise ValueError(f"no ratio keeps {num_keep} of {num_patches} patches")


def _grid_patterns(grid: tuple[int, int]) -> dict[int, np.ndarray]:
  """Returns masks [rows, columns] of visible patches, by their number."""
  row, column = np.indices(grid)
  sparse = [
    (row % period == 0) & (column % period == 0)
    for period in range(2, 1 + min(4, *grid))
  ]
  halves = (row + column) % 2 == 0
  found: dict[int, np.ndarray] = {}
  for pattern in (*sparse, halves, *(~each for each in sparse)):
    found.setdefault(int(pattern.sum()), pattern)
  return found


def given_noise(
  rows: Sequence[str],
  key: jax.Array,
  batch: int,
  grid: tuple[int, int],
  num_keep: int,
) -> jax.Array:
  """Samples noise for given masks: each image gets one of them at random.

  Args:
    rows: rows of patches such as "0110", 1 = masked; mask after mask.
    key: as in `random_noise`.
    batch: as in `random_noise`.
    grid: as in `random_noise`.
    num_keep: as in `random_noise`.

  Raises:
    ValueError: if a mask does not fit the grid or does not keep K patches.
  """
  count, rest = divmod(len(rows), grid[0])
  if not count or rest:
    raise ValueError(
      f"mask_rows={_shorten_rows(rows)} has {len(rows)} rows: write {grid[0]} "
      "rows per mask"
    )
  for row in rows:
    if len(row) != grid[1] or set(row) - set("01"):
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)} has a row {row!r}: write {grid[1]} "
        "digits per row, each 0 (visible) or 1 (masked)"
      )
  masks = np.array([[digit == "1" for digit in row] for row in rows])
  masks = masks.reshape(count, -1)
  length = masks.shape[1]
  for number, kept in enumerate((~masks).sum(axis=1).tolist(), 1):
    if not 0 < kept < length:
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)}: mask {number} keeps {kept} of "
        f"{length} patches: keep at least one and mask at least one"
      )
    if kept != num_keep:
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)}: mask {number} keeps {kept} of "
        f"{length} patches instead of {num_keep}: change the mask, or set "
        f"mask_ratio={_ratio_keeping(kept, length)}"
      )
  keys = jax.random.split(key)
  index = jax.random.randint(keys[0], (batch,), 0, count)
  chosen = jnp.asarray(masks, jnp.float32)[index]
  return chosen + random_noise(keys[1], batch, grid, num_keep)


def _shorten_rows(rows: Sequence[str]) -> str:
  start = ",".join(rows[:3])
  return f"{start},..." if len(rows) > 3 else start


# Samples noise [B, L] from a key, B, the grid and K.
Strategy = Callable[[jax.Array, int, tuple[int, int], int], jax.Array]
# A new name also goes into _MASKS of config/schema.py.
STRATEGIES: dict[str, Strategy] = {
  "random": random_noise,
  "block": block_noise,
  "grid": grid_noise,
}


def no_masking(masked: Masking) -> Masking:
  """Returns all L patches in order, for a decoder without mask tokens."""
  if masked.in_place:
    return dataclasses.replace(masked, mask=jnp.zeros_like(masked.mask))
  length = masked.mask.shape[1]
  order = jnp.broadcast_to(jnp.arange(length), masked.mask.shape[:2])
  return Masking(order, order, masked.mask, length)


def masking_in_place(mask: jax.Array) -> Masking:
  """Masks any number of patches in each image, without a shuffle.

  Visible tokens become what they are without the masked ones. It costs as much
  as no mask, so it is for exported programs, whose shapes are fixed.

  Args:
    mask: [B, L], 1 = removed.
  """
  order = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  mask = mask.astype(jnp.float32)
  return Masking(order, order, mask, mask.shape[1], in_place=True)


def attended(masked: Masking | None) -> jax.Array | None:
  """Returns bool [B, 1 + L] of the tokens to attend to; None for all.

  The first is the class token.
  """
  if masked is None or not masked.in_place:
    return None
  cls = jnp.zeros_like(masked.mask[:, :1])
  return jnp.concatenate([cls, masked.mask], axis=1) == 0


def visible_only(tokens: jax.Array, masked: Masking) -> jax.Array:
  """Selects the visible tokens, in shuffled order: [B, L, D] -> [B, K, D]."""
  if masked.in_place:
    return tokens
  return _permute(tokens, masked.ids_keep, masked.ids_restore)


def unshuffle(
  visible: jax.Array, mask_token: jax.Array, masked: Masking
) -> jax.Array:
  """Inserts mask tokens for masked patches and restores the order.

  Args:
    visible: [B, K, D] tokens of the visible patches, in shuffled order.
    mask_token: [1, 1, D].
    masked: the masking of each example.

  Returns:
    [B, L, D] in the order of the image's patches.
  """
  if masked.in_place:
    return jnp.where(masked.mask[:, :, None] > 0, mask_token, visible)
  batch, kept, width = visible.shape
  num_masked = masked.ids_restore.shape[1] - kept
  tail = jnp.broadcast_to(mask_token, (batch, num_masked, width))
  shuffled = jnp.concatenate([visible, tail], axis=1)
  return _permute(shuffled, masked.ids_restore, masked.ids_shuffle)


@jax.custom_vjp
def _permute(
  tokens: jax.Array, ids: jax.Array, inverse: jax.Array
) -> jax.Array:
  """Gathers [B, L, D] by ids [B, K]; `inverse` [B, L] is for the gradient.

  The gradient of a gather is a scatter, which is slow. For a permutation, or
  its first K entries, it is a gather by the inverse permutation.
  """
  del inverse
  return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def _permute_forward(
  tokens: jax.Array, ids: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return _permute(tokens, ids, inverse), inverse


def _permute_backward(
  inverse: jax.Array, grad: jax.Array
) -> tuple[jax.Array, None, None]:
  num_removed = inverse.shape[1] - grad.shape[1]
  grad = jnp.pad(grad, ((0, 0), (0, num_removed), (0, 0)))
  return jnp.take_along_axis(grad, inverse[:, :, None], axis=1), None, None


_permute.defvjp(_permute_forward, _permute_backward)


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
  """A choice among the mask ratios and strategies of training, by step.

  Attributes:
    kind: random (sampled anew in each step) or sequential (equal parts of
      training, in order).
    seed: seed of the random choice.
    total_steps: number of steps of the whole training.
    num_ratios: number of mask ratios.
    num_strategies: number of strategies.
  """

  kind: str
  seed: int
  total_steps: int
  num_ratios: int
  num_strategies: int

  def __call__(self, step: jax.Array) -> jax.Array | int:
    """Returns ratio * num_strategies + strategy of a step."""
    ratio = self._choose("ratio", step, self.num_ratios)
    strategy = self._choose("strategy", step, self.num_strategies)
    return ratio * self.num_strategies + strategy

  def _choose(self, name: str, step: jax.Array, count: int) -> jax.Array:
    if self.kind == "random":
      return jax.random.randint(rng.key(self.seed, name, step), (), 0, count)
    begins = [-(-n * self.total_steps // count) for n in range(1, count)]
    return sum((step >= begin for begin in begins), jnp.int32(0))
