"""The loop, and one file a task."""
