"""Tests of mae_jax.checkpoints."""
