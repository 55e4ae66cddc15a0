"""Pre-training on the photographs that come with scikit-learn and scikit-image.

    python -m mae_jax.main --config=configs/photos.py --workdir=runs/photos

Twelve photographs, cut into overlapping squares, and two held out: enough to
see what a masked autoencoder does with a picture it does not know, after a
quarter of an hour on two CPU cores and without a download, and far too little
for features that are worth anything.

What is not as in the paper, and why: the target is raw pixels, so that colors
are the network's own and not taken from around; the network is small.
"""

from mae_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  config_dict,
  parse_arg,
)


def get_config(arg: str | None = None):
  """The recipe; `steps` is its length."""
  args = parse_arg(arg, steps=3000)
  return config_dict(
    Config(
      task="pretrain",
      data=DataConfig(
        source="photos",
        batch_size=32,
        image_size=(80, 80),
        crop_scale=(0.2, 1.0),
        flip=True,
        eval_crop=1.0,
        eval_split="test",
        mean=(0.46, 0.38, 0.36),
        std=(0.28, 0.24, 0.25),
      ),
      model=ModelConfig(
        variant="Ti/8",
        width=128,
        depth=3,
        heads=4,
        mlp_dim=512,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=4,
        dtype="float32",
      ),
      objective=ObjectiveConfig(mask_ratio=0.75, target="raw"),
      optim=OptimConfig(
        blr=1e-2,
        warmup="200 steps",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=TrainConfig(
        length=f"{args.steps} steps",
        log_every="50 steps",
        save_every="1000 steps",
      ),
    )
  )
