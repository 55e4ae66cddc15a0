"""Tests of the launch scripts with fake versions of the programs they call."""
