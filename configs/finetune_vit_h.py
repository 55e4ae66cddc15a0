r"""Fine-tuning of ViT-H on ImageNet-1k: the reference's recipe.

    python -m mae_jax.main --config=configs/finetune_vit_h.py \
      --workdir=runs/finetune_vit_h --config.init_from=runs/vit_h
    ... --config=configs/finetune_vit_h.py:recipe=paper
    ... --config=configs/finetune_vit_h.py:size=448

He et al. 2021, table 9. Published: 86.9 % top-1, 87.8 % at 448 pixels.
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
  args = parse_arg(arg, recipe="code", size=224)
  paper = one_of("recipe", args.recipe, ("code", "paper")) == "paper"
  return config_dict(
    Config(
      task="finetune",
      data=DataConfig(
        source="tfds",
        name="imagenet2012",
        batch_size=1024,
        image_size=(args.size, args.size),
        crop_scale=(0.08, 1.0),
        flip=True,
        # Above 224 pixels nothing is cut off.
        eval_crop=224 / 256 if args.size <= 224 else 1.0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        randaugment=9.0,
        record_shards=256,
        shuffle_buffer=32768,
      ),
      model=ModelConfig(variant="H/14", dtype="bfloat16"),
      objective=ObjectiveConfig(),
      optim=OptimConfig(
        blr=1e-3,
        warmup="5 epochs",
        weight_decay=0.05,
        b1=0.9,
        b2=0.999,
        min_lr=1e-6,
        layer_decay=0.75,
      ),
      train=TrainConfig(
        length="50 epochs",
        log_every="50 steps",
        save_every="1 epochs",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(every="1 epochs"),
      classify=ClassifyConfig(
        drop_path=0.2 if paper else 0.3,
        smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        # The paper's table has no random erasing.
        erasing=0.0 if paper else 0.25,
      ),
    )
  )
