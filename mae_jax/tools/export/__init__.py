"""Networks out of checkpoints as files that serve without this project.

`python -m mae_jax export`, see `command`.
"""
