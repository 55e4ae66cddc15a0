"""Helpers that know nothing of models: errors, console, storage, signals."""
