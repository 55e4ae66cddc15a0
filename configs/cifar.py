"""Pre-trains on CIFAR-10 or CIFAR-100: ViT-Ti or ViT-S, patches of 2 or 4.

    python -m mae_jax.main --config=configs/cifar.py --workdir=runs/cifar10
    python -m mae_jax.main --workdir=runs/cifar100 \
      --config=configs/cifar.py:name=cifar100,size=S,patch=4

Images of 32 x 32 pixels have 256 patches of 2 x 2; ImageNet's have 196. The
schedule is long, since there are only 50,000 images. `name=photos` uses
scikit-image's photographs, which need no download and have no labels.

This recipe was not run to its end here, and no published result exists.
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

SIZES = ("Ti", "S")
NAMES = ("cifar10", "cifar100", "photos")


def get_config(arg: str | None = None):
  """Returns the recipe; `epochs` is its length."""
  args = parse_arg(arg, name="cifar10", size="Ti", patch=2, epochs=1600)
  is_photos = one_of("name", args.name, NAMES) == "photos"
  return config_dict(
    Config(
      task="pretrain",
      data=DataConfig(
        source="photos" if is_photos else "tfds",
        name="" if is_photos else args.name,
        batch_size=32 if is_photos else 512,
        image_size=(32, 32),
        crop_scale=(0.2, 1.0),
        flip=True,
        eval_crop=1.0,
        eval_split="test",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
      ),
      model=ModelConfig(
        variant=f"{one_of('size', args.size, SIZES)}/{args.patch}",
        decoder_width=192,
        decoder_depth=4,
        decoder_heads=6,
        dtype="bfloat16",
      ),
      objective=ObjectiveConfig(mask_ratio=0.75, target="norm_pix"),
      optim=OptimConfig(
        blr=1.5e-4,
        warmup=f"{args.epochs / 40:g} epochs",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=TrainConfig(
        length=f"{args.epochs} epochs",
        log_every="50 steps",
        save_every=f"{max(args.epochs // 100, 1)} epochs",
      ),
      eval=EvalConfig(
        every=f"{max(args.epochs // 16, 1)} epochs", shots=(10, 0)
      ),
    )
  )
