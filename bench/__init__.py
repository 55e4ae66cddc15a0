"""Measurements: speed beside peers, and what faults do to a run."""
