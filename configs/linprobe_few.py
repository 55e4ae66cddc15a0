r"""Trains a linear probe on a few hundred images in class folders.

    python -m mae_jax.main --config=configs/linprobe_few.py:checkpoint=RUN \
      --workdir=runs/probe --config.data.path=/data/photos

It starts from a run of `few_images`, as `finetune_few`. The rate is that of
LARS. Held-out top-1 in per cent in the trials of `finetune_few`:

    set: classes, training images         blr=4      32     100     300
    digits: 10, 50                         24.4    29.0    33.8    42.3
    digits: 10, 200                        26.2    39.8    44.3    46.3
    digits: 10, 1000                          -    41.3    44.6    50.1
    faces (lfw_subset): 2, 100             77.0    92.0    94.0    96.0
    tiles of photographs: 10, 420          41.7    66.7    67.9    72.6

With 300 the probabilities are of no use: the held-out loss is 4.3 to 11.8 in
the sets of ten classes, where that of a guess is 2.3.
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
  config.optim.blr = 100.0
  config.optim.weight_decay = 0.0
  config.optim.layer_decay = 1.0
  config.classify.smoothing = 0.0
  config.classify.head_std = 0.01
  return config
