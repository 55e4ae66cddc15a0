"""Tests that the planned step is the one that `main` trains."""

from __future__ import annotations

import jax
import pytest

from mae_jax.config import Config
from mae_jax.distributed import sharding
from mae_jax.tools.plan import planned_step
from mae_jax.train import step as program_lib
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny
from tests.helpers.params import slow


def planned(config: Config, examples: int, classes: int):
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  return planned_step.planned(config, mesh, examples, classes)


@pytest.mark.parametrize(
  "task", ["pretrain", slow("finetune"), slow("linprobe")]
)
def test_the_same_program_as_a_run_with_data(task: str):
  config = tiny.config(
    task=task,
    mesh={"fsdp": 2},
    data={"batch_size": 32},
    classify={"norm_group": 16},
  )
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  run, data = runs.open_task(config, mesh)
  found = planned(config, data.info.num_examples, 10)
  assert found.task.total_steps == run.total_steps
  assert found.task.flops_per_image == run.flops_per_image
  state = program_lib.abstract_state(run)
  assert program_lib.abstract_state(found.task) == state
  batch = next(data.train_batches(0))
  placed = sharding.to_global(mesh, batch, config.data.batch_size)
  assert {k: (v.shape, v.dtype, v.sharding) for k, v in placed.items()} == {
    k: (v.shape, v.dtype, v.sharding) for k, v in found.batch().items()
  }
  texts = []
  with jax.set_mesh(mesh):
    for each in (run, found.task):
      step = program_lib.jit_step(each.train_step, mesh, state)
      texts.append(step.lower(state, found.batch()).as_text())
  assert texts[0] == texts[1]


def test_tokens():
  config = tiny.config(data={"batch_size": 8})
  assert planned(config, 100, 10).tokens == (5, 17)
  config = tiny.config(task="finetune", data={"batch_size": 8})
  assert planned(config, 100, 10).tokens == (17,)


@pytest.mark.parametrize(
  ("sections", "text"),
  [
    (
      {"task": "label_efficiency"},
      "task='label_efficiency' has no train step to plan",
    ),
    ({"data": {"batch_size": 12}}, "batch_size=12 is not a multiple of the 8"),
    (
      {"data": {"batch_size": 8}, "optim": {"accum_steps": 2}},
      "accum_steps=2 does not divide",
    ),
    ({"train": {"length": "0 steps"}}, "training lasts 0 steps"),
    (
      {"task": "linprobe", "classify": {"mixup": 0.8}},
      "classify.mixup=0.8 is a setting of fine-tuning",
    ),
  ],
)
def test_configs_that_cannot_be_planned_are_refused(sections, text: str):
  config = tiny.config(**({"data": {"batch_size": 32}} | sections))
  with pytest.raises(ConfigError, match=text):
    planned(config, 1000, 10)
