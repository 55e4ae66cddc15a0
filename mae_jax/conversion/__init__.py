"""Conversion from and to the weights of the reference, transformers and timm.

`name_maps` lists each format's parameter names, `import_weights` and
`export_weights` use them, and `load` is the interface for the rest of the
project.
"""

from mae_jax.conversion.load import (
  load_any,
  locate,
  read_metadata,
  start_from,
  weights_of,
)
from mae_jax.conversion.model_info import (
  NO_OVERRIDES,
  ModelOverrides,
  default_class_names,
)

__all__ = [
  "NO_OVERRIDES",
  "ModelOverrides",
  "default_class_names",
  "load_any",
  "locate",
  "read_metadata",
  "start_from",
  "weights_of",
]
