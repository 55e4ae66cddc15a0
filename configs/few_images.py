"""Pre-training on a folder of a few hundred images, color or gray.

    python -m mae_jax.main --config=configs/few_images.py --workdir=runs/few \
      --config.data.path=/data/photos
    python -m mae_jax.main --config=configs/few_images.py:channels=1 \
      --workdir=runs/few_gray --config.data.path=/data/scans

A small network, since it sees each image thousands of times, and crops of a
tenth of an image and more, which are most of what there is to learn from. What
is held out is read from `val/` if there is one; `data.inspect` tells mean and
std to set. `source=photos` takes the photographs that come with scikit-image in
place of a folder. To start from a larger network's weights, see `init_from` and
`init_adapt`.
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
  """The recipe; `images` is how many it sees in all."""
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
        eval_split="test" if args.source == "photos" else "validation",
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
      eval=EvalConfig(every=f"{args.images // 10} examples"),
    )
  )
