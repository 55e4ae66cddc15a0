r"""Compares fine-tuning from pre-trained weights and from scratch, on digits.

    python -m mae_jax.main --config=configs/digits_finetune.py \
      --workdir=runs/digits_finetune

Pre-trains for 1000 steps of `digits.py`. Then fine-tunes from these weights and
from scratch, with 5, 10 and all labels per class and five seeds each. It
prints, after about a minute and a half on two CPU cores:

                         5 per class      10 per class        all labels
    pre-trained         84.3 ± 2.0 %      90.8 ± 2.3 %      97.3 ± 0.5 %
    from scratch        73.4 ± 5.7 %      81.2 ± 3.0 %      71.6 ± 8.0 %

Each run has 400 steps of 16 images. That is over 100 epochs with 5 labels per
class, and four epochs with all labels: there, training from scratch has not
converged. Set --config.init_from=runs/digits to skip pre-training and start
from that checkpoint.
"""

import pathlib

from mae_jax.config import (
  ClassifyConfig,
  Config,
  DataConfig,
  EvalConfig,
  LabelEfficiencyConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  config_dict,
  parse_arg,
)

DIGITS = pathlib.Path(__file__).with_name("digits.py")


def get_config(arg: str | None = None):
  """Returns the recipe, which takes no argument."""
  parse_arg(arg)
  return config_dict(
    Config(
      task="label_efficiency",
      label_efficiency=LabelEfficiencyConfig(
        task="finetune",
        pretrain=f"{DIGITS}:steps=1000",
        shots=(5, 10, 0),
        seeds=5,
      ),
      data=DataConfig(
        source="digits",
        batch_size=16,
        image_size=(8, 8),
        channels=1,
        crop_scale=(0.9, 1.0),
        flip=False,
        eval_crop=1.0,
        mean=(0.3053,),
        std=(0.3758,),
      ),
      model=ModelConfig(
        variant="Ti/2",
        width=64,
        depth=4,
        heads=4,
        mlp_dim=256,
        dtype="float32",
      ),
      objective=ObjectiveConfig(),
      optim=OptimConfig(
        blr=3.2e-2,
        warmup="20 steps",
        weight_decay=0.05,
        b1=0.9,
        b2=0.999,
        layer_decay=0.9,
      ),
      train=TrainConfig(
        length="400 steps", log_every="50 steps", save_every="400 steps"
      ),
      eval=EvalConfig(shots=(), images=0),
      classify=ClassifyConfig(head_std=0.01),
    )
  )
