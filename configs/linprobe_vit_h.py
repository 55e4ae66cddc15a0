r"""Linear probe of ViT-H on ImageNet-1k: the reference's recipe.

    python -m mae_jax.main --config=configs/linprobe_vit_h.py \
      --workdir=runs/linprobe_vit_h --config.init_from=runs/vit_h
    ... --config=configs/linprobe_vit_h.py:recipe=paper

He et al. 2021, table 10. Published: 76.6 (TPU), 77.2 (PyTorch) % top-1.
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


def get_config(arg: str | None = None):
  """The recipe; `recipe` is code or paper, where the two differ."""
  args = parse_arg(arg, recipe="code")
  paper = one_of("recipe", args.recipe, ("code", "paper")) == "paper"
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
      model=ModelConfig(variant="H/14", dtype="bfloat16"),
      objective=ObjectiveConfig(),
      optim=OptimConfig(
        blr=0.1,
        warmup="10 epochs",
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
      ),
      train=TrainConfig(
        length=f"{90 if paper else 50} epochs",
        log_every="20 steps",
        save_every="1 epochs",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(every="1 epochs"),
      classify=ClassifyConfig(pooling="cls", head_std=0.01),
    )
  )
