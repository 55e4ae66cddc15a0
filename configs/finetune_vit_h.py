"""ViT-H/14: `python -m mae_jax.main --config=configs/finetune_vit_h.py`."""

import pathlib
import runpy

PROGRAM = pathlib.Path(__file__).with_name("finetune_imagenet.py")


def get_config(arg: str | None = None):
  """Returns the recipe of `finetune_imagenet.py` for H/14."""
  args = f"variant=H/14,{arg or ''}"
  return runpy.run_path(str(PROGRAM))["get_config"](args)
