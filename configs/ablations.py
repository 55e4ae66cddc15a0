"""Changes one thing of a recipe: the paper's table 1, and more.

    python -m mae_jax.main --config=configs/ablations.py:decoder_depth=1 \
      --workdir=runs/decoder_1
    python -m mae_jax.main --workdir=runs/block50 \
      --config=configs/ablations.py:mask=block50,data=digits
    python -m bench.ablations decoder_depth=1 mask=block50  # makes a table

The base is `configs/vit_l.py`: ViT-L on ImageNet for 800 epochs, as in the
paper. `data=digits` and `data=photos` select the recipes of those names.
Separate several changes with commas.

He et al. 2021, table 1, ViT-L/16, 800 epochs. The first row of each change is
top-1 accuracy (%) of fine-tuning, the second that of a linear probe:

    decoder_depth=1, 2, 4, 8, 12        84.8 84.9 84.9 84.9 84.4
                                        65.5 70.0 71.9 73.5 73.3
    decoder_width=128, ..., 1024        84.9 84.8 84.9 84.4 84.3
                                        69.1 71.3 73.5 73.1 73.1
    masked_input=mask_tokens            84.2
                                        59.6
    target=raw, norm_pix, pca           84.9 85.4 84.6
                                        73.5 73.9 72.3
    crop=none, fixed, random, jitter    84.0 84.7 84.9 84.3
                                        65.7 73.1 73.5 71.9
    mask=random75, block50, block75,    84.9 83.9 82.8 84.0
    grid75                              73.5 72.3 63.9 66.0

The paper's base has target=raw and the recipe's has norm_pix: add target=raw
to compare. dVAE tokens as targets are missing, since their weights would need a
download. The paper does not say how strong its color jitter is.

These changes are not in the paper's table: mask=middle, which inpaints the
middle of each image; ratios=50/75 and mask_strategies=random/block with
mask_schedule=random or sequential; masked_input=noise or pixel_noise; loss;
loss_on; contrast; discriminator and its weight; and trainable=decoder, which
needs --config.init_from.
"""

import pathlib
import re
import runpy

from mae_jax.config import one_of, parse_arg
from mae_jax.models import architecture
from mae_jax.utils.errors import ConfigError

RECIPES = {"imagenet": "vit_l", "digits": "digits", "photos": "photos"}
# Digits have patches of only four values; half of them are enough.
COMPONENTS = {"imagenet": 96, "digits": 2, "photos": 96}
# Arguments that set the setting of `objective` of the same name.
OBJECTIVE = (
  "mask_schedule",
  "masked_input",
  "target",
  "loss",
  "loss_on",
  "contrast",
  "trainable",
)
CROPS = {
  "random": {},
  "jitter": {"color_jitter": 0.4},
  "fixed": {"crop_fixed": 0.875, "crop_ratio": (1.0, 1.0)},
  "none": {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": False,
  },
}


def get_config(arg: str | None = None):
  """Returns the recipe of `data`, changed by the other arguments."""
  args = parse_arg(
    arg,
    data="imagenet",
    decoder_depth="",
    decoder_width="",
    mask="",
    target="",
    mask_strategies="",
    ratios="",
    mask_schedule="",
    masked_input="",
    loss="",
    loss_on="",
    crop="random",
    contrast="",
    discriminator="",
    weight="",
    trainable="",
    length="",
  )
  recipe = RECIPES[one_of("data", args.data, RECIPES)]
  path = pathlib.Path(__file__).with_name(f"{recipe}.py")
  config = runpy.run_path(str(path))["get_config"]()
  config.objective.contrast_patches = 4 if args.contrast == "batch" else 0
  for name in ("decoder_depth", "decoder_width"):
    if getattr(args, name):
      config.model[name] = _number(name, getattr(args, name), int)
  for name in OBJECTIVE:
    if getattr(args, name):
      config.objective[name] = getattr(args, name)
  config.objective.pca_components = COMPONENTS[args.data]
  if args.mask == "middle":
    rows = _middle_mask(config)
    cells = "".join(rows)
    config.objective.mask = "given"
    config.objective.mask_rows = rows
    config.objective.mask_ratio = cells.count("1") / len(cells)
  elif args.mask:
    config.objective.update(_parse_mask(args.mask))
  if args.mask_strategies:
    config.objective.mask_strategies = tuple(args.mask_strategies.split("/"))
  if args.ratios:
    config.objective.mask_ratios = tuple(
      _percent("ratios", text) for text in args.ratios.split("/")
    )
  if args.weight and not args.discriminator:
    raise ConfigError(
      f"config argument weight={args.weight} needs a discriminator: write "
      f"discriminator=patch,weight={args.weight} or "
      f"discriminator=image,weight={args.weight}"
    )
  if args.discriminator:
    config.discriminator.type = args.discriminator
    if args.weight:
      config.discriminator.weight = _number("weight", args.weight, float)
    side = min(config.data.image_size)
    config.discriminator.depth = min(4, side.bit_length() - 2)
    if args.data != "imagenet":
      config.discriminator.width = 16  # 64 takes seconds a step on a CPU
  config.data.update(CROPS[one_of("crop", args.crop, CROPS)])
  if args.length:
    config.train.length = args.length
  return config


def _parse_mask(text: str) -> dict:
  """Parses "block50" into a masking strategy and a ratio."""
  found = re.fullmatch(r"([a-z]+)(\d\d)", text)
  if not found:
    raise ConfigError(
      f"config argument mask={text!r} is not a strategy and a percentage: "
      "write for instance random75, block50 or grid75, or middle"
    )
  return {"mask": found[1], "mask_ratio": _percent("mask", found[2])}


def _number(name: str, text: str, kind: type) -> float:
  try:
    return kind(text)
  except ValueError:
    raise ConfigError(
      f"config argument {name}={text!r} is not of type {kind.__name__}"
    ) from None


def _percent(name: str, text: str) -> float:
  if not re.fullmatch(r"\d\d", text):
    raise ConfigError(
      f"config argument {name}={text!r} is not a percentage of two digits: "
      "write for instance 75, or 50/75 for several"
    )
  return int(text) / 100


def _middle_mask(config) -> tuple[str, ...]:
  """Returns rows of a mask that leaves a border of about 1/7 visible."""
  _, patch = architecture.parse(config.model.variant)
  height, width = (side // patch for side in config.data.image_size)

  def row(y: int) -> str:
    inside = [_inside(y, height) and _inside(x, width) for x in range(width)]
    return "".join("01"[each] for each in inside)

  return tuple(row(y) for y in range(height))


def _inside(position: int, length: int) -> bool:
  border = round(length / 7)
  return border <= position < length - border
