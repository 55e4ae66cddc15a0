"""Runs the command."""

from __future__ import annotations

import jax

from mae_jax import tools
from mae_jax.export import command

if __name__ == "__main__":
  # Everything is done on the host: no accelerator is needed, or taken from
  # whoever uses it, and what is compared is not rounded by one.
  jax.config.update("jax_platforms", "cpu")
  tools.main(command.parser(), command.write)
