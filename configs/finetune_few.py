"""Fine-tunes a classifier on a few hundred images in class folders."""

import pathlib
import runpy

from mae_jax.config import parse_arg

FEW_IMAGES = pathlib.Path(__file__).with_name("few_images.py")


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(arg, source="folder", channels=3, images=12_000)
  few = ",".join(f"{name}={value}" for name, value in vars(args).items())
  config = runpy.run_path(str(FEW_IMAGES))["get_config"](few)
  config.task = "finetune"
  config.data.crop_scale = (0.5, 1.0)
  config.model.dtype = "float32"
  config.optim.blr = 4e-3
  config.optim.layer_decay = 0.75
  config.classify.smoothing = 0.1
  return config
