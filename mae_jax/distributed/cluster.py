"""Detection of the number of this process among all processes of a run."""

import dataclasses
import os
import re
from collections.abc import Mapping

import jax

from mae_jax.utils import jax_private
from mae_jax.utils.errors import ConfigError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FLAGS = ("--coordinator", "--num_processes", "--process_id")
_INDEX = "JOB_COMPLETION_INDEX"  # the number of a pod in a Kubernetes Job


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
  """The place of a process among several.

  Attributes:
    coordinator: HOST:PORT of process 0, which all others connect to.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    local_device_ids: GPUs of the host that this process uses; None for all
      visible ones.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] | None = None


def detect(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  environ: Mapping[str, str] = os.environ,
) -> ProcessInfo | None:
  """Finds the place of this process; None if it is the only one.

  `environ` is used if the three flags are None.

  Raises:
    ConfigError: if some of the three are missing or invalid.
  """
  given: tuple[object, ...] = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    return _checked(_FLAGS, given, "from 0")
  if _VARIABLES[1] in environ:
    values = [environ.get(name) for name in _VARIABLES]
    values[2] = values[2] or environ.get(_INDEX)
    return _checked(_VARIABLES, tuple(values), f"from 0, or {_INDEX}")
  if (
    jax.config.values["jax_platforms"] == "cpu"
    and "SLURM_PROCID" not in environ
  ):
    return None  # the run does not use the machine's TPU
  return _detect_cluster(environ)


def _checked(
  names: tuple[str, ...], values: tuple[object, ...], numbers: str
) -> ProcessInfo | None:
  missing = [
    name
    for name, value in zip(names, values, strict=True)
    if value in (None, "")
  ]
  if missing:
    verb = "is" if len(missing) == 1 else "are"
    raise ConfigError(
      f"{' and '.join(missing)} {verb} missing: "
      f"several processes need all of {names[0]}=HOST:PORT (of process 0, the "
      f"same everywhere), {names[1]}=N and {names[2]}=I ({numbers}); a run of "
      "one process needs none of them"
    )
  host, _, port = str(values[0]).rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ConfigError(
      f"{names[0]}={values[0]} is not HOST:PORT: give the address of process 0 "
      "and a free port there, such as 10.0.0.1:8476"
    )
  try:
    count, number = int(str(values[1])), int(str(values[2]))
  except ValueError:
    raise ConfigError(
      f"{names[1]}={values[1]} and {names[2]}={values[2]} must be whole numbers"
    ) from None
  if count < 1:
    raise ConfigError(
      f"{names[1]}={count} is not a number of processes: give 1 or more"
    )
  if not 0 <= number < count:
    raise ConfigError(
      f"{names[2]}={number} is not one of {names[1]}={count} processes: they "
      f"are numbered 0 to {count - 1}"
    )
  return ProcessInfo(str(values[0]), count, number) if count > 1 else None


def _detect_cluster(environ: Mapping[str, str]) -> ProcessInfo | None:
  """Asks JAX about TPU pods, Slurm and Open MPI."""
  kinds = jax_private.cluster_environments()
  try:
    kind = next((each for each in kinds if each.is_env_present()), None)
    if kind is None or kind.get_process_count() == 1:
      return None
    address = kind.get_coordinator_address(
      timeout_secs=60,
      override_coordinator_port=environ.get("JAX_COORDINATOR_PORT"),
    )
    number = kind.get_process_id()
    local = kind.get_local_process_id()
  except (RuntimeError, ValueError, KeyError, OSError) as error:
    raise ConfigError(
      "the cluster environment that started this process is not understood "
      f"({error}): give this process's place with {', '.join(_FLAGS)}"
    ) from error
  return ProcessInfo(
    environ.get("JAX_COORDINATOR_ADDRESS", address),
    kind.get_process_count(),
    number,
    _gpus(environ, local),
  )


def _gpus(
  environ: Mapping[str, str], local: int | None
) -> tuple[int, ...] | None:
  """Assigns one GPU to each process of a host, if it sees several.

  JAX alone would give the only process of a host just the first GPU.
  """
  if local is None or environ.get("JAX_LOCAL_DEVICE_IDS"):
    return None
  visible = environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None and len(visible.split(",")) == 1:
    return None
  return (local,) if _processes_here(environ) != 1 else None


def _processes_here(environ: Mapping[str, str]) -> int:
  """Returns the number of the job's processes on this host; 0 if unknown."""
  if count := environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
    return int(count)
  # "2(x3),1": two on each of the first three hosts, one on the fourth.
  counts: list[int] = []
  for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
    if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
      counts += [int(match[1])] * int(match[2] or 1)
  host = int(environ.get("SLURM_NODEID", "0"))
  return counts[host] if host < len(counts) else 0
