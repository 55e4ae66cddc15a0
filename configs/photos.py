"""Pre-trains on the photographs of scikit-learn and scikit-image.

    python -m mae_jax.main --config=configs/photos.py --workdir=runs/photos

Twelve photographs are cut into overlapping squares; two more are held out. A
quarter of an hour on two CPU cores, without a download, shows how a masked
autoencoder reconstructs a photograph it has not seen. These are far too few
images to learn useful features.

It differs from the paper in two ways: the network is small, and the target is
raw pixels, so that the network predicts colors too. With norm_pix, pictures
would take their colors from the original.
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
  """Returns the recipe; `steps` is its length."""
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
