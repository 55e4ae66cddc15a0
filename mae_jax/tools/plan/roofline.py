"""Estimates a lower bound of the step time: a roofline.

Compute, main memory and interconnect are assumed to run at their documented
speed and at the same time, so that a step lasts as long as the slowest one.
Real steps are longer; the bound serves to compare settings.
"""

import dataclasses

from mae_jax.tools.plan import compile_step, hlo_costs, topology
from mae_jax.utils import hardware


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A roofline of a step.

  Attributes:
    compute: seconds of matrix products.
    memory: seconds of HBM traffic.
    interconnect: seconds of collectives.
    images_per_second: throughput of all devices.
    mfu: the model's flops as a share of the devices' peak.
    days: time of the recipe, without evaluation and start-up.
  """

  compute: float
  memory: float
  interconnect: float
  images_per_second: float
  mfu: float
  days: float

  @property
  def step(self) -> float:
    """Lower bound of the step time in seconds."""
    return max(self.compute, self.memory, self.interconnect)

  @property
  def bound(self) -> str:
    """The slowest of the three parts."""
    parts = {
      "compute": self.compute,
      "HBM": self.memory,
      "interconnect": self.interconnect,
    }
    return max(parts, key=lambda name: parts[name])


def estimate(measured: compile_step.CompiledStep) -> Estimate | None:
  """Computes the roofline of a compiled step; None if costs are unknown."""
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
  """Returns the bytes a second that a device sends in a collective.

  In a torus, a group of some devices is assumed to lie along one dimension, and
  a group of all devices to use every link.
  """
  if not chip.torus:
    beyond = each.span > topology.GPUS_PER_HOST
    return chip.network_bandwidth if beyond else chip.send_bandwidth
  return chip.send_bandwidth / (1 if each.group == devices else chip.torus)
