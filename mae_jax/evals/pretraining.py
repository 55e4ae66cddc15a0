"""Evaluation of a pre-trained model: held-out loss, probes and pictures."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.config import Config, EvalConfig, lookup
from mae_jax.data import image_io, sources
from mae_jax.data.bad_images import BadImages
from mae_jax.distributed import sharding
from mae_jax.evals import extract, probes, reconstruction, results
from mae_jax.models import mae, patchify
from mae_jax.utils import rng


class Evaluation:
  """An evaluation of parameters on the run's own data.

  Attributes:
    unavailable: measures that the data do not allow, and the reason; "" if they
      allow all.
  """

  def __init__(
    self,
    config: Config,
    mesh: Mesh,
    model: mae.MaskedAutoencoder,
    train_source: sources.Source,
    eval_source: sources.Source | None,
    unreadable: BadImages | None = None,
  ):
    """Stores the model and the images.

    Args:
      config: the run's settings.
      mesh: the devices.
      model: the network.
      train_source: training images of the probes.
      eval_source: held-out images; without them there are only pictures.
      unreadable: collects the names of images that cannot be read. They count
        only in `eval_unreadable`.
    """
    self._config, self._mesh, self._model = config, mesh, model
    self._train_source, self._eval_source = train_source, eval_source
    self._unreadable = unreadable
    self.unavailable = unavailable(config, train_source, eval_source)
    self._represent = representations(config, mesh, model.encoder)

  def __call__(self, params: Mapping[str, Any]) -> results.Report:
    """Computes held-out loss, probes of the frozen features, and pictures."""
    config, variables = self._config, mae.apply_variables(params)
    scalars: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    text = ""
    if config.eval.images:
      source = self._eval_source or self._train_source
      sheet = self._reconstructions(variables, source)
      pictures |= {} if sheet is None else {"reconstructions": sheet}
    if self._eval_source is not None:
      test, labels, unreadable = self._extract(
        variables, self._held_out, self._eval_source, config.data.batch_size
      )
      if unreadable:
        scalars["eval_unreadable"] = float(unreadable)
      loss = test.pop("loss")
      if len(loss):
        scalars["eval_loss"] = float(loss.mean(dtype=np.float64))
      if not self.unavailable and len(loss):
        train, train_labels, _ = self._extract(
          variables["params"]["encoder"],
          self._represent,
          self._train_source,
          config.data.batch_size,
          limit=config.eval.max_train,
        )
        text, found = probe_table(
          probes.Split(train, train_labels),
          probes.Split(test, labels),
          config.eval,
        )
        scalars |= found
    return results.Report(scalars, pictures, text)

  def _extract(
    self, params: Any, apply: Callable, source: Any, size: int, limit: int = 0
  ) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    return extract.extract_source(
      lambda params, batch: apply(params, batch["image"]),
      params,
      source,
      self._config.data,
      mesh=self._mesh,
      batch_size=size,
      limit=limit,
      unreadable=self._unreadable,
    )

  def _normalize(self, pixels: jax.Array) -> jax.Array:
    data = self._config.data
    return patchify.normalize(pixels, data.mean, data.std)

  def _predict(self, variables: Any, x: jax.Array) -> mae.MaeOutput:
    # The same masks at every evaluation, so that losses are comparable. Row r
    # of a batch has the same mask in every batch.
    noise = {"mask": rng.key(self._config.train.seed, "eval_mask")}
    out: Any = self._model.apply(variables, x, rngs=noise)
    return out

  @functools.cached_property
  def _held_out(self) -> Callable:
    """Returns features and each image's reconstruction loss [B]."""

    def apply(variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
      def one_loss(*arrays: jax.Array) -> Any:
        batch_of_one = (array[None] for array in arrays)
        return self._model.apply(
          variables, *batch_of_one, method="forward_loss"
        )

      x = self._normalize(pixels)
      out = self._predict(variables, x)
      loss = {"loss": jax.vmap(one_loss)(x, out.pred, out.mask)}
      return self._represent(variables["params"]["encoder"], pixels) | loss

    return jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

  @functools.cached_property
  def _pictures(self) -> Callable:
    """Returns images, predicted patches and masks for uint8 images."""

    def apply(variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
      out = self._predict(variables, self._normalize(pixels))
      pred: Any = self._model.apply(variables, out.pred, method="to_patches")
      return {"images": pixels, "pred": pred, "mask": out.mask}

    return jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

  def _reconstructions(self, variables: Any, source: Any) -> np.ndarray | None:
    count, devices = self._config.eval.images, self._mesh.size
    size = -(-count // devices) * devices
    arrays, labels, _ = self._extract(
      variables, self._pictures, source, size, count
    )
    if not len(labels):
      return None
    painted = reconstruction.to_images(
      arrays["images"],
      arrays["pred"],
      arrays["mask"],
      patch_size=self._model.encoder.patch_size,
      mean=self._config.data.mean,
      std=self._config.data.std,
      normalized=self._model.target.normalized,
    )
    return reconstruction.sheet(image_io.to_bytes(arrays["images"]), painted)


def representations(
  config: Config, mesh: Mesh, encoder: mae.Encoder
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """Returns a function that computes the inputs of the probes.

  Args:
    config: gives mean and std of pixels, `eval.pooling` and `eval.raw_pixels`.
    mesh: the devices.
    encoder: the network.

  Returns:
    A jitted function from the encoder's parameters and uint8 images [B, H, W,
    C] to named representations [B, D], replicated on all devices.
  """
  data, pooling = config.data, config.eval.pooling
  pool = lookup(mae.POOLINGS, pooling, "eval.pooling")

  def apply(params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
    x = patchify.normalize(pixels, data.mean, data.std)
    tokens: Any = encoder.apply({"params": params}, x)
    out = {"MAE": pool(tokens)}
    if config.eval.raw_pixels:
      out["raw pixels"] = x.reshape(x.shape[0], -1)
    return out

  return jax.jit(apply, out_shardings=sharding.replicated(mesh))


def probe_table(
  train: probes.Split, test: probes.Split, config: EvalConfig
) -> tuple[str, dict[str, float]]:
  """Evaluates probes; returns a table and metrics."""
  if len(np.unique(train.labels)) < 2:
    return (
      f"no probes: all {len(train.labels)} training images "
      f"(eval.max_train={config.max_train}) are of one class"
    ), {}
  accuracies = probes.evaluate_probes(train, test, config)
  found = probes.scalars(accuracies)
  text = probes.table(accuracies)
  guess = results.percent([results.guess(test.labels)])
  text += f"\n{results.GUESS:<28}{guess:>18}"
  if why := results.doubt(test.labels, len(np.unique(train.labels))):
    text += f"\nwarning: {why}"
  return text, {f"eval_{key}": each for key, each in found.items()}


def metrics(
  config: Config,
  train_source: sources.Source,
  eval_source: sources.Source | None,
) -> tuple[str, ...]:
  """Names the metrics of an `Evaluation` that are better or worse."""
  if eval_source is None:
    return ()
  names = ["eval_loss"]
  if not unavailable(config, train_source, eval_source):
    features = ("MAE", *["raw pixels"] * config.eval.raw_pixels)
    names += [
      f"eval_{kind}_{shots or 'all'}/{name}"
      for kind in probes.TITLES
      for shots in config.eval.shots
      for name in features
    ]
  return tuple(names)


def unavailable(
  config: Config,
  train_source: sources.Source,
  eval_source: sources.Source | None,
) -> str:
  """Returns the measures an `Evaluation` cannot make, and why; "" for none."""
  data = config.data
  if eval_source is None:
    why = "there are no held-out images" + (
      f": data.source={data.source!r} found none"
      if data.eval_split
      else ": data.eval_split is empty"
    )
    return f"no held-out loss and no probes: {why}"
  for part, source in (("training", train_source), ("held-out", eval_source)):
    if not source.class_names:
      return f"no probes: the {part} images have no labels"
    if len(source.class_names) < 2:
      return f"no probes: all images are of one class, {source.class_names[0]}"
  return "" if config.eval.shots else "no probes: eval.shots is empty"
