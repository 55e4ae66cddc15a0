"""ViT-L/16: `python -m mae_jax.main --config=configs/finetune_vit_l.py`."""

import pathlib
import runpy

PROGRAM = pathlib.Path(__file__).with_name("finetune_imagenet.py")


def get_config(arg: str | None = None):
  """Returns the recipe of `finetune_imagenet.py` for L/16."""
  args = f"variant=L/16,{arg or ''}"
  return runpy.run_path(str(PROGRAM))["get_config"](args)
