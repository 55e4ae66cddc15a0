"""Names of networks: this project's, as vit_b16, and timm's."""

import fnmatch
import re

from mae_jax.api import hints, library
from mae_jax.models import architecture
from mae_jax.utils.errors import ConfigError

_TIMM = {
  "tiny": "Ti",
  "small": "S",
  "base": "B",
  "large": "L",
  "huge": "H",
  "giant": "g",
}
# Of `list_models`; other patch sizes work too.
_PATCHES = {"H": (14,), "g": (14,), "2B": (14,)}
_USUAL = (8, 16)


@library.explained(**hints.NAMES)
def list_models(pattern: str = "*") -> list[str]:
  """Lists names for `create_model`.

  Args:
    pattern: a pattern of file names, as "vit_b*".

  Example:
    >>> import mae_jax
    >>> mae_jax.list_models("vit_[bl]*")
    ['vit_b8', 'vit_b16', 'vit_l8', 'vit_l16']
  """
  if not isinstance(pattern, str):
    raise ConfigError(
      f'pattern={pattern!r} is a {type(pattern).__name__}: give one as "vit_b*"'
    )
  names = [
    f"vit_{size.lower()}{patch}"
    for size in architecture.VARIANTS
    for patch in _PATCHES.get(size, _USUAL)
  ]
  return [name for name in names if fnmatch.fnmatch(name, pattern)]


def image_size_of(name: str) -> int:
  """Returns the image size at the end of timm's name; 224 without one."""
  match = re.fullmatch(r"vit_[a-z]+_patch\d+_(\d+)", name)
  return int(match[1]) if match else 224


def variant_of(name: str) -> str:
  """Returns the variant, as "B/16", of a name.

  Args:
    name: "vit_b16", "B/16", or timm's "vit_base_patch16_224".

  Raises:
    ConfigError: if there is no such size.
  """
  if not isinstance(name, str):
    raise ConfigError(
      f"name={name!r} is a {type(name).__name__}: use one of "
      f"{', '.join(list_models())}"
    )
  plain, dot, _ = name.partition(".")
  if dot and plain.startswith("vit_"):
    raise ConfigError(
      f"name={name!r} names weights, and these are random: use {plain!r} for "
      f'the network, or from_pretrained("hf://timm/{name}") for the weights'
    )
  if "/" in name and "://" not in name:
    architecture.parse(name)
    return name
  sizes = {size.lower(): size for size in architecture.VARIANTS}
  match = re.fullmatch(rf"vit_({'|'.join(sizes)})_?(\d+)", name)
  if match:
    return f"{sizes[match[1]]}/{match[2]}"
  match = re.fullmatch(r"vit_([a-z]+)_patch(\d+)(_\d+)?", name)
  if match and match[1] in _TIMM:
    return f"{_TIMM[match[1]]}/{match[2]}"
  raise ConfigError(
    f"name={name!r} is not known: use {', '.join(list_models())}, or another "
    "patch size, as vit_b4"
  )
