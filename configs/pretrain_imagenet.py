"""Pre-trains a ViT on ImageNet-1k with the paper's recipe.

    python -m mae_jax.main --config=configs/pretrain_imagenet.py --workdir=...
    ... --config=configs/pretrain_imagenet.py:variant=B/16,epochs=1600

`variant` is B/16, L/16 (the default) or H/14. `epochs` is 800 (the default) or
1600 in the paper. `vit_b.py`, `vit_l.py` and `vit_h.py` are short names for the
three variants.

Settings are those of He et al. 2021, table 8. The paper reports, after 1600
epochs, this top-1 accuracy on ImageNet-1k:

    variant     fine-tuned     linear probe
    B/16            83.6 %           68.0 %
    L/16            85.9 %           75.8 %
    H/14            86.9 %           76.6 %
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

# Table 8 has the same settings for all three.
VARIANTS = ("B/16", "L/16", "H/14")


def get_config(arg: str | None = None):
  """Returns the recipe for a variant and a number of epochs."""
  args = parse_arg(arg, variant="L/16", epochs=800)
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
        variant=one_of("variant", args.variant, VARIANTS),
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
