"""Tests of mae_jax.utils."""
