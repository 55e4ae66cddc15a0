"""The Python API: what `import mae_jax` offers.

The modules here are a facade. They turn arguments into what the rest of the
project works with, and call the functions that the commands call.
"""
