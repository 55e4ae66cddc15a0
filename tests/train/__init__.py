"""Tests of mae_jax.train."""
