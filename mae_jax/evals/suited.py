"""A checkpoint that is to be measured by the settings of another config.

What its network is and how images are shown to it are facts of the checkpoint,
and a config that says otherwise is refused. How images are found and how things
are computed is the config's to say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath
from jax.sharding import Mesh

from mae_jax import config as config_lib
from mae_jax import dialects, storage
from mae_jax.evals import restored
from mae_jax.models import build, classifiers, mae

# What an encoder is. Other settings of models say how they are computed, or
# what a decoder is, which has no part in what is measured.
_ARCHITECTURE = (
  "variant",
  "width",
  "depth",
  "heads",
  "mlp_dim",
  "patch_size",
  "norm_eps",
  "activation",
)
_SHOWN = ("data.image_size", "data.channels", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class Suited:
  """A checkpoint that the config does not contradict.

  Attributes:
    step: its directory.
    found: what it holds.
    config: of its run, with data, evaluation and computation of the given one.
    platform: of the devices.
  """

  step: epath.Path
  found: restored.Restored
  config: config_lib.Config
  platform: str

  @property
  def facts(self) -> dict[str, Any]:
    """Which one it is, for other programs."""
    return {
      "checkpoint": str(self.step),
      "checkpoint_task": self.found.run.config.task,
    }

  @property
  def encoder(self) -> mae.Encoder:
    """As in `found`, computed as the config says."""
    return build.computed(self.found.encoder, self.config, self.platform)

  @property
  def classifier(self) -> classifiers.Classifier:
    """Likewise."""
    make = classifiers.CLASSIFIERS[self.found.run.config.task]
    return make(self.config, len(self.found.run.class_names), self.platform)


def locate(config: config_lib.Config) -> epath.Path:
  """The directory of the checkpoint `init_from`.

  Raises:
    ConfigError: if there is none.
  """
  if not config.init_from:
    raise config_lib.ConfigError(
      "init_from is empty: set --config.init_from=CHECKPOINT, a workdir or one "
      "of its checkpoints/<step>, to say what is evaluated"
    )
  with storage.reaching(config.init_from):
    return dialects.locate(config.init_from)


def load(config: config_lib.Config, mesh: Mesh, *, head: bool) -> Suited:
  """Reads the checkpoint `init_from`.

  Args:
    config: how it is to be measured.
    mesh: the devices.
    head: whether a head is needed.

  Raises:
    ConfigError: if there is no such checkpoint, or the config contradicts it.
  """
  read = restored.load_classifier if head else restored.load
  # Of a run that goes on, the second reading might find another.
  step = locate(config)
  with storage.reaching(config.init_from):
    found = read(step, mesh, dialects.Hints.of_config(config))
  platform = mesh.devices.flat[0].platform
  before = found.run.config
  settings = [*_SHOWN, *(("classify.pooling",) if head else ())]
  if _dimensions(build.encoder(config, platform)) != _dimensions(found.encoder):
    settings += [f"model.{name}" for name in _ARCHITECTURE]
  old, new = dict(config_lib.leaves(before)), dict(config_lib.leaves(config))
  wrong = [
    f"{name} is {config_lib.shown(new[name])}, was {old[name]!r}"
    for name in settings
    if new[name] != old[name]
  ]
  if wrong:
    raise config_lib.ConfigError(
      f"the checkpoint {step} was trained with other settings: "
      f"{'; '.join(wrong)}. Set each to what it was, or name another checkpoint"
    )
  model = dataclasses.replace(
    before.model,
    dtype=config.model.dtype,
    remat=config.model.remat,
    unroll=config.model.unroll,
    attention_mb=config.model.attention_mb,
  )
  merged = dataclasses.replace(
    before, data=config.data, model=model, eval=config.eval
  )
  return Suited(step, found, merged, platform)


def _dimensions(encoder: mae.Encoder) -> tuple[Any, ...]:
  return tuple(
    getattr(encoder, name) for name in _ARCHITECTURE if name != "variant"
  )
