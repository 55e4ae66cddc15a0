"""Tests of mae_jax.steps."""
