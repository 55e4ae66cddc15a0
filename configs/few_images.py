"""Pre-trains on a folder of a few hundred images, color or gray.

    python -m mae_jax.main --config=configs/few_images.py --workdir=runs/few \
      --config.data.path=/data/photos
    python -m mae_jax.main --config=configs/few_images.py:channels=1 \
      --workdir=runs/few_gray --config.data.path=/data/scans

The network is small, since it sees each image thousands of times. Random crops
cover 10 % to 100 % of an image: most of the variety comes from them. Held-out
images are read from `val/` if it exists; without it, `data.holdout=0.1` holds
out a tenth. `python -m mae_jax inspect` prints the mean and std to set.
`source=photos` uses scikit-image's photographs instead of a folder. To start
from a larger network's weights, set `init_from` and `init_adapt`.
`finetune_few` and `linprobe_few` train classifiers from here.

On a CPU add --config.model.dtype=float32: bfloat16 takes twice as long there.
"""

from mae_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  config_dict,
  one_of,
  parse_arg,
)

SOURCES = ("folder", "photos")


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(arg, source="folder", channels=3, images=1_000_000)
  return config_dict(
    Config(
      task="pretrain",
      data=DataConfig(
        source=one_of("source", args.source, SOURCES),
        batch_size=64,
        image_size=(96, 96),
        channels=args.channels,
        crop_scale=(0.1, 1.0),
        flip=True,
        eval_crop=1.0,
        mean=(0.5,) * args.channels,
        std=(0.25,) * args.channels,
      ),
      model=ModelConfig(
        variant="Ti/8",
        depth=6,
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
        dtype="bfloat16",
      ),
      objective=ObjectiveConfig(mask_ratio=0.75, target="norm_pix"),
      optim=OptimConfig(
        blr=1e-3,
        warmup=f"{args.images // 20} examples",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=TrainConfig(
        length=f"{args.images} examples",
        log_every="50 steps",
        save_every=f"{args.images // 20} examples",
      ),
      eval=EvalConfig(every=f"{args.images // 10} examples", raw_pixels=True),
    )
  )
