"""ViT-B/16: `python -m mae_jax.main --config=configs/finetune_vit_b.py`."""

import pathlib
import runpy

PROGRAM = pathlib.Path(__file__).with_name("finetune_imagenet.py")


def get_config(arg: str | None = None):
  """Returns the recipe of `finetune_imagenet.py` for B/16."""
  args = f"variant=B/16,{arg or ''}"
  return runpy.run_path(str(PROGRAM))["get_config"](args)
