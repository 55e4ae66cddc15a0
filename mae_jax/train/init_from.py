"""Loads the parameters that a new run starts from (`init_from`)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax import checkpoints, conversion
from mae_jax.config import Config, ModelConfig
from mae_jax.models import (
  architecture,
  classifiers,
  factory,
  mae,
  patchify,
  pos_embed,
  resize_patches,
  targets,
)
from mae_jax.utils import console
from mae_jax.utils.errors import ConfigError, abbreviate

_ROUNDING = 1e-6  # tolerance for sin-cos tables


def load_encoder(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  grid: tuple[int, int],
  encoder: mae.Encoder,
  config: Config | None = None,
) -> Any:
  """Loads the encoder of a pre-trained or fine-tuned checkpoint.

  Averaged parameters are preferred. Positions come from the checkpoint, or are
  the sin-cos table if it has none; they are interpolated for another grid of
  patches. A final norm is left out if the network has none.

  Args:
    path: a workdir, a checkpoint, or weights.
    like: the encoder's tree, of ShapeDtypeStructs with shardings.
    mesh: the devices.
    grid: rows and columns of patches.
    encoder: the network of the new run.
    config: settings of the new run; with `init_adapt`, patches are adapted to
      its number of channels. None not to adapt.

  Returns:
    The parameters, a tree like `like`.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or its encoder is of
      another architecture.
  """
  start = _Checkpoint(path, mesh, encoder, config, no_decoder=True)
  return _encoder(start, like, grid)


def load_classifier(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  grid: tuple[int, int],
  encoder: mae.Encoder,
  config: Config,
  class_names: Sequence[str],
) -> dict[str, Any]:
  """Loads what fine-tuning starts from.

  Args:
    path: a workdir, a checkpoint, or weights.
    like: the classifier's parameters, ShapeDtypeStructs with shardings.
    mesh: the devices.
    grid: rows and columns of patches.
    encoder: the network of the new run.
    config: settings of the new run.
    class_names: the new run's classes, in the order of labels.

  Returns:
    The encoder as in `load_encoder`; and the head and the norm before it, if
    the checkpoint was fine-tuned on the same classes with the same pooling.

  Raises:
    ConfigError: as `load_encoder`.
  """
  start = _Checkpoint(path, mesh, encoder, config, no_decoder=True)
  found = {"encoder": _encoder(start, like["encoder"], grid)}
  new = start.why_new_head(class_names)
  if not new:
    names = like.keys() - found.keys()
    params = classifiers.inference_params(start.params)
    head, wanted = ({name: of[name] for name in names} for of in (params, like))
    found |= _place(head, wanted)
    if jax.process_index() == 0:
      console.info(f"the head of {path} is kept: its classes are the same")
  elif start.is_classifier:
    _warn(f"the head of {path} is not used, and a new one starts: {new}")
  return found


def _encoder(start: "_Checkpoint", like: Any, grid: tuple[int, int]) -> Any:
  found = start.open_encoder()
  if "norm" not in like:
    found.pop("norm", None)
  elif "norm" not in found:
    raise ConfigError(
      f"the encoder of {start.path} was fine-tuned with mean pooling and has "
      "no final norm, which is needed here: start from the pre-trained one, or "
      "fine-tune with --config.classify.pooling=mean"
    )
  if "pos_embed" in like:
    found["pos_embed"] = start.positions(found, grid)
  return _place_encoder(start, found, dict(like))


def _place_encoder(start: "_Checkpoint", found: Any, like: Any) -> Any:
  start.check_channels(found, like)
  checkpoints.check_shapes(start.path, {"encoder": found}, {"encoder": like})
  return _place(found, like)


def load_autoencoder(
  path: epath.PathLike,
  like: Any,
  mesh: Mesh,
  model: mae.MaskedAutoencoder,
  config: Config,
) -> Any:
  """Loads encoder and decoder of a checkpoint.

  Args:
    path: a workdir, a checkpoint, or weights.
    like: the parameters by role, ShapeDtypeStructs with shardings.
    mesh: the devices.
    model: the network of the new run.
    config: settings of the new run; with `init_adapt`, patches are adapted to
      its number of channels.

  Returns:
    The network's parameters. What the checkpoint lacks is left out: the decoder
    of an encoder or a classifier, and roles such as a discriminator.

  Raises:
    ConfigError: if there is no checkpoint, it is damaged, or of another
      network.
  """
  start = _Checkpoint(path, mesh, model.encoder, config)
  if "decoder" not in start.params[classifiers.MODEL]:
    return _encoder_alone(start, like, model, config)
  found = dict(start.params[classifiers.MODEL])
  # Settings that differ are named before shapes are compared.
  start.check_objective(like, config)
  found["encoder"] = start.open_encoder()
  for part in (model.encoder, model.decoder):
    name = "encoder" if part is model.encoder else "decoder"
    found[name] = start.without_fixed(name, found[name], part.config.width)
  if start.new_patch is not None:
    if targets.FITTED not in start.params:
      found["decoder"] = start.adapted_prediction(found["decoder"])
    start.warn_frozen(config)
  start.check_decoder(model.decoder)
  start.warn_objective(config)
  start.check_channels(found["encoder"], like[classifiers.MODEL]["encoder"])
  found = {classifiers.MODEL: found}
  if targets.FITTED in like:
    found[targets.FITTED] = start.params[targets.FITTED]
  wanted = {role: dict(like[role]) for role in found}
  checkpoints.check_shapes(path, found, wanted)
  return _place(found, wanted)


def _encoder_alone(
  start: "_Checkpoint",
  like: Any,
  model: mae.MaskedAutoencoder,
  config: Config,
) -> Any:
  """Returns the encoder for pre-training, in a tree as `load_autoencoder`."""
  width = model.encoder.config.width
  found = start.without_fixed("encoder", start.open_encoder(), width)
  start.warn_frozen(config)
  wanted = dict(like[classifiers.MODEL]["encoder"])
  new = "decoder"
  if "norm" not in found:  # of fine-tuning with mean pooling
    del wanted["norm"]
    new = "decoder and final norm of the encoder"
  placed = _place_encoder(start, found, wanted)
  _warn(f"{start.path} has no decoder: this run starts with a new {new}")
  return {classifiers.MODEL: {"encoder": placed}}


def _place(found: Any, like: Any) -> Any:
  return jax.tree.map(
    lambda leaf, to: jax.device_put(leaf, to.sharding), found, like
  )


class _Checkpoint:
  """A checkpoint, and the run that starts from it.

  Attributes:
    path: the checkpoint.
    params: parameters by role.
    new_patch: the patches to adapt the network to; None not to adapt it.
  """

  def __init__(
    self,
    path: epath.PathLike,
    mesh: Mesh,
    encoder: mae.Encoder,
    config: Config | None,
    *,
    no_decoder: bool = False,
  ):
    overrides = (
      conversion.ModelOverrides.from_config(config)
      if config
      else conversion.NO_OVERRIDES
    )
    overrides = dataclasses.replace(
      overrides, no_decoder=no_decoder, fixed_positions=not no_decoder
    )
    self.params, run = conversion.load_any(path, mesh, overrides)
    self.path, self._before, self._now = path, run.config, config
    self._class_names = run.class_names
    self._old_encoder, self._encoder = factory.encoder(run.config), encoder
    self._patch = resize_patches.Patch(
      *self._old_encoder.patch_size, run.config.data.channels
    )
    self.new_patch = None
    if config and config.init_adapt:
      self.new_patch = resize_patches.Patch(
        *encoder.patch_size, config.data.channels
      )

  @property
  def is_classifier(self) -> bool:
    """True if the checkpoint has a head."""
    return self._before.task in classifiers.CLASSIFIERS

  def why_new_head(self, class_names: Sequence[str]) -> str:
    """Returns why the head does not fit a fine-tuning; "" if it does."""
    before, now = self._before, self._now
    assert now is not None
    old, new = tuple(self._class_names), tuple(class_names)
    if before.task != now.task:
      return f"it is of task={before.task}"
    if before.classify.pooling != now.classify.pooling:
      return (
        f"it was trained with classify.pooling={before.classify.pooling}, and "
        f"this run has {now.classify.pooling}"
      )
    if old == new:
      return ""
    if len(old) != len(new):
      return f"it has {len(old)} classes, and this run has {len(new)}"
    first = next(i for i in range(len(old)) if old[i] != new[i])
    return (
      f"its class {first} is {abbreviate(old[first])}, and that of this run "
      f"is {abbreviate(new[first])}"
    )

  def check_network(self) -> None:
    """Checks that both encoders have the same architecture.

    Patches may differ if they are adapted.
    """
    changes = architecture.diff(self._old_encoder, self._encoder)
    if self.new_patch is not None:
      changes.pop("patch_size", None)
    if changes:
      found = ", ".join(
        f"model.{name}={old}, not {new}" for name, (old, new) in changes.items()
      )
      flags = " ".join(
        _flag(f"model.{name}", old) for name, (old, _) in changes.items()
      )
      adapt = ", or --config.init_adapt=true"
      raise ConfigError(
        f"the encoder of {self.path} has {found}: set {flags}"
        + (adapt if [*changes] == ["patch_size"] else "")
      )

  def check_decoder(self, decoder: mae.Decoder) -> None:
    """Checks that both decoders have the same architecture."""
    before = self._before.model
    wrong = [
      name
      for name in architecture.DIMS
      if _decoder_dim(before, name) != getattr(decoder.config, name)
    ]
    if wrong:
      found = {f"model.decoder_{x}": _decoder_dim(before, x) for x in wrong}
      there = " ".join(f"{name}={value}" for name, value in found.items())
      here = ", ".join(str(getattr(decoder.config, name)) for name in wrong)
      raise ConfigError(
        f"the decoder of {self.path} has {there}, not {here}: set "
        + " ".join(_flag(name, value) for name, value in found.items())
      )

  def check_objective(self, like: Any, now: Config) -> None:
    """Refuses a decoder that was trained to predict something else."""
    params, before = self.params, self._before.objective
    trained = f"{self.path} was trained with objective"
    or_from_scratch = _or_from_scratch(now)
    if (targets.FITTED in params) != (targets.FITTED in like):
      raise ConfigError(
        f"{trained}.target={before.target}, and its decoder predicts something "
        f"else: set --config.objective.target={before.target}{or_from_scratch}"
      )
    token, role = "encoder_mask_token", classifiers.MODEL
    if (token in params[role]) != (token in like[role]):
      raise ConfigError(
        f"{trained}.masked_input={before.masked_input}, which has other "
        "parameters: set --config.objective.masked_input="
        f"{before.masked_input}{or_from_scratch}"
      )
    if targets.FITTED not in like:
      return
    old, size = self._patch, self._encoder.patch_size
    if old != resize_patches.Patch(
      *size, _channels(like[role]["encoder"], size)
    ):
      raise ConfigError(
        f"{trained}.target={before.target}, fitted to patches of {old.height} "
        f"x {old.width} x {old.channels}, which cannot be adapted: set "
        f"{_flag('model.patch_size', old[:2])} "
        f"{_flag('data.channels', old.channels)}{or_from_scratch}"
      )
    if before.pca_components != now.objective.pca_components:
      raise ConfigError(
        f"{trained}.pca_components={before.pca_components}, not "
        f"{now.objective.pca_components}: set "
        f"{_flag('objective.pca_components', before.pca_components)}"
        f"{or_from_scratch}"
      )

  def check_channels(self, found: Any, like: Any) -> None:
    """Checks that both encoders have equally many channels."""
    size = self._encoder.patch_size
    old, new = (_channels(tree, size) for tree in (found, like))
    if old != new:
      raise ConfigError(
        f"the encoder of {self.path} has data.channels={old}, not {new}: set "
        f"--config.data.channels={old}, with as many numbers in data.mean and "
        "data.std, or --config.init_adapt=true"
      )

  def warn_pixels(self) -> None:
    """Warns if images are prepared differently than for the checkpoint."""
    if self._now is None:
      return
    old, new = self._before.data, self._now.data
    if old.image_size != new.image_size:
      was, now = (
        math.prod(patchify.grid_size(data.image_size, encoder.patch_size))
        for data, encoder in ((old, self._old_encoder), (new, self._encoder))
      )
      _warn(
        f"{self.path} was trained with images of {_pixels(old.image_size)}, "
        f"and this run has {_pixels(new.image_size)}: {now} tokens an image "
        f"instead of {was}; if that is a mistake, set "
        f"{_flag('data.image_size', old.image_size)}"
      )
    if old.value_range not in ((), new.value_range):
      _warn(
        f"{self.path} was trained with data.value_range={old.value_range}, and "
        f"this run has {new.value_range}: if that is a mistake, set "
        f"{_flag('data.value_range', old.value_range)}"
      )
    if any(
      _per_channel(getattr(old, name), old.channels)
      != _per_channel(getattr(new, name), old.channels)
      for name in ("mean", "std")
    ):
      _warn(
        f"{self.path} was trained with pixels of mean {old.mean} and std "
        f"{old.std}, and this run has {new.mean} and {new.std}: if that is a "
        f"mistake, set {_flag('data.mean', old.mean)} "
        f"{_flag('data.std', old.std)}"
      )

  def warn_frozen(self, now: Config) -> None:
    """Warns of an encoder that is adapted and then frozen."""
    adapted = self.new_patch not in (None, self._patch)
    if adapted and now.objective.trainable == "decoder":
      _warn(
        f"the encoder of {self.path} is adapted to other patches and then not "
        "trained, because of objective.trainable='decoder': to train it, set "
        "--config.objective.trainable=all"
      )

  def warn_objective(self, now: Config) -> None:
    """Warns of a decoder of the same shape with another objective."""
    for name in ("target", "masked_input"):
      old = getattr(self._before.objective, name)
      new = getattr(now.objective, name)
      if old != new:
        _warn(
          f"{self.path} was trained with objective.{name}={old}, and this run "
          f"uses {new}: if that is a mistake, set "
          f"--config.objective.{name}={old}"
        )

  def without_fixed(self, part: str, params: Any, width: int) -> Any:
    """Removes a position table that is the sin-cos one up to rounding."""
    if "pos_embed" not in params:
      return params
    table = np.asarray(jax.device_get(params["pos_embed"]))
    fixed = self._sincos(width)
    if table.shape != fixed.shape or not np.allclose(
      table, fixed, 0, _ROUNDING
    ):
      raise ConfigError(
        f"{self.path}: its {part} has positions other than the sin-cos table, "
        "the only one that pre-training uses: fine-tune it, or convert it with "
        "--positions=sincos (python -m mae_jax convert)"
      )
    return {name: leaf for name, leaf in params.items() if name != "pos_embed"}

  def positions(self, encoder: Any, grid: tuple[int, int]) -> np.ndarray:
    """Returns the checkpoint's positions on the new grid, [1, 1 + L, D]."""
    return pos_embed.table_of(encoder, self._grid, grid)

  def open_encoder(self) -> dict[str, Any]:
    """Checks the encoder, and adapts its patch embedding to other patches."""
    self.check_network()
    self.warn_pixels()
    found = dict(classifiers.inference_params(self.params)["encoder"])
    if self.new_patch is not None:
      embed = dict(found["patch_embed"])
      embed["kernel"] = self._adapt(resize_patches.embedding, embed["kernel"])
      found["patch_embed"] = embed
    return found

  def adapted_prediction(self, decoder: Any) -> dict[str, Any]:
    """Adapts the prediction layer of a decoder to other patches."""
    pred = {
      name: self._adapt(resize_patches.prediction, values)
      for name, values in decoder["pred"].items()
    }
    return {**decoder, "pred": pred}

  def _adapt(self, resize: Any, array: jax.Array) -> Any:
    # Other processes may hold parts of the array. The first process's result
    # counts, because hosts may round differently.
    whole = np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return multihost_utils.broadcast_one_to_all(
      resize(whole, self._patch, self.new_patch)
    )

  @property
  def _grid(self) -> tuple[int, int]:
    return patchify.grid_size(
      self._before.data.image_size, self._old_encoder.patch_size
    )

  def _sincos(self, width: int) -> np.ndarray:
    table = pos_embed.sincos_2d(self._grid, width)
    return np.asarray(pos_embed.with_cls(table))


def _decoder_dim(config: ModelConfig, name: str) -> int:
  value: int = getattr(config, f"decoder_{name}")
  return value or 4 * config.decoder_width  # the default of decoder_mlp_dim


def _or_from_scratch(config: Config) -> str:
  """Returns another way out, except for a frozen encoder."""
  if config.objective.trainable == "decoder":
    return ""
  return ", or leave init_from empty to start from scratch"


def _flag(name: str, value: Any) -> str:
  """Formats a flag, without brackets that a shell would interpret."""
  several = isinstance(value, tuple)
  text = ",".join(map(str, value)) if several else str(value)
  return f"--config.{name}={text}"


def _pixels(size: tuple[int, int]) -> str:
  return "{} x {} pixels".format(*size)


def _warn(text: str) -> None:
  if jax.process_index() == 0:
    console.warn(text)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
  return tuple(values) * (channels if len(values) == 1 else 1)


def _channels(encoder: Any, patch_size: tuple[int, int]) -> int:
  """Returns the number of channels of an encoder's images."""
  rows: int = encoder["patch_embed"]["kernel"].shape[0]
  return rows // math.prod(patch_size)
