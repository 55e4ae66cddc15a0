"""Tests of mae_jax, in the same folders as the package."""
