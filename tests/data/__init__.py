"""Tests of mae_jax.data."""
