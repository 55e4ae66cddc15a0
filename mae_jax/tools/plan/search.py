"""Searches for the fastest settings that fit.

Gradient accumulation only costs time, so it is tried if memory is too small.
Rematerialization costs products and saves memory and its traffic, so every
policy is tried.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from mae_jax.config import Config
from mae_jax.models import transformer
from mae_jax.tools.plan import compile_step, roofline

REMAT = tuple(transformer.REMAT_POLICIES)

Measure = Callable[[Config], compile_step.CompiledStep]


def candidates(devices: int) -> list[int]:
  """Lists sizes of `mesh.fsdp` to try: powers of four, and all devices."""
  powers = [4**n for n in range(devices.bit_length()) if devices % 4**n == 0]
  return sorted({*powers, devices})


def search(
  config: Config, devices: int, measured: Measure, batches: Sequence[int] = ()
) -> Iterator[compile_step.CompiledStep]:
  """Compiles one setting after the other, and yields each result.

  `batches` are sizes of the global batch to try, () for the recipe's.
  """
  for batch in batches or (config.data.batch_size,):
    for fsdp in candidates(devices):
      for remat in REMAT:
        changed = _changed(config, batch, fsdp, remat)
        yield from _fit(changed, devices, measured)


def best(
  found: Sequence[compile_step.CompiledStep],
) -> compile_step.CompiledStep | None:
  """Returns the fastest step that fits; None if none does."""
  rates = [
    (known.images_per_second, -each.memory.peak, number)
    for number, each in enumerate(found)
    if each.fits and (known := roofline.estimate(each))
  ]
  return found[max(rates)[-1]] if rates else None


def why_none(found: Sequence[compile_step.CompiledStep], slice_: str) -> str:
  """Explains why no setting fits, with the way out."""
  if any(each.fits for each in found):
    return (
      "what fits cannot be compared, as the compiled programs cannot be read: "
      "take a line above that is not too much"
    )
  return (
    f"nothing of this fits {slice_}: take more chips, chips with more memory, "
    "or a smaller data.batch_size"
  )


def _fit(
  config: Config, devices: int, measured: Measure
) -> Iterator[compile_step.CompiledStep]:
  """Yields growing accumulation, up to the smallest that fits."""
  share = config.data.batch_size // devices
  accum = 1
  # InfoNCE over the batch needs the batch in one part.
  most = 1 if config.objective.contrast == "batch" else share
  while accum <= most and share % accum == 0:
    optim = dataclasses.replace(config.optim, accum_steps=accum)
    result = measured(dataclasses.replace(config, optim=optim))
    yield result
    if result.fits:
      break
    accum *= 2


def _changed(config: Config, batch: int, fsdp: int, remat: str) -> Config:
  lr = config.optim.lr
  assert lr is not None  # config_dict has filled it in.
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, batch_size=batch),
    mesh=dataclasses.replace(config.mesh, fsdp=fsdp),
    model=dataclasses.replace(config.model, remat=remat),
    # The learning rate follows the batch; it does not change speed.
    optim=dataclasses.replace(
      config.optim, lr=lr * batch / config.data.batch_size
    ),
  )
