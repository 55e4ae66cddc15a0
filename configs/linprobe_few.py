r"""Trains a linear probe on a few hundred images in class folders.

    python -m mae_jax.main --config=configs/linprobe_few.py:checkpoint=RUN \
      --workdir=runs/probe --config.data.path=/data/photos

It starts from a run of `few_images`, as `finetune_few`. The rate is that of
LARS. In the trials of `finetune_few`, held-out top-1 is 29.0, 39.8 and 41.3 %
for 50, 200 and 1000 digits, 92.0 % for faces, and 66.7 % for tiles. With
blr=4, 50 digits have 24.4 %.
"""

import pathlib
import runpy

from mae_jax.config import parse_arg

FINETUNE_FEW = pathlib.Path(__file__).with_name("finetune_few.py")


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(
    arg, source="folder", channels=3, images=12_000, checkpoint=""
  )
  few = ",".join(f"{name}={value}" for name, value in vars(args).items())
  config = runpy.run_path(str(FINETUNE_FEW))["get_config"](few)
  config.task = "linprobe"
  config.optim.blr = 32.0
  config.optim.weight_decay = 0.0
  config.optim.layer_decay = 1.0
  config.classify.smoothing = 0.0
  config.classify.head_std = 0.01
  return config
