"""Tests of process detection, and of the start barrier."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from mae_jax import distributed
from mae_jax.distributed import cluster, rendezvous
from mae_jax.utils.errors import ConfigError
from tests.helpers import process_groups

SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "node[007-009],big1",
  "SLURM_NTASKS": "8",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
  "SLURM_NODEID": "1",
  "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}


def find(monkeypatch, environ, *flags):
  for name in [*SLURM, "OMPI_MCA_orte_hnp_uri", "CUDA_VISIBLE_DEVICES"]:
    monkeypatch.delenv(name, raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  return distributed.detect(*(flags or (None, None, None)))


def test_a_single_process_is_detected(monkeypatch):
  assert find(monkeypatch, {}) is None
  assert find(monkeypatch, {}, "localhost:1234", 1, 0) is None
  assert find(monkeypatch, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
  one = SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
  assert find(monkeypatch, one) is None


def test_flags(monkeypatch):
  found = find(monkeypatch, SLURM, "10.0.0.1:8476", 4, 2)
  assert found == distributed.ProcessInfo("10.0.0.1:8476", 4, 2)


@pytest.mark.parametrize(
  ("flags", "text"),
  [
    (("host:1234", None, None), "--num_processes and --process_id are missing"),
    ((None, 2, 0), "--coordinator is missing"),
    (("host", 2, 0), "--coordinator=host is not HOST:PORT"),
    (("host:99999", 2, 0), "--coordinator=host:99999 is not HOST:PORT"),
    (("host:1234", 2, 2), "numbered 0 to 1"),
    (("host:1234", 2, -1), "--process_id=-1 is not one of --num_processes=2"),
    (("host:1234", 0, 0), "--num_processes=0"),
  ],
)
def test_wrong_flags_are_refused(monkeypatch, flags, text):
  with pytest.raises(ConfigError, match=text) as caught:
    find(monkeypatch, {}, *flags)
  assert "\n" not in str(caught.value)


def test_kubernetes_numbers_its_pods(monkeypatch):
  environ = {
    "JAX_COORDINATOR_ADDRESS": "mae-workers-0-0.mae:8476",
    "JAX_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
  }
  found = find(monkeypatch, environ)
  assert found == distributed.ProcessInfo("mae-workers-0-0.mae:8476", 4, 3)
  monkeypatch.delenv("JOB_COMPLETION_INDEX")
  with pytest.raises(ConfigError, match="JAX_PROCESS_ID is missing"):
    distributed.detect(None, None, None)
  monkeypatch.setenv("JAX_PROCESS_ID", "two")
  with pytest.raises(ConfigError, match="JAX_PROCESS_ID=two must"):
    distributed.detect(None, None, None)


@pytest.mark.parametrize(
  ("changes", "gpus"),
  [
    ({}, (1,)),  # a process for each GPU
    ({"CUDA_VISIBLE_DEVICES": "1"}, None),  # the GPU that Slurm assigned
    ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}, None),
    ({"SLURM_STEP_TASKS_PER_NODE": "1,7"}, (1,)),
  ],
)
def test_slurm(monkeypatch, changes, gpus):
  found = find(monkeypatch, SLURM | changes)
  assert found is not None
  assert found.coordinator.startswith("node007:")
  assert (found.num_processes, found.process_id) == (8, 3)
  assert found.local_device_ids == gpus


def test_invalid_slurm_variables_are_refused(monkeypatch):
  with pytest.raises(ConfigError, match="is not understood"):
    find(monkeypatch, SLURM | {"SLURM_NTASKS": "many"})


def start_errors(places, seconds=1.0):
  """Returns the error of each process; "" if it may start."""
  errors = [""] * len(places)

  def answer(number):
    try:
      rendezvous.wait_for_all(places[number], seconds)
    except ConfigError as error:
      errors[number] = str(error)

  threads = [
    threading.Thread(target=answer, args=(n,)) for n in range(len(places))
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
  return errors


def places(count, numbers):
  where = f"127.0.0.1:{process_groups.free_port()}"
  return [cluster.ProcessInfo(where, count, n) for n in numbers]


def test_all_processes_start():
  assert start_errors(places(4, range(4)), 20) == [""] * 4


def test_missing_processes_are_named():
  first, second = start_errors(places(4, (0, 2)))
  assert "2 of 4 processes started within --start_seconds=1" in first
  assert "process 1, 3 did not" in first
  assert "not all 4 processes started" in second or "process 0 could" in second


def test_without_process_0_the_address_is_named():
  (error,) = start_errors(places(2, [1]))
  assert "process 0 could not be reached at 127.0.0.1" in error
  assert "refused" in error


@pytest.mark.slow
def test_two_processes_of_one_number_are_refused():
  errors = start_errors(places(3, (0, 1, 1)), 5)
  assert "two processes were started as process 1 of 3" in errors[0]
  assert any(
    "another process was started as process 1" in x for x in errors[1:]
  )


def test_different_process_counts_are_refused():
  first, second = places(2, (0, 1))
  second = cluster.ProcessInfo(second.coordinator, 3, 1)
  errors = start_errors([first, second], 5)
  assert "--num_processes=3, and process 0 with 2" in errors[0]
  assert "started as one of 2" in errors[1]


def test_another_program_at_the_port_is_ignored():
  first, second = places(2, (0, 1))

  def stranger():
    port = int(first.coordinator.rpartition(":")[2])
    for _ in range(100):
      try:
        with socket.create_connection(("127.0.0.1", port), 1) as call:
          call.sendall(b"GET / HTTP/1.0\r\n\r\n")
          return
      except OSError:
        time.sleep(0.02)

  thread = threading.Thread(target=stranger)
  thread.start()
  assert start_errors([first, second], 20) == ["", ""]
  thread.join()


def test_a_port_in_use_is_an_error():
  (first,) = places(2, [0])
  port = int(first.coordinator.rpartition(":")[2])
  with rendezvous._server(port):
    (error,) = start_errors([first])
  assert f"process 0 cannot listen at 127.0.0.1:{port}" in error
