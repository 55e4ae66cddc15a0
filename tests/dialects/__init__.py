"""Tests of mae_jax.dialects and of the tool in front of it."""
