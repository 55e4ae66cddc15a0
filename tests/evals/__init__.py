"""Tests of mae_jax.evals."""
