"""The scripts that start runs, against stand-ins of what they call."""
