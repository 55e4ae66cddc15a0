"""Tests of mae_jax.conversion and of the tool in front of it."""
