"""How fast a compiled run can be at most: a roofline.

Compute, main memory and interconnect are taken to work at their documented
speed and at the same time, so that a step lasts as long as the slowest of them.
Real steps are longer: it is a bound, and a way to compare.
"""

from __future__ import annotations

import dataclasses

from mae_jax.tools.plan import compile_step, hlo_costs, topology
from mae_jax.utils import hardware


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of a step, and of what follows from it.

  Attributes:
    compute: seconds of matrix products.
    memory: seconds of HBM traffic.
    interconnect: seconds of sending.
    images_per_second: of all devices.
    mfu: share of the devices' peak that the model's own flops are.
    days: of the recipe, without evaluation and start-up.
  """

  compute: float
  memory: float
  interconnect: float
  images_per_second: float
  mfu: float
  days: float

  @property
  def step(self) -> float:
    """Seconds, at least."""
    return max(self.compute, self.memory, self.interconnect)

  @property
  def bound(self) -> str:
    """What the step waits for."""
    parts = {
      "compute": self.compute,
      "HBM": self.memory,
      "interconnect": self.interconnect,
    }
    return max(parts, key=lambda name: parts[name])


def estimate(measured: compile_step.CompiledStep) -> Estimate | None:
  """The roofline of a compiled run; None if its costs are not known."""
  if measured.costs is None:
    return None
  planned, chip, found = measured.planned, measured.chip, measured.costs
  devices = planned.mesh.size
  compute = found.flops / chip.flops
  memory = found.hbm_bytes / chip.hbm_bandwidth
  interconnect = sum(
    each.times * each.sent / _bandwidth(chip, each, devices)
    for each in found.collectives
  )
  step = max(compute, memory, interconnect)
  rate = planned.config.data.batch_size / step
  return Estimate(
    compute,
    memory,
    interconnect,
    images_per_second=rate,
    mfu=rate * planned.task.flops_per_image / (devices * chip.flops),
    days=planned.task.total_steps * step / 86400,
  )


def _bandwidth(
  chip: hardware.Chip, each: hlo_costs.Collective, devices: int
) -> float:
  """Bytes a second that a device sends in an exchange.

  In a torus a group of some devices is taken to lie along one dimension, and
  one of all devices to use every link.
  """
  if not chip.torus:
    beyond = each.span > topology.GPUS_PER_HOST
    return chip.network_bandwidth if beyond else chip.send_bandwidth
  return chip.send_bandwidth / (1 if each.group == devices else chip.torus)
