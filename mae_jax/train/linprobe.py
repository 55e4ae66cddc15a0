"""Linear probe: a linear layer on features of an encoder that stays as it is.

The protocol of the paper: cropped and flipped images, BatchNorm without scale
and shift before the layer, LARS without decay (He et al. 2021, table 10).
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from mae_jax import config as config_lib
from mae_jax import interrupts, sharding
from mae_jax.models import classifiers
from mae_jax.steps import linprobe as steps
from mae_jax.steps import program as program_lib
from mae_jax.train import loop, task


class LinearProbe(task.Labelled):
  """The task as `loop.run` drives it."""

  classifier: classifiers.Probe

  def __init__(self, config: config_lib.Config, mesh: Mesh):
    """Builds everything that can fail for a wrong setting.

    Raises:
      ConfigError: on any setting that cannot work, or data without labels.
    """
    steps.check(config)
    super().__init__(config, mesh)

  def seeded(self, seed: jax.Array | int) -> program_lib.Program:
    """As in `task.Labelled`."""
    return steps.program(self._config, self.classifier, self.lr_fn, seed)


def run(
  config: config_lib.Config, workdir: str, stop: interrupts.Interrupts
) -> None:
  """Probes, or goes on where an earlier run in `workdir` stopped."""
  mesh = sharding.make_mesh(config.mesh)
  loop.run(LinearProbe(config, mesh), config, mesh, workdir, stop)
