"""Tests of rooflines and searches on made-up costs."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import jax
import pytest

from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.tools.plan import (
  compile_step,
  format,
  hlo_costs,
  planned_step,
  roofline,
  search,
)
from mae_jax.utils import hardware, signals, tables
from mae_jax.utils.errors import ConfigError
from tests.helpers import compiled_steps

GATHER = hlo_costs.Collective(
  "all-gather", times=3, bytes=4_000_000, group=4, span=4, dims=""
)
REDUCE = hlo_costs.Collective(
  "all-reduce", times=1, bytes=8_000_000, group=8, span=8, dims=""
)


def made_up(
  config: Config | None = None, **changes: Any
) -> compile_step.CompiledStep:
  """Makes a run of 64 images on eight devices with round costs."""
  config = config or compiled_steps.config(train={"length": "1000 steps"})
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  settings = {
    "planned": planned_step.planned(config, mesh, 1000, 10),
    "chip": compiled_steps.CHIP,
    "num_params": 1000,
    "memory": compile_step.Memory(1000, 2000, 10, 100_000),
    "fits": True,
    "costs": hlo_costs.Costs(2e9, 1e9, (GATHER, REDUCE)),
    "compile_seconds": 1.0,
  }
  return compile_step.CompiledStep(**(settings | changes))


def test_a_step_waits_for_the_slowest():
  found = roofline.estimate(made_up())
  assert found is not None
  assert found.compute == 2e9 / 1e12
  assert found.memory == 1e9 / 1e11
  # A ring of four sends three quarters over one of two dimensions. A sum over
  # all devices goes round twice, over both.
  gathers = 3 * 3 / 4 * 4e6 / (1e10 / 2)
  sums = 2 * 7 / 8 * 8e6 / 1e10
  assert found.interconnect == pytest.approx(gathers + sums)
  assert (found.step, found.bound) == (0.01, "HBM")
  assert found.images_per_second == pytest.approx(6400)
  assert found.days == pytest.approx(1000 * 0.01 / 86400)
  on_paper = made_up().planned.task.flops_per_image
  assert found.mfu == pytest.approx(6400 * on_paper / (8 * 1e12))


def test_gpus_reach_other_hosts_over_the_network():
  gpu = hardware.Chip(1e12, 10**9, 1e15, 1e10, 0, network_bandwidth=1e9)
  for span, bandwidth in ((8, 1e10), (9, 1e9)):
    each = dataclasses.replace(GATHER, span=span)
    found = roofline.estimate(
      made_up(chip=gpu, costs=hlo_costs.Costs(1, 1, (each,)))
    )
    assert found is not None
    assert found.interconnect == pytest.approx(9e6 / bandwidth)


def test_without_costs_there_is_no_estimate():
  assert roofline.estimate(made_up(costs=None)) is None


def fake(need: dict[str, float], kept: list[Config]) -> Any:
  """Returns memory by remat, divided by accum_steps; 1 is available."""

  def measured(config: Config) -> compile_step.CompiledStep:
    kept.append(config)
    peak = need[config.model.remat] / config.optim.accum_steps
    slow = {"none": 1.0, "dots": 1.1, "full": 1.4}[config.model.remat]
    slow *= config.optim.accum_steps * config.mesh.fsdp
    return made_up(
      config,
      fits=peak <= 1,
      memory=compile_step.Memory(0, 0, 0, int(peak * 1000)),
      costs=hlo_costs.Costs(1e9 * slow, 1, ()),
    )

  return measured


def settings(config: Config) -> tuple[int, str, int]:
  return config.mesh.fsdp, config.model.remat, config.optim.accum_steps


def test_search_takes_the_fastest_that_fits():
  tried: list[Config] = []
  measured = fake({"none": 3.5, "dots": 1.5, "full": 0.5}, tried)
  found = list(search.search(compiled_steps.config(), 8, measured))
  first = [settings(each) for each in tried if each.mesh.fsdp == 1]
  assert first == [
    (1, "none", 1),
    (1, "none", 2),
    (1, "none", 4),
    (1, "dots", 1),
    (1, "dots", 2),
    (1, "full", 1),
  ]
  assert {each.mesh.fsdp for each in tried} == {1, 4, 8}
  best = search.best(found)
  assert best is not None
  assert settings(best.planned.config) == (1, "full", 1)


def test_search_of_several_batches():
  tried: list[Config] = []
  measured = fake(dict.fromkeys(("none", "dots", "full"), 0.5), tried)
  config = compiled_steps.config()
  found = list(search.search(config, 8, measured, (64, 128)))
  assert {each.data.batch_size for each in tried} == {64, 128}
  rates = {each.data.batch_size: each.optim.lr for each in tried}
  assert rates[64] == config.optim.lr
  assert rates[128] == 2 * rates[64]
  best = search.best(found)
  assert best is not None
  assert (
    best.planned.config.data.batch_size == 128
  )  # the same time for twice the images


def test_search_where_nothing_fits():
  measured = fake(dict.fromkeys(("none", "dots", "full"), 1e9), [])
  found = list(search.search(compiled_steps.config(), 8, measured))
  assert search.best(found) is None
  # The search goes down to one image per chip.
  accums = {each.planned.config.optim.accum_steps for each in found}
  assert accums == {1, 2, 4, 8}


@pytest.mark.parametrize(
  ("fits", "text"),
  [(True, "cannot be compared"), (False, "nothing of this fits v5e:2x2")],
)
def test_a_fitting_program_without_text_is_not_reported_as_too_large(
  fits: bool, text: str
):
  found = [made_up(fits=fits, costs=None)]
  assert search.best(found) is None
  assert text in search.why_none(found, "v5e:2x2")


@pytest.mark.parametrize(
  ("devices", "sizes"),
  [(256, [1, 4, 16, 64, 256]), (8, [1, 4, 8]), (1, [1]), (12, [1, 4, 12])],
)
def test_candidates(devices: int, sizes: list[int]):
  assert search.candidates(devices) == sizes


def test_the_report_marks_programs_that_do_not_fit():
  from mae_jax.tools.plan import topology

  where = topology.Topology("v5e:2x4", jax.devices(), compiled_steps.CHIP)
  memory = compile_step.Memory(1_000_000, 2_000_000, 0, 5_000_000_000)
  text = format.text(made_up(fits=False, memory=memory, costs=None), where)
  assert "wants 5.00 GB, has 1.00 GB: DOES NOT FIT" in text
  assert "Estimate" not in text
  assert "mesh.fsdp" in text
  fitting = format.text(made_up(), where)
  assert "100 kB" not in fitting
  assert "Estimate, a roofline" in fitting
  assert "all-gather          3 a step, 0.01 GB sent by a chip" in fitting
  assert "a step >= 10.0 ms (bound by HBM): at most 6,400 images/s" in fitting


def test_the_images_that_hosts_must_read():
  from mae_jax.tools.plan import topology

  devices = [mock.Mock(process_index=k // 4, device_kind="x") for k in range(8)]
  where = topology.Topology("v5e:2x4", devices, compiled_steps.CHIP)
  text = format.text(made_up(), where)
  need = "to keep up, 2 hosts must read 3,200 images/s each"  # 6,400 in all
  assert f"{need}; inspect measures" in text
  assert f"{need}, and can read 3,200" in format.text(made_up(), where, 3200)
  assert (
    f"{need}, but can read 800: the input limits the run to 1,600 images/s, "
    "25% of that"
  ) in format.text(made_up(), where, 800)


def test_an_interrupted_search_recommends_the_best_so_far(monkeypatch, capsys):
  """A signal runs the cleanups of the block it arrives in."""
  from mae_jax.tools.plan import command, topology

  devices = jax.devices()
  where = topology.Topology("v5e:2x4", devices, compiled_steps.CHIP)
  costs = made_up().costs
  assert costs is not None
  speeds = iter((4e9, 1e9, 2e9))

  def compile_one(config: Config) -> compile_step.CompiledStep:
    flops = next(speeds, None)
    if flops is None:
      for undo in list(signals._undo.values()):
        undo()
      raise ConfigError("interrupted")
    slower = dataclasses.replace(costs, flops=flops, hbm_bytes=flops)
    return made_up(config, costs=slower)

  config = compiled_steps.config(train={"length": "1000 steps"})
  with pytest.raises(ConfigError, match="interrupted"):
    command._search(config, where, compile_one, (), 0)
  printed = capsys.readouterr().out
  assert "The fastest that fits so far: --config.data.batch_size=64" in printed
  # The second of three was the fastest.
  wanted = f"--config.model.remat={search.REMAT[1]} "
  assert wanted in printed.partition("so far: ")[2]


def test_rows_have_the_cells_of_their_headings():
  for found in (made_up(), made_up(fits=False)):
    assert len(format.row(found)) == len(format.HEADINGS)
  lines = tables.markdown([["1", "22"]], ["a", "b"]).splitlines()
  assert lines == ["| a | b  |", "| - | -- |", "| 1 | 22 |"]


def test_every_slice_has_hardware_figures():
  from mae_jax.tools.plan import topology

  for kind in (topology.TPUS | topology.GPUS).values():
    chip = hardware.CHIPS[kind]
    assert chip.flops > 1e13
    assert chip.hbm_bytes > 1e9
    assert chip.hbm_bandwidth > 1e11
    assert chip.send_bandwidth > 1e10
