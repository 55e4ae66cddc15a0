"""Masked pre-training as a task: data, evaluation and run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from mae_jax import checkpoints, dialects, interrupts, sharding
from mae_jax import config as config_lib
from mae_jax.evals import pretraining
from mae_jax.models import build, targets
from mae_jax.steps import objectives
from mae_jax.steps import pretrain as steps
from mae_jax.train import fitting, initial, loop, task


class Pretraining(task.Images):
  """The task as `loop.run` drives it."""

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work.
    """
    platform = mesh.devices.flat[0].platform
    self._model = build.masked_autoencoder(config, platform)
    # For what it refuses: it may be minutes before data are open.
    steps.program(config, self._model, lambda step: 0.0, total_steps=1)
    super().__init__(config, mesh)
    program = steps.program(config, self._model, self.lr_fn, self.total_steps)
    self.init, self.train_step = program.init, program.train_step
    self.flops_per_image = program.flops_per_image
    self.evaluate = pretraining.Evaluation(
      config,
      mesh,
      self._model,
      self.train_source,
      self.eval_source,
      self.unreadable,
    )

  def fit(self, state: checkpoints.TrainState) -> checkpoints.TrainState:
    """See `loop.Task`: what the target learns.

    Raises:
      ConfigError: if what is not trained would stay as it was drawn.
    """
    if objectives.FROZEN[self._config.objective.trained]:
      raise config_lib.ConfigError(
        f"objective.trained={self._config.objective.trained!r} leaves the "
        "encoder as it starts, which here is at random: set init_from to a "
        "checkpoint of pre-training"
      )
    target = self._model.target
    if not isinstance(target, targets.Fitted):
      return state
    before = state.params[targets.FITTED]
    found = fitting.fit(
      self._config,
      self._mesh,
      target,
      self._model.encoder.patch_size,
      self.train_batches(0),
    )
    after = jax.tree.map(
      lambda old, new: jax.device_put(new, old.sharding),
      before,
      {"target": found},
    )
    params = state.params | {targets.FITTED: after}
    return dataclasses.replace(state, params=params)

  def load(self, path: str, like: Any) -> Any:
    """The network of another pre-training run; an opponent is drawn."""
    hints = dialects.Hints.of_config(self._config)
    found = initial.load_autoencoder(
      path,
      like,
      self._mesh,
      self._model,
      hints,
      self._config.objective,
      channels=initial.adapted_to(self._config),
    )
    others = {role: like[role] for role in like if role not in found}
    drawn = jax.jit(
      lambda: {role: self.init().params[role] for role in others},
      out_shardings=jax.tree.map(lambda x: x.sharding, others),
    )()
    return found | drawn


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Pre-trains, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  pretraining_task = Pretraining(config, mesh)
  left_out = pretraining_task.evaluate.left_out
  if left_out and jax.process_index() == 0:
    print(left_out, flush=True)
  loop.run(pretraining_task, config, mesh, workdir, stop)
