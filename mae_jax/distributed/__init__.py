"""One run in several processes: how they start, agree, and end together.

Each host (or each GPU, under Slurm) runs the same command. A process learns its
number from the first of these that is set:

1. the flags `--coordinator=HOST:PORT --num_processes=N --process_id=I`;
2. the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
   for Kubernetes. In an indexed Job, JOB_COMPLETION_INDEX replaces the third
   one. The address is that of pod 0: `JOB-0.SUBDOMAIN:8476` with a headless
   service, or `JOBSET-REPLICATEDJOB-0-0.JOBSET:8476` in a JobSet;
3. the cluster that JAX detects: a TPU pod (also on GKE), Slurm, Open MPI.

A run of one process starts nothing. Several processes send heartbeats through
JAX's coordination service, which runs in process 0. If one of them is silent or
fails, all processes end within bounded time, with one line that names it.
Otherwise an accelerator would wait forever for a lost peer.
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
  from_first,
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
  "from_first",
  "gather",
  "publish",
  "single_process",
  "start",
]
