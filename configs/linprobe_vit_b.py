r"""Linear probe of ViT-B on ImageNet-1k: the reference's recipe.

    python -m mae_jax.main --config=configs/linprobe_vit_b.py \
      --workdir=runs/linprobe_vit_b --config.init_from=runs/vit_b

He et al. 2021, table 10. Published: 68.0 (TPU), 67.8 (PyTorch) % top-1.
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
  """The recipe; paper and code agree, so that `recipe` changes nothing."""
  args = parse_arg(arg, recipe="code")
  one_of("recipe", args.recipe, ("code", "paper"))
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
      model=ModelConfig(variant="B/16", dtype="bfloat16"),
      objective=ObjectiveConfig(),
      optim=OptimConfig(
        blr=0.1,
        warmup="10 epochs",
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
      ),
      train=TrainConfig(
        length="90 epochs",
        log_every="20 steps",
        save_every="1 epochs",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(every="1 epochs"),
      classify=ClassifyConfig(pooling="cls", head_std=0.01),
    )
  )
