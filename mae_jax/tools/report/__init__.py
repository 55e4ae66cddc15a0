"""Reports runs as one HTML page that works offline."""
