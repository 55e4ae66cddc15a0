"""Which patches the encoder sees: per-example shuffling, as in the reference.

No sparse operation is needed: tokens are shuffled by an argsort of noise, the
tail is cut off, and the decoder undoes the shuffle (He et al. 2021, section 3,
"Simple implementation").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.distributed import sharding


@flax.struct.dataclass
class Masking:
  """What was hidden in each example, and how to put the rest back.

  Attributes:
    ids_shuffle: [B, L] the patches in shuffled order; the first K stay.
    ids_restore: [B, L] position of each patch in the shuffled order.
    mask: [B, L] float32, 1 = removed.
    num_keep: K.
  """

  ids_shuffle: jax.Array
  ids_restore: jax.Array
  mask: jax.Array
  num_keep: int = flax.struct.field(pytree_node=False)

  @property
  def ids_keep(self) -> jax.Array:
    """[B, K] patches that stay, in shuffled order."""
    return self.ids_shuffle[:, : self.num_keep]


def num_kept(num_patches: int, mask_ratio: float) -> int:
  """K, the number of patches that stay: int(L * (1 - mask_ratio)).

  Raises:
    ValueError: if that hides no patch or keeps none.
  """
  keep = _unchecked_num_kept(num_patches, mask_ratio)
  if not 0 < keep < num_patches:
    # Rounded down, so that the value in the message does keep a patch.
    highest = math.floor(1e4 * (1 - 1 / num_patches) - 1e-6) / 1e4
    remedy = (
      f"use a value above 0 and at most {highest}"
      if num_patches > 1
      else "use smaller patches or larger images"
    )
    raise ValueError(
      f"mask_ratio={mask_ratio} keeps {keep} of {num_patches} patches; it must "
      f"keep at least one and hide at least one: {remedy}"
    )
  return keep


def _unchecked_num_kept(num_patches: int, mask_ratio: float) -> int:
  return int(num_patches * (1 - mask_ratio))


def random_masking(noise: jax.Array, num_keep: int) -> Masking:
  """Chooses which patches the encoder sees.

  Args:
    noise: [B, L] uniform draws, one row per example; the smallest are kept.
    num_keep: K, how many patches stay.

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
  """Draws by which `random_masking` keeps any patches.

  Args:
    key: of this step.
    batch: B.
    grid: rows and columns of patches, L in all.
    num_keep: K, how many patches will be kept.

  Returns:
    [B, L] float32, the smallest for the patches that stay.
  """
  del num_keep  # any number of them may be kept
  return jax.random.uniform(key, (batch, grid[0] * grid[1]))


_BLOCK_TRIES = 64  # that are tried
_MIN_BLOCK_PATCHES = 16  # patches of a block, as in BEiT
_MIN_ASPECT = 0.3  # of the flattest block, as there


def block_noise(
  key: jax.Array, batch: int, grid: tuple[int, int], num_keep: int
) -> jax.Array:
  """As `random_noise`, but what is hidden are large blocks.

  Rectangles of BEiT's areas and aspects (Bao et al. 2021, algorithm 1) are
  added until no more fits; what is left to hide is then hidden at random, so
  that exactly K patches stay. For He et al. 2021, figure 6, "block-wise".
  """
  rows, columns = grid
  length = rows * columns
  row, column = jnp.arange(rows)[:, None], jnp.arange(columns)

  def add(hidden: jax.Array, draw: jax.Array) -> tuple[jax.Array, None]:
    left = length - num_keep - hidden.sum()
    least = jnp.minimum(_MIN_BLOCK_PATCHES, left)
    area = least + draw[0] * (left - least)
    aspect = jnp.exp((2 * draw[1] - 1) * math.log(_MIN_ASPECT))
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, columns)
    top = jnp.floor(draw[2] * (rows - height + 1))
    start = jnp.floor(draw[3] * (columns - width + 1))
    block = (top <= row) & (row < top + height)
    block &= (start <= column) & (column < start + width)
    more = hidden | block
    fits = more.sum() <= length - num_keep
    return jnp.where(fits, more, hidden), None

  def one(draws: jax.Array) -> jax.Array:
    hidden, _ = jax.lax.scan(add, jnp.zeros(grid, bool), draws)
    return hidden.reshape(length)

  keys = jax.random.split(key)
  draws = jax.random.uniform(keys[0], (batch, _BLOCK_TRIES, 4))
  # Each device adds the blocks of its own images.
  hidden = jax.vmap(one)(sharding.constrain_batch(draws))
  return hidden + random_noise(keys[1], batch, grid, num_keep)


def grid_noise(
  key: jax.Array, batch: int, grid: tuple[int, int], num_keep: int
) -> jax.Array:
  """As `random_noise`, but what stays, or is hidden, is a regular grid.

  For 75 %, one of every four patches stays (He et al. 2021, figure 6,
  "grid-wise"). Nothing is random but the order.

  Raises:
    ValueError: if no grid keeps so many patches.
  """
  patterns = _grid_patterns(grid)
  if num_keep not in patterns:
    length = grid[0] * grid[1]
    ratios = [_ratio_keeping(n, length) for n in patterns]
    raise ValueError(
      f"a grid cannot keep {num_keep} of {grid[0]} x {grid[1]} patches: use "
      f"another mask, or a mask_ratio of {', '.join(map(str, sorted(ratios)))}"
    )
  hidden = jnp.asarray(~patterns[num_keep].reshape(-1), jnp.float32)
  return hidden + random_noise(key, batch, grid, num_keep)


