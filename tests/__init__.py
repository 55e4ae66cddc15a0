"""Tests of mae_jax, in the same tree."""
