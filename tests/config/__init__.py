"""Tests of mae_jax.config."""
