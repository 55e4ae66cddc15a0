"""Reports runs as one HTML page that works offline.

`run_logs` reads a workdir, `page` writes the page.
"""
