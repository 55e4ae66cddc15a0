"""The version of mae_jax, which `setup.py` reads from here."""

__version__ = "0.2.0.dev0"
