"""Tests of mae_jax.models."""
