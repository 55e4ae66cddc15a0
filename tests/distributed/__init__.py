"""Tests of mae_jax.distributed, with several processes on this machine."""
