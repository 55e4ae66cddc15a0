"""Pure functions and linen modules: no I/O, no TensorFlow."""
