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

import pathlib
import runpy

from mae_jax.config import parse_arg

PRETRAIN = pathlib.Path(__file__).with_name("pretrain_imagenet.py")


def get_config(arg: str | None = None):
  """Returns the recipe; `images` is the number of examples to train on."""
  args = parse_arg(arg, images=1_000_000)
  config = runpy.run_path(str(PRETRAIN))["get_config"]("variant=B/16")
  config.init_from = "hf://facebook/vit-mae-base"
  config.data.update(source="folder", name="", batch_size=256)
  config.data.update(record_shards=64, shuffle_buffer=16384)  # of one host
  config.model.norm_eps = 1e-12  # as the config.json of these weights has it
  config.optim.warmup = f"{args.images // 20} examples"
  config.train.length = f"{args.images} examples"
  config.train.save_every = f"{args.images // 20} examples"
  config.eval.every = f"{args.images // 10} examples"
  config.eval.update(shots=(0,), num_trials=10, max_train=0)  # all labels
  return config
