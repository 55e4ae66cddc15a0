"""Plans a run for chips that need not be here: memory, flops, traffic."""
