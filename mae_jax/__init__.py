"""Masked autoencoders (He et al. 2021) in JAX/Flax."""

import signal as _signal
import sys as _sys

# `python -m mae_jax...` begins: while a program imports for seconds, before it
# has handlers of its own, Ctrl-C ends it without a trace of where it was.
if (
  getattr(_sys, "argv", [])[:1] == ["-m"]
  and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
):
  _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
