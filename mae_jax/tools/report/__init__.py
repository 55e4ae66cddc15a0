"""What became of runs, as one page that needs no network.

`runs` reads a workdir, `page` draws.
"""
