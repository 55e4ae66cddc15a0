r"""Fine-tunes a classifier on a few hundred images in class folders.

    python -m mae_jax.main --config=configs/finetune_few.py:checkpoint=RUN \
      --workdir=runs/classifier --config.data.path=/data/photos

`RUN` is a run of `few_images` or another checkpoint, and becomes `init_from`.
From it come the network, the image size, channels, mean and std, unless you set
them; the saved config has the values. Without it, they are those of
`few_images`, with its arguments `source` and `channels`. It is float32, since
bfloat16 takes twice as long on CPUs.

docs/quickstart/your_images.md reaches a held-out top-1 of 97.6 % with these
settings. The learning rate was chosen in five smaller trials at 32 pixels,
6,000 examples after short runs of `few_images` (16,000 examples of the digits,
5,000 of the others). Held-out top-1 in per cent, one seed:

    set: classes, training images      blr=1e-3    4e-3    8e-3  1.6e-2
    digits: 10, 50                         34.5    49.9    48.4    45.8
    digits: 10, 200                        36.5    56.4    61.7    61.7
    digits: 10, 1000                       30.5    50.1    54.9    55.7
    faces (lfw_subset): 2, 100             87.0    97.0    94.0    93.0
    tiles of photographs: 10, 420          64.3    70.2    84.5    75.0
    mean                                   50.6    64.7    68.7    66.2

The digits were cropped to 80 % at least and not flipped. They have not
converged after 94 steps: try a larger `images` there.
"""

import pathlib
import runpy

from mae_jax.config import parse_arg

FEW_IMAGES = pathlib.Path(__file__).with_name("few_images.py")


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(
    arg, source="folder", channels=3, images=12_000, checkpoint=""
  )
  checkpoint = vars(args).pop("checkpoint")
  few = ",".join(f"{name}={value}" for name, value in vars(args).items())
  config = runpy.run_path(str(FEW_IMAGES))["get_config"](few)
  config.task = "finetune"
  config.data.crop_scale = (0.5, 1.0)
  config.model.dtype = "float32"
  config.optim.blr = 8e-3
  config.optim.layer_decay = 0.75
  config.classify.smoothing = 0.1
  if checkpoint:
    from mae_jax import conversion

    conversion.start_from(config, checkpoint)
  return config