def _ratio_keeping(num_keep: int, num_patches: int) -> float:
  """The shortest mask ratio of which `num_kept` makes so many patches."""
  exact = 1 - num_keep / num_patches
  for digits in range(2, 12):
    unit = 10.0**-digits
    for ratio in (exact, exact - unit):  # rounded, or to the other side
      ratio = round(ratio, digits)
      if _unchecked_num_kept(num_patches, ratio) == num_keep:
        return ratio
  raise ValueError(f"no ratio keeps {num_keep} of {num_patches} patches")


def _grid_patterns(grid: tuple[int, int]) -> dict[int, np.ndarray]:
  """What stays, [rows, columns], by the number of patches."""
  row, column = np.indices(grid)
  every = [
    (row % period == 0) & (column % period == 0)
    for period in range(2, 1 + min(4, *grid))
  ]
  halves = (row + column) % 2 == 0
  found: dict[int, np.ndarray] = {}
  for pattern in (*every, halves, *(~each for each in every)):
    found.setdefault(int(pattern.sum()), pattern)
  return found


def given_noise(
  rows: Sequence[str],
  key: jax.Array,
  batch: int,
  grid: tuple[int, int],
  num_keep: int,
) -> jax.Array:
  """As `random_noise`, but of masks that somebody drew: one of them an image.

  Args:
    rows: of patches, as "0110", 1 = hidden; of one mask after the other.
    key: as there.
    batch: as there.
    grid: as there.
    num_keep: as there.

  Raises:
    ValueError: if they are not masks of this grid that keep K patches each.
  """
  count, rest = divmod(len(rows), grid[0])
  if not count or rest:
    raise ValueError(
      f"mask_rows={_shorten_rows(rows)} has {len(rows)} rows: write {grid[0]} a mask"
    )
  for row in rows:
    if len(row) != grid[1] or set(row) - set("01"):
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)} has a row {row!r}: write {grid[1]} signs a "
        "row, each 0 (shown) or 1 (hidden)"
      )
  hidden = np.array([[sign == "1" for sign in row] for row in rows])
  hidden = hidden.reshape(count, -1)
  for number, kept in enumerate((~hidden).sum(axis=1).tolist(), 1):
    if not 0 < kept < hidden.shape[1]:
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)}: mask {number} shows {kept} of "
        f"{hidden.shape[1]} patches: each must show one and hide one at least"
      )
    if kept != num_keep:
      ratio = _ratio_keeping(kept, hidden.shape[1])
      raise ValueError(
        f"mask_rows={_shorten_rows(rows)}: mask {number} shows {kept} of "
        f"{hidden.shape[1]} patches, and {num_keep} are to stay: draw all "
        f"so, or set mask_ratio={ratio}"
      )
  keys = jax.random.split(key)
  which = jax.random.randint(keys[0], (batch,), 0, count)
  chosen = jnp.asarray(hidden, jnp.float32)[which]
  return chosen + random_noise(keys[1], batch, grid, num_keep)


def _shorten_rows(rows: Sequence[str]) -> str:
  shown = ",".join(rows[:3])
  return f"{shown},..." if len(rows) > 3 else shown


# What hides patches: by its name, from a key, B, the grid and K to noise.
Strategy = Callable[[jax.Array, int, tuple[int, int], int], jax.Array]
STRATEGIES: dict[str, Strategy] = {
  "random": random_noise,
  "block": block_noise,
  "grid": grid_noise,
}


def no_masking(masked: Masking) -> Masking:
  """All L patches in order, for a decoder that is to fill in none of them."""
  length = masked.mask.shape[1]
  order = jnp.broadcast_to(jnp.arange(length), masked.mask.shape[:2])
  return Masking(order, order, masked.mask, length)


def visible_only(tokens: jax.Array, masked: Masking) -> jax.Array:
  """The tokens that stay, in shuffled order: [B, L, D] -> [B, K, D]."""
  return _permute(tokens, masked.ids_keep, masked.ids_restore)


def unshuffle(
  visible: jax.Array, mask_token: jax.Array, masked: Masking
) -> jax.Array:
  """Fills hidden places with the mask token and restores the order.

  Args:
    visible: [B, K, D] tokens of the kept patches, in shuffled order.
    mask_token: [1, 1, D].
    masked: what was hidden.

  Returns:
    [B, L, D] in the order of the image's patches.
  """
  batch, kept, width = visible.shape
  hidden = masked.ids_restore.shape[1] - kept
  tail = jnp.broadcast_to(mask_token, (batch, hidden, width))
  shuffled = jnp.concatenate([visible, tail], axis=1)
  return _permute(shuffled, masked.ids_restore, masked.ids_shuffle)


@jax.custom_vjp
def _permute(tokens: jax.Array, ids: jax.Array, inverse: jax.Array) -> jax.Array:
  """[B, L, D] by ids [B, K] -> [B, K, D]; `inverse` [B, L] undoes it.

  The gradient of a gather is a scatter, which is slow. Of a permutation, cut
  off or not, it is a gather by the inverse permutation.
  """
  del inverse  # only for the gradient
  return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


def _permute_forward(
  tokens: jax.Array, ids: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
  return _permute(tokens, ids, inverse), inverse


def _permute_backward(
  inverse: jax.Array, grad: jax.Array
) -> tuple[jax.Array, None, None]:
  cut_off = inverse.shape[1] - grad.shape[1]
  grad = jnp.pad(grad, ((0, 0), (0, cut_off), (0, 0)))
  return jnp.take_along_axis(grad, inverse[:, :, None], axis=1), None, None


_permute.defvjp(_permute_forward, _permute_backward)
