"""InfoNCE compares the right patches with each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mae_jax.models import losses, masking
from tests.helpers import numpy_reference, tiny
from tests.helpers.params import slow

BATCH, LENGTH, WIDTH, KEEP, TEMPERATURE = 3, 10, 5, 4, 0.2


def draw(seed: int) -> np.ndarray:
  random = np.random.default_rng(seed)
  return random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


def masked() -> masking.Masking:
  noise = np.random.default_rng(7).uniform(size=(BATCH, LENGTH))
  return masking.random_masking(jnp.asarray(noise), KEEP)


def nce(pred: np.ndarray, target: np.ndarray) -> float:
  """Computes InfoNCE of [N, T] as a classification in PyTorch."""
  a, b = (F.normalize(torch.tensor(x), dim=1) for x in (pred, target))
  return F.cross_entropy(a @ b.T / TEMPERATURE, torch.arange(len(a))).item()


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 2, 6, 99])
def test_hidden_patches_are_compared_within_images_or_the_batch(count: int):
  pred, target, hidden = draw(0), draw(1), masked()
  taken = np.asarray(hidden.ids_shuffle)[:, -min(count or 6, 6) :]
  for row in range(BATCH):
    assert hidden.mask[row, taken[row]].all()
  picked = [
    [x[row, taken[row]] for row in range(BATCH)] for x in (pred, target)
  ]
  within = np.mean([nce(a, b) for a, b in zip(*picked, strict=True)])
  across = nce(*(np.concatenate(rows) for rows in picked))
  for kind, wanted in (("image", within), ("batch", across)):
    term = losses.CONTRASTIVE_LOSSES[kind](TEMPERATURE, count)
    np.testing.assert_allclose(term(pred, target, hidden), wanted, rtol=1e-5)
    # Visible patches do not affect the loss.
    shown = (np.asarray(hidden.mask) == 0)[..., None]
    np.testing.assert_array_equal(
      term(np.where(shown, 9.0, pred), target, hidden),
      term(pred, target, hidden),
    )


@pytest.mark.parametrize("kind", [slow("image"), "batch"])
def test_a_share_of_it_is_part_of_the_loss(kind: str):
  """The config sets weight, temperature and patches."""
  model = tiny.model(
    objective={
      "target": "raw",
      "contrast": kind,
      "contrast_weight": 0.3,
      "contrast_temperature": TEMPERATURE,
      "contrast_patches": 12,  # all that are hidden
    }
  )
  random = np.random.default_rng(0)
  images = random.normal(size=(4, 8, 8, 1)).astype(np.float32)
  noise = random.uniform(size=(4, 16)).astype(np.float32)
  out = model.apply({"params": tiny.params()}, images, noise)
  target, hidden = (
    numpy_reference.patchify(images, (2, 2)),
    np.asarray(out.mask) > 0,
  )
  pred = np.asarray(out.pred)
  rows = [(p[m], t[m]) for p, t, m in zip(pred, target, hidden, strict=True)]
  wanted = (
    np.mean([nce(*row) for row in rows])
    if kind == "image"
    else nce(pred[hidden], target[hidden])
  )
  error = numpy_reference.masked_mse(pred, target, hidden)
  np.testing.assert_allclose(out.parts["contrast"], wanted, rtol=1e-5)
  np.testing.assert_allclose(out.loss, error + 0.3 * wanted, rtol=1e-5)


def test_originals_cost_nothing_next_to_others():
  target, hidden = draw(1), masked()
  term = losses.CONTRASTIVE_LOSSES["batch"](0.01, 0)
  assert term(5 * target, target, hidden) < 1e-3
  assert term(-target, target, hidden) > 50


@pytest.mark.parametrize("kind", losses.CONTRASTIVE_LOSSES)
def test_flops_on_paper_are_the_compilers(kind: str):
  term = losses.CONTRASTIVE_LOSSES[kind](TEMPERATURE, 0)
  pred, target = (np.repeat(draw(n), 20, axis=2) for n in (0, 1))
  step = jax.jit(jax.value_and_grad(lambda x: term(x, target, masked())))
  counted = step.lower(pred).cost_analysis()["flops"]
  paper = BATCH * term.flops(LENGTH - KEEP, pred.shape[2], BATCH)
  # The rest is elementwise: norms, exponentials.
  assert paper <= counted < 2 * paper
