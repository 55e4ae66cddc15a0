"""Tests of mae_jax.plan."""
