"""Tests of mae_jax.tools."""
