"""Masked autoencoders (He et al. 2021) in JAX/Flax."""
