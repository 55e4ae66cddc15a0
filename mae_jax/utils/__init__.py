"""Utilities without models: errors, console, storage, signals, randomness."""
