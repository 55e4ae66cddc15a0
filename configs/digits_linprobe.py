r"""Compares linear probes of pre-trained and of random encoders, on digits.

    python -m mae_jax.main --config=configs/digits_linprobe.py \
      --workdir=runs/digits_linprobe

The protocol is that of `linprobe_imagenet.py`: BatchNorm, LARS and a frozen
encoder. The probes see the mean of the patch tokens, with 5, 10 and all labels
per class and five seeds each. One encoder is pre-trained for 1000 steps of
`digits.py`, the other stays as it was initialized. It prints, after about a
minute on two CPU cores:

                         5 per class      10 per class        all labels
    pre-trained         79.9 ± 1.8 %      84.6 ± 1.9 %      89.0 ± 0.4 %
    from scratch        61.4 ± 4.1 %      66.8 ± 5.3 %      74.0 ± 5.0 %

`digits.py` ends with probes of the concatenated patch tokens, which reach a
higher accuracy here.
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
        task="linprobe",
        pretrain=f"{DIGITS}:steps=1000",
        shots=(5, 10, 0),
        seeds=5,
      ),
      data=DataConfig(
        source="digits",
        batch_size=32,
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
        blr=80.0,
        warmup="20 steps",
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
      ),
      train=TrainConfig(
        length="400 steps", log_every="50 steps", save_every="400 steps"
      ),
      eval=EvalConfig(shots=(), images=0),
      classify=ClassifyConfig(head_std=0.01, norm_group=32),
    )
  )
