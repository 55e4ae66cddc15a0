"""Pre-training on scikit-learn's handwritten digits: real data, no download.

python -m mae_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from mae_jax import config as c


def get_config(arg: str | None = None):
  """The recipe; takes no argument."""
  c.parse_arg(arg)
  return c.config_dict(
    c.Config(
      task="pretrain",
      data=c.Data(
        source="digits",
        batch_size=256,
        image_size=(8, 8),
        channels=1,
        crop_scale=(0.6, 1.0),
        flip=False,  # a mirrored digit is another sign
        eval_crop=1.0,
        eval_split="test",
        mean=(0.3053,),
        std=(0.3758,),
      ),
      model=c.Model(
        variant="Ti/2",
        width=128,
        depth=4,
        heads=4,
        mlp_dim=512,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=4,
        dtype="float32",
      ),
      objective=c.Objective(mask_ratio=0.75, norm_pix_loss=False),
      optim=c.Optim(
        blr=1.5e-3,
        warmup="100 steps",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=c.Train(
        length="1500 steps", log_every="50 steps", save_every="500 steps"
      ),
      eval=c.Eval(labels=(50, 0), knn_k=5, raw_pixels=True),
    )
  )
