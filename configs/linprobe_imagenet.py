r"""Trains a linear probe on ImageNet-1k with the paper's or its code's recipe.

    python -m mae_jax.main --config=configs/linprobe_imagenet.py \
      --workdir=runs/linprobe_vit_l --config.init_from=runs/vit_l
    ... --config=configs/linprobe_imagenet.py:variant=H/14,recipe=paper

`variant` is B/16, L/16 (the default) or H/14. `recipe` is `code` (the default),
for the settings of the published code, or `paper`, for those of the paper's
table; they differ in the number of epochs. `linprobe_vit_b.py`,
`linprobe_vit_l.py` and `linprobe_vit_h.py` are short names for the three
variants.

Settings are those of He et al. 2021, table 10. Published top-1 accuracy:

    variant     TPU (paper)     PyTorch (code)
    B/16             68.0 %             67.8 %
    L/16             75.8 %             76.0 %
    H/14             76.6 %             77.2 %
"""

from mae_jax.config import (
  ClassifyConfig,
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

# He et al. 2021, table 10, and FINETUNE.md of the published code.
EPOCHS = {
  "code": {"B/16": 90, "L/16": 50, "H/14": 50},
  "paper": {"B/16": 90, "L/16": 90, "H/14": 90},
}


def get_config(arg: str | None = None):
  """Returns the recipe for a variant, and code or paper."""
  args = parse_arg(arg, variant="L/16", recipe="code")
  epochs = EPOCHS[one_of("recipe", args.recipe, EPOCHS)]
  variant = one_of("variant", args.variant, epochs)
  return config_dict(
    Config(
      task="linprobe",
      data=DataConfig(
        source="tfds",
        name="imagenet2012",
        batch_size=16384,
        image_size=(224, 224),
        crop_scale=(0.08, 1.0),
        crop_clipped=True,
        flip=True,
        eval_crop=224 / 256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        record_shards=256,
        shuffle_buffer=32768,
      ),
      model=ModelConfig(variant=variant, dtype="bfloat16"),
      objective=ObjectiveConfig(),
      optim=OptimConfig(
        blr=0.1,
        warmup="10 epochs",
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
      ),
      train=TrainConfig(
        length=f"{epochs[variant]} epochs",
        log_every="20 steps",
        save_every="1 epochs",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(every="1 epochs"),
      classify=ClassifyConfig(pooling="cls", head_std=0.01),
    )
  )
