"""Pre-training objectives: the reconstruction loss, with a GAN loss or without.

An objective initializes parameters by role, has an optimizer for each trained
role, and computes the loss of a batch. The train step is the same for all.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mae_jax.config import Config
from mae_jax.models import (
  discriminator,
  factory,
  flops,
  losses,
  mae,
  masking,
  patchify,
)
from mae_jax.train import optim
from mae_jax.train.step import RoleOptimizer

ROLE = "model"  # the network's parameters in the state
DISCRIMINATOR = discriminator.ROLE

Metrics = dict[str, jax.Array]


class Reconstruction:
  """The reconstruction loss of a masked autoencoder.

  Attributes:
    optimizers: optimizers of the trained roles, the network's first.
  """

  def __init__(self, config: Config, model: mae.MaskedAutoencoder):
    """Stores the network.

    Raises:
      ConfigError: if a setting cannot work.
    """
    self._frozen = FROZEN[config.objective.trainable]
    self._batch_size = config.data.batch_size
    self._model = model
    self._shape = (*config.data.image_size, config.data.channels)
    self.optimizers = {
      ROLE: RoleOptimizer(optim.adamw(config.optim, frozen=self._frozen))
    }

  def set_total_steps(self, total_steps: int) -> None:
    """Sets the length of training, on which a schedule may depend."""

  def init(self, key: Callable[[str], jax.Array]) -> dict[str, Any]:
    """Initializes parameters by role; `key` makes a key for each name."""
    keys = {"params": key("init"), "mask": key("mask")}
    variables: Any = self._model.init(keys, jnp.zeros((1, *self._shape)))
    return {ROLE: variables.pop("params"), **variables}

  def loss(
    self,
    model: mae.MaskedAutoencoder,
    params: Mapping[str, Any],
    images: jax.Array,
    noise: Any,
    step: jax.Array,
  ) -> tuple[jax.Array, Metrics]:
    """Computes the mean loss of images [B, H, W, C], and metrics."""
    del step
    out = self._forward(model, params, images, noise)
    return out.loss, {f"loss_{name}": x for name, x in out.parts.items()}

  def flops(self, model: mae.MaskedAutoencoder, channels: int) -> int:
    """Counts flops of a train step on one image."""
    total = flops.train_step(model, channels)
    if self._frozen:  # the backward pass is two thirds
      total -= 2 * flops.masked_encoder(model, channels)
    length = math.prod(model.decoder.grid)
    for _, _, term in model.auxiliary_losses:
      hidden = length - masking.num_kept(length, model.mask_ratio)
      width = model.decoder.target_dim
      total += term.flops(hidden, width, self._batch_size)
    return total

  def _forward(
    self,
    model: mae.MaskedAutoencoder,
    params: Mapping[str, Any],
    images: jax.Array,
    noise: Any,
  ) -> mae.MaeOutput:
    variables = mae.apply_variables(params)
    held = {
      name: jax.lax.stop_gradient(part) if name in self._frozen else part
      for name, part in variables["params"].items()
    }
    out: Any = model.apply(variables | {"params": held}, images, noise)
    return out


# Modules that are frozen, by `objective.trainable`.
FROZEN: dict[str, tuple[str, ...]] = {
  "all": (),
  "decoder": ("encoder", "encoder_mask_token"),
}

# GAN losses: the discriminator's, of scores of real and fake images, and the
# generator's, of scores of fake images. Hinge: Lim and Ye 2017, arXiv
# 1705.02894; non-saturating: Goodfellow et al. 2014, arXiv 1406.2661.
Scores = Callable[[jax.Array, jax.Array], jax.Array]
GAN_LOSSES: dict[str, tuple[Scores, Callable[[jax.Array], jax.Array]]] = {
  "hinge": (
    lambda real, fake: (
      jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()
    ),
    lambda fake: -fake.mean(),
  ),
  "non_saturating": (
    lambda real, fake: (
      jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()
    ),
    lambda fake: jax.nn.softplus(-fake).mean(),
  ),
}


class Adversarial(Reconstruction):
  """Reconstruction with a discriminator, trained in the same step.

  Real images are the inputs; fake images have masked patches as the network
  reconstructs them. The generator loss is added to the reconstruction loss with
  a weight that rises during training. The discriminator loss has an R1 penalty
  on real images (Mescheder et al. 2018, arXiv 1801.04406).
  """

  def __init__(self, config: Config, model: mae.MaskedAutoencoder):
    """Builds the discriminator; see `Reconstruction`."""
    super().__init__(config, model)
    settings = config.discriminator
    self._settings = settings
    self._gan_losses = GAN_LOSSES[settings.loss]
    self._discriminator = factory.build_discriminator(config)
    assert config.optim.lr is not None  # config_dict has filled it in
    self.optimizers[DISCRIMINATOR] = RoleOptimizer(
      optax.scale_by_adam(b1=settings.b1, b2=settings.b2),
      settings.lr / config.optim.lr if config.optim.lr else 0.0,
    )

  def set_total_steps(self, total_steps: int) -> None:
    """Sets the steps in which the weight of the generator loss rises."""
    begin, full = (share * total_steps for share in self._settings.ramp)
    self._ramp = optax.linear_schedule(
      0.0, self._settings.weight, max(round(full - begin), 1), round(begin)
    )

  def init(self, key: Callable[[str], jax.Array]) -> dict[str, Any]:
    """Initializes the parameters of network and discriminator."""
    images = jnp.zeros((1, *self._shape))
    variables = self._discriminator.init(key(DISCRIMINATOR), images)
    return super().init(key) | {DISCRIMINATOR: variables["params"]}

  def loss(
    self,
    model: mae.MaskedAutoencoder,
    params: Mapping[str, Any],
    images: jax.Array,
    noise: Any,
    step: jax.Array,
  ) -> tuple[jax.Array, Metrics]:
    """Sums both losses; each role gets the gradient of its own loss alone."""
    out = self._forward(model, params, images, noise)
    fake_images = generated_image(model, params, images, out)
    discriminator_params = params[DISCRIMINATOR]
    fixed = jax.lax.stop_gradient(discriminator_params)
    weight = self._ramp(step)
    real_fake_loss, fake_loss = self._gan_losses
    generator_loss = fake_loss(self._score(fixed, fake_images))
    real = self._score(discriminator_params, images)
    fake = self._score(discriminator_params, jax.lax.stop_gradient(fake_images))
    discriminator_loss = real_fake_loss(real, fake)
    penalty = jnp.zeros(())
    if self._settings.gradient_penalty:
      penalty = self._settings.gradient_penalty * gradient_penalty(
        lambda x: self._score(discriminator_params, x), images
      )
    loss = out.loss + weight * generator_loss
    return loss + discriminator_loss + penalty, {
      "loss": loss,  # the network's own
      "loss_reconstruction": out.loss,
      **{f"loss_{name}": x for name, x in out.parts.items()},
      "loss_generator": generator_loss,
      "loss_discriminator": discriminator_loss,
      "gradient_penalty": penalty,
      "score_real": real.mean(),
      "score_fake": fake.mean(),
      "generator_weight": weight,
    }

  def flops(self, model: mae.MaskedAutoencoder, channels: int) -> int:
    """Counts flops of a train step on one image.

    The two forward passes, their backward passes and the gradient by the fake
    images cost seven forward passes; the gradient penalty costs four more.
    """
    forward = discriminator.forward_flops(
      self._discriminator, (self._shape[0], self._shape[1]), channels
    )
    times = 11 if self._settings.gradient_penalty else 7
    return super().flops(model, channels) + times * forward

  def _score(self, params: Any, images: jax.Array) -> jax.Array:
    scores: Any = self._discriminator.apply({"params": params}, images)
    return scores


def generated_image(
  model: mae.MaskedAutoencoder,
  params: Mapping[str, Any],
  images: jax.Array,
  out: mae.MaeOutput,
) -> jax.Array:
  """Returns images [B, H, W, C] with masked patches as predicted.

  Predictions of normalized patches get the true mean and deviation: the
  discriminator judges structure, which is all that the network predicts.
  """
  patch_size = model.encoder.patch_size
  true = patchify.patchify(images, patch_size)  # [B, L, P]
  variables = mae.apply_variables(params)
  pred: Any = model.apply(variables, out.pred, method="to_patches")
  if model.target.normalized:
    mean, std = losses.patch_statistics(true)
    pred = pred * std + mean
  mask = out.mask if out.mask.ndim == 3 else out.mask[:, :, None]
  size = images.shape[1], images.shape[2]
  return patchify.unpatchify(jnp.where(mask > 0, pred, true), patch_size, size)


def gradient_penalty(
  score: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
  """Computes R1: half the mean squared gradient of the scores at images.

  The derivative of |g|^2 / 2, where g is the gradient, equals the derivative of
  the scores' change along a constant g. So no backward pass is differentiated
  again, which takes ten times as long with XLA's convolutions on CPU.

  Args:
    score: maps [B, H, W, C] to [B, S]; the scores of an image depend on that
      image alone, and are averaged.
    images: [B, H, W, C]; the penalty has no gradient for them.

  Returns:
    A float32 scalar.
  """

  def mean(x: jax.Array) -> jax.Array:
    return score(x).mean(axis=1)  # [B]

  images = jax.lax.stop_gradient(images)
  grads = jax.lax.stop_gradient(jax.grad(lambda x: mean(x).sum())(images))
  _, along = jax.jvp(mean, (images,), (grads,))  # [B], |g|^2 of each image
  total = along.mean()
  return total - 0.5 * jax.lax.stop_gradient(total)


# Objectives by `discriminator.type`.
OBJECTIVES: dict[str, type[Reconstruction]] = {
  "none": Reconstruction,
  **dict.fromkeys(discriminator.DISCRIMINATORS, Adversarial),
}
