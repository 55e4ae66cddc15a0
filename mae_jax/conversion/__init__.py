"""Weights of other programs: the reference, transformers and timm.

`names` says what they call things, `reading` and `writing` go by it, and
`loading` is what the rest of the project starts from.
"""

from mae_jax.conversion.load import load_any, locate, read_metadata
from mae_jax.conversion.model_info import NO_OVERRIDES, ModelOverrides, unnamed

__all__ = [
  "NO_OVERRIDES",
  "ModelOverrides",
  "load_any",
  "locate",
  "read_metadata",
  "unnamed",
]
