"""Commands: what is done with a checkpoint or a workdir."""
