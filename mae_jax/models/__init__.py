"""The networks: pure functions and Linen modules without I/O or TensorFlow."""
