"""Flops from formulas equal those of the program.

They equal those of its matrix products exactly, and XLA's count within a tenth.
XLA also counts elementwise operations, above all GELU, whose share falls with
the width. A large width is cheap here, because nothing runs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from mae_jax.config import ClassifyConfig
from mae_jax.models import factory, flops, vit
from tests.helpers import tiny

BATCH = 4


def program(unroll: int):
  """Returns the model, its loss and the shapes of the loss's arguments."""
  config = tiny.config(
    data={
      "image_size": (16, 24),
      "channels": 3,
      "mean": (0.5,) * 3,
      "std": (0.5,) * 3,
    },
    model={
      "patch_size": (4, 4),
      "width": 256,
      "heads": 2,
      "mlp_dim": 1024,
      "decoder_width": 192,
      "decoder_depth": 2,
      "decoder_heads": 1,
      "decoder_mlp_dim": 768,
      "unroll": unroll,
    },
  )
  model, params = factory.masked_autoencoder(config), tiny.shapes(config)

  def loss(params, images, noise):
    return model.apply({"params": params}, images, noise).loss

  shapes = params, jnp.zeros((BATCH, 16, 24, 3)), jnp.zeros((BATCH, 24))
  return model, loss, shapes


def products(jaxpr) -> int:
  """Counts two flops per multiply-add of matrix products, including loops."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
    times = equation.params.get("length", 1)
    for inner in core.jaxprs_in_params(equation.params):
      total += times * products(inner)
  return total


def test_forward_flops_are_those_of_the_products():
  model, loss, shapes = program(unroll=1)
  jaxpr = jax.make_jaxpr(loss)(*shapes).jaxpr
  assert flops.train_step(model, 3) * BATCH == 3 * products(jaxpr)


@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_the_compilers(backward: bool):
  model, loss, shapes = program(unroll=2)  # a loop's body is counted once
  function = jax.value_and_grad(loss) if backward else loss
  counted = jax.jit(function).lower(*shapes).cost_analysis()["flops"]
  paper = flops.train_step(model, 3) * BATCH / (1 if backward else 3)
  print(f"{backward=}: XLA {counted:.4g}, on paper {paper:.4g}")
  assert paper < counted
  assert paper == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("trained", ["all", "1 blocks", "head"])
def test_flops_of_fine_tuning_are_those_of_the_products(trained: str):
  """Except for a few: the lowest layer has no gradient of its input."""
  classify = ClassifyConfig(trainable=trained)
  config = tiny.config(
    model={"width": 64, "mlp_dim": 256, "depth": 2}, classify=classify
  )
  model = factory.classifier(config, 10)
  images = jnp.zeros((BATCH, 8, 8, 1))
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

  def loss(params):
    params = jax.tree.map(
      lambda changes, p: jnp.where(changes, p, jax.lax.stop_gradient(p)),
      vit.trainable_mask(params, trained),
      params,
    )
    return model.apply({"params": params}, images).sum()

  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr
  on_paper = BATCH * flops.classifier_step(model, (4, 4), 1)
  assert on_paper == pytest.approx(products(jaxpr), rel=0.15)
