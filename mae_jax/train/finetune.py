"""Fine-tuning: the encoder, or its last blocks, with a head on labels."""

from __future__ import annotations

import jax

from mae_jax import config as config_lib
from mae_jax import interrupts, sharding
from mae_jax.models import classifiers
from mae_jax.steps import finetune as steps
from mae_jax.steps import program as program_lib
from mae_jax.train import loop, task


class Finetuning(task.Labelled):
  """The task as `loop.run` drives it."""

  classifier: classifiers.FineTuned

  def seeded(self, seed: jax.Array | int) -> program_lib.Program:
    """As in `task.Labelled`."""
    return steps.program(self._config, self.classifier, self.lr_fn, seed)


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Fine-tunes, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  loop.run(Finetuning(config, mesh), config, mesh, workdir, stop)
