"""Source and license of a network's weights, traced over its runs.

A run that starts from other weights, directly or over several runs, keeps their
license. It is unknown if the first weights cannot be traced.
"""

import pathlib

from mae_jax import checkpoints
from mae_jax.conversion import facebook, hub, load, model_card, run_config
from mae_jax.utils.errors import ConfigError


def trace(run: checkpoints.CheckpointMetadata) -> dict[str, str]:
  """Traces a network's weights to where they come from.

  Args:
    run: the run that saved them.

  Returns:
    "source": `model_card.SCRATCH`, an address, or "" if it is unknown; and
    "license": an identifier or `model_card.UNKNOWN`, missing for weights that
    were trained here from scratch.
  """
  if known := run_config.provenance(run):
    return known
  unknown = {"source": "", "license": model_card.UNKNOWN}
  if run.origin:
    return unknown
  start = run.config.init_from
  if not start:
    return {"source": model_card.SCRATCH}
  try:
    if hub.is_hub(start):
      found = model_card.read_license(hub.read_card(start))
      return {"source": start, "license": found or model_card.UNKNOWN}
    if known := facebook.published(pathlib.PurePath(start).name):
      return known
    return trace(load.read_metadata(start))
  except (ConfigError, OSError):  # the weights may be on another machine
    return unknown
