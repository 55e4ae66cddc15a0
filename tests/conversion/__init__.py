"""Tests of mae_jax.conversion and of the command `convert`."""
