"""One run in several processes: how they meet, agree, and end together.

Each host (or each GPU, under Slurm) runs the same command. Who is who comes
from, in this order:

1. the flags `--coordinator=HOST:PORT --num_processes=N --process_id=I`;
2. the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID:
   for Kubernetes, where an indexed Job, of a JobSet or alone, numbers its pods
   in JOB_COMPLETION_INDEX, so that the third may be left out. The address is
   that of pod 0, `JOB-0.SUBDOMAIN:8476` with a headless service, which a JobSet
   makes: `JOBSET-REPLICATEDJOB-0-0.JOBSET:8476`;
3. what JAX finds: TPU pods (also on GKE), Slurm's `srun`, Open MPI.

A run of one process starts nothing. Of several, each tells the others that it
is alive through JAX's coordination service, which process 0 has. Who falls
silent, or fails, ends the run of all within bounded time, in one line that
names it: an accelerator would wait for a peer that is gone for ever.
"""

from mae_jax.distributed.cluster import ProcessInfo, detect
from mae_jax.distributed.consistency import check_same_data, check_same_settings
from mae_jax.distributed.processes import (
  LOST_PEER_CODE,
  announce_exit,
  barrier,
  exit_if_peer_lost,
  fail,
  finish,
  gather,
  publish,
  single_process,
  start,
)

__all__ = [
  "LOST_PEER_CODE",
  "ProcessInfo",
  "announce_exit",
  "barrier",
  "check_same_data",
  "check_same_settings",
  "detect",
  "exit_if_peer_lost",
  "fail",
  "finish",
  "gather",
  "publish",
  "single_process",
  "start",
]
