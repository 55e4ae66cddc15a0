r"""Pre-trains MAE's ViT-B/16 further on your images.

    python -m mae_jax.main --config=configs/continue_vit_b.py \
      --workdir=runs/domain --config.data.path=images

It starts from the paper's weights for ImageNet with their decoder, which are
downloaded from the Hugging Face Hub (license CC-BY-NC 4.0). Other weights of a
ViT-B/16 will do, also those of an encoder alone, such as
`--config.init_from=mae_pretrain_vit_base.pth --config.model.norm_eps=1e-6`: the
decoder is new then. `images` is the number of examples to train on, a million
by default: `continue_vit_b:images=4000000`.

The learning rate is that of the paper (1.5e-4 for 256 images a step) with a
short warmup, as in public code for other domains. Weights that are good already
lose more from too high a rate than from a short training: if the loss rises
after the warmup, set `--config.optim.blr=5e-5`. Compare linear probes of the
first and the last checkpoint before you train longer. Not run.
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
  parse_arg,
)


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(arg, images=1_000_000)
  return config_dict(
    Config(
      task="pretrain",
      init_from="hf://facebook/vit-mae-base",
      data=DataConfig(
        source="folder",
        batch_size=256,
        image_size=(224, 224),
        crop_scale=(0.2, 1.0),
        flip=True,
        eval_crop=224 / 256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
      ),
      model=ModelConfig(
        variant="B/16",
        # As the config.json of these weights has it.
        norm_eps=1e-12,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        dtype="bfloat16",
      ),
      objective=ObjectiveConfig(mask_ratio=0.75, target="norm_pix"),
      optim=OptimConfig(
        blr=1.5e-4,
        warmup=f"{args.images // 20} examples",
        weight_decay=0.05,
        b1=0.9,
        b2=0.95,
      ),
      train=TrainConfig(
        length=f"{args.images} examples",
        log_every="50 steps",
        save_every=f"{args.images // 20} examples",
        save_every_minutes=30.0,
      ),
      eval=EvalConfig(every=f"{args.images // 10} examples"),
    )
  )
