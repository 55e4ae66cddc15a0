"""The probe reaches the optimum of its documented objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae_jax.evals import probes


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples four overlapping classes in features of different scales."""
  random = np.random.default_rng(seed)
  centers = np.random.default_rng(0).normal(size=(4, 12))
  labels = random.integers(0, 4, count)
  features = centers[labels] + 1.5 * random.normal(size=(count, 12))
  return features * np.geomspace(0.01, 100, 12) + 5, labels


def optimum(train, test, l2: float) -> float:
  """Minimizes multinomial logistic regression with PyTorch's L-BFGS."""
  mean, std = train[0].mean(axis=0), train[0].std(axis=0)
  x, held_out = (
    torch.from_numpy((features - mean) / std)
    for features in (train[0], test[0])
  )
  y = torch.from_numpy(train[1])
  kernel = torch.zeros(12, 4, dtype=torch.float64, requires_grad=True)
  bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
  solver = torch.optim.LBFGS(
    [kernel, bias], max_iter=500, line_search_fn="strong_wolfe"
  )

  def loss() -> torch.Tensor:
    solver.zero_grad()
    losses = torch.nn.functional.cross_entropy(
      x @ kernel + bias, y, reduction="sum"
    )
    total = losses + l2 / 2 * kernel.square().sum()
    total.backward()
    return total

  solver.step(loss)
  predicted = (held_out @ kernel + bias).argmax(dim=1).detach().numpy()
  return float(np.mean(predicted == test[1]))


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_accuracy_is_the_optimums(l2: float):
  train, test = draw(60, 1), draw(400, 2)
  got = probes.probe_accuracy(train, test, l2=l2)
  # One of the 400 may be at a decision boundary: solvers stop at 1e-4.
  assert got == pytest.approx(optimum(train, test, l2), abs=1 / 400 + 1e-9)
  assert 0.4 < got < 0.9


def test_regularization_matters():
  train, test = draw(60, 1), draw(400, 2)
  found = {probes.probe_accuracy(train, test, l2=l2) for l2 in (0.01, 1, 1000)}
  assert len(found) == 3
