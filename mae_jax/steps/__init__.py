"""What runs on the devices: a new state, and one step of each task."""
