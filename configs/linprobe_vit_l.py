r"""Linear probe of ViT-L on ImageNet-1k: the reference's recipe.

    python -m mae_jax.main --config=configs/linprobe_vit_l.py \
      --workdir=runs/linprobe_vit_l --config.init_from=runs/vit_l
    ... --config=configs/linprobe_vit_l.py:recipe=paper

He et al. 2021, table 10. Published: 75.8 (TPU), 76.0 (PyTorch) % top-1.
"""

from mae_jax import config as c


def get_config(arg: str | None = None):
  """The recipe; `recipe` is code or paper, where the two differ."""
  args = c.parse_arg(arg, recipe="code")
  paper = c.one_of("recipe", args.recipe, ("code", "paper")) == "paper"
  return c.config_dict(
    c.Config(
      task="linprobe",
      data=c.Data(
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
        lanes=256,
        shuffle_buffer=32768,
      ),
      model=c.Model(variant="L/16", dtype="bfloat16"),
      objective=c.Objective(),
      optim=c.Optim(
        blr=0.1,
        warmup="10 epochs",
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
      ),
      train=c.Train(
        length=f"{90 if paper else 50} epochs",
        log_every="20 steps",
        save_every="1 epochs",
        save_minutes=30.0,
      ),
      eval=c.Eval(every="1 epochs"),
      classify=c.Classify(pooling="cls", head_std=0.01),
    )
  )
