"""Pre-training of ViT-B on ImageNet-1k: the reference's recipe.

    python -m mae_jax.main --config=configs/vit_b.py --workdir=runs/vit_b
    python -m mae_jax.main --config=configs/vit_b.py:epochs=1600 --workdir=...

He et al. 2021, table 8. Published after 1600 epochs: 83.6 % top-1 fine-tuned,
68.0 % linear probe.
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
  parse_arg,
)


def get_config(arg: str | None = None):
  """The recipe; `epochs` is 800 (the default) or 1600 in the paper."""
  args = parse_arg(arg, epochs=800)
  return config_dict(
    Config(
      task="pretrain",
      data=DataConfig(
        source="tfds",
        name="imagenet2012",
        batch_size=4096,
        image_size=(224, 224),
        crop_scale=(0.2, 1.0),
        flip=True,
        eval_crop=224 / 256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        record_shards=256,  # one for each chip of a 256-chip pod
        shuffle_buffer=32768,
      ),
      model=ModelConfig(
        variant="B/16",
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        dtype="bfloat16",
      ),
      objective=ObjectiveConfig(mask_ratio=0.75, target="norm_pix"),
      optim=OptimConfig(
        blr=1.5e-4,
        warmup="40 epochs",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=TrainConfig(
        length=f"{args.epochs} epochs",
        log_every="50 steps",
        save_every="5 epochs",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(
        every="100 epochs", shots=(10,), max_train=20000, num_trials=1
      ),
    )
  )
