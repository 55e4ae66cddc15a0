"""Exports models to StableHLO and SavedModel; see `command`."""
