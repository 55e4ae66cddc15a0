"""Tests of many runs trained as one program, and of their report."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from bench.lib import run_outputs
from mae_jax.config import (
  ClassifyConfig,
  Config,
  EvalConfig,
  LabelEfficiencyConfig,
)
from mae_jax.data import few_shot
from mae_jax.distributed import sharding
from mae_jax.evals import label_efficiency_report, load_model
from mae_jax.train import loop
from mae_jax.train import step as program
from mae_jax.train.run_data import RunData
from mae_jax.train.tasks import label_efficiency
from mae_jax.utils import signals
from mae_jax.utils.errors import ConfigError
from tests.helpers import runs, tiny

_PRETRAIN = tiny.config(
  train={"length": "3 steps"}, eval=EvalConfig(shots=(), images=0)
)


def config(**sections) -> Config:
  sections = {
    "task": "label_efficiency",
    "label_efficiency": LabelEfficiencyConfig(shots=(2, 0), seeds=2),
    "train": {
      "length": "4 steps",
      "log_every": "1 steps",
      "save_every": "2 steps",
    },
    "optim": {"layer_decay": 0.75},
    "classify": ClassifyConfig(drop_path=0.3, mixup=0.8),
    "eval": EvalConfig(shots=(), images=0),
  } | sections
  return tiny.config(**sections)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pretrained")
  runs.train(_PRETRAIN, workdir)
  return str(workdir)


def train(settings: Config, workdir, **mesh):
  where = runs.devices_mesh(**mesh)
  task, data = runs.open_task(settings, where)
  report = loop.run(task, data, settings, where, workdir)
  return report, params(settings, workdir, where)


def params(settings: Config, workdir, where):
  task, data = runs.open_task(settings, where)
  shapes = program.abstract_state(task)
  restored = loop.initial_state(task, data, settings, where, workdir)
  assert jax.tree.structure(restored) == jax.tree.structure(shapes)
  return jax.device_get(restored.params)


@pytest.fixture(scope="module")
def whole(pretrained, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  settings = config(init_from=pretrained)
  return workdir, settings, *train(settings, workdir)


def close(mine, its) -> None:
  np.testing.assert_allclose(mine, its, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
  "number", [1, 7]
)  # all members of a seed share one program
@pytest.mark.slow
def test_a_member_equals_a_single_run(whole, number):
  _, settings, _, members = whole
  mesh = runs.devices_mesh()
  task, data = runs.open_task(settings, mesh)
  member = task.trials[number]
  assert (member.start == label_efficiency.PRETRAINED) == (number < 4)
  assert member.shots == (2, 2, 0, 0)[number % 4]
  assert member.seed == number % 2
  alone = dataclasses.replace(
    settings,
    task="finetune",
    init_from=settings.init_from if number < 4 else "",
    data=dataclasses.replace(settings.data, shots=member.shots),
    train=dataclasses.replace(settings.train, seed=member.seed),
  )
  one, data = runs.open_task(alone, mesh)
  everything = RunData(
    dataclasses.replace(alone, data=dataclasses.replace(alone.data, shots=0)),
    mesh,
  )
  data.train_source = few_shot.limit_per_class(
    everything.train_source, member.shots, member.seed
  )
  shapes = program.abstract_state(one)
  places = jax.tree.map(lambda x: x.sharding, shapes)
  state = jax.jit(one.init, out_shardings=places)()
  if number < 4:
    loaded = one.load(settings.init_from, shapes.params)
    state = dataclasses.replace(state, params=loaded)
  stream = data.train_batches(0)
  with jax.set_mesh(mesh):
    step = program.jit_step(one.train_step, mesh, state)
    for _ in range(4):
      batch = sharding.to_global(mesh, next(stream), alone.data.batch_size)
      state, _ = step(state, batch)
  jax.tree.map(
    lambda mine, its: close(mine[number], its),
    members,
    jax.device_get(state.params),
  )


@pytest.mark.slow
def test_the_report_has_the_results_of_the_members(whole):
  _, settings, report, members = whole
  mesh = runs.devices_mesh()
  task, data = runs.open_task(settings, mesh)
  one, data = runs.open_task(
    dataclasses.replace(settings, task="finetune"), mesh
  )
  evaluate = one.evaluator(data)
  top1 = [
    evaluate(jax.tree.map(lambda x, i=i: x[i], members)).scalars["eval_top1"]
    for i in range(8)
  ]
  names = ("pre-trained_2", "pre-trained_all", "from_scratch_2")
  for name, values in zip(
    (*names, "from_scratch_all"), np.reshape(top1, (4, 2)), strict=True
  ):
    assert report.scalars[f"eval_top1/{name}"] == pytest.approx(values.mean())
    std = report.scalars[f"eval_top1_std/{name}"]
    assert std == pytest.approx(np.std(values, ddof=1))
  wanted = label_efficiency_report.compare(task.trials, np.array(top1))
  assert report.text == wanted.text
  np.testing.assert_array_equal(
    report.pictures["comparison"], wanted.pictures["comparison"]
  )


@pytest.mark.slow
def test_an_interrupted_comparison_resumes_exactly(whole, tmp_path):
  workdir, settings, _, members = whole
  interrupted = shutil.copytree(workdir, tmp_path / "interrupted")
  shutil.rmtree(interrupted / "checkpoints" / "4")
  _, again = train(settings, interrupted)
  jax.tree.map(np.testing.assert_array_equal, again, members)
  assert run_outputs.read_metrics(interrupted) == run_outputs.read_metrics(
    workdir
  )


@pytest.mark.slow
def test_devices_do_not_change_results(whole, tmp_path):
  _, settings, _, members = whole
  _, again = train(settings, tmp_path, devices=4, fsdp=2)
  jax.tree.map(close, again, members)


@pytest.mark.slow
def test_the_number_of_members_need_not_divide_by_devices(pretrained, tmp_path):
  settings = config(
    init_from=pretrained,
    label_efficiency=LabelEfficiencyConfig(shots=(2,), seeds=3, scratch=False),
    train={"length": "3 steps"},
  )
  report, alone = train(settings, tmp_path / "one")
  _, spread = train(settings, tmp_path / "eight", devices=8)
  jax.tree.map(close, alone, spread)
  assert set(report.scalars) == {
    "eval_top1/pre-trained_2",
    "eval_top1_std/pre-trained_2",
  }


@pytest.mark.slow
def test_pre_training_and_probes_run_from_one_recipe(tmp_path):
  """Runs pre-training and probes from a recipe alone."""
  recipe = tmp_path / "recipe.py"
  recipe.write_text(
    "from tests.helpers import tiny\n"
    "from mae_jax import config as c\n"
    "def get_config(arg=None):\n"
    "  args = c.parse_arg(arg, steps=9)\n"
    "  length = {'length': f'{args.steps} steps'}\n"
    "  return c.config_dict(tiny.config(train=length))\n"
  )
  settings = config(
    label_efficiency=LabelEfficiencyConfig(
      task="linprobe", pretrain=f"{recipe}:steps=3", shots=(3,), seeds=2
    ),
    optim={"lr": 1.0, "weight_decay": 0.0},
    classify=ClassifyConfig(head_std=0.1, norm_group=32),
  )
  workdir = str(tmp_path / "run")
  stop = signals.StopSignals()
  label_efficiency.run(settings, workdir, stop)
  records = run_outputs.read_metrics(tmp_path / "run")
  assert records[-1]["step"] == 4
  assert "eval_top1/pre-trained_3" in records[-1]
  assert (tmp_path / "run" / "comparison.png").stat().st_size > 1000
  assert (
    run_outputs.read_metrics(tmp_path / "run" / "pretrain")[-1]["step"] == 3
  )
  encoder = runs.params(tmp_path / "run" / "pretrain", _PRETRAIN)["model"]
  # A resumed run does not read init_from.
  shutil.rmtree(tmp_path / "run" / "pretrain")
  label_efficiency.run(settings, workdir, stop)
  assert not (tmp_path / "run" / "pretrain").exists()
  members = params(settings, workdir, runs.devices_mesh())["model"]["encoder"]
  kernel = np.asarray(members["patch_embed"]["kernel"])
  for number in range(2):
    np.testing.assert_array_equal(
      kernel[number], encoder["encoder"]["patch_embed"]["kernel"]
    )
    assert (kernel[2 + number] != kernel[0]).any()


@pytest.mark.parametrize(
  ("compare_settings", "text"),
  [
    (
      {"task": "pretrain"},
      "label_efficiency.task='pretrain' is not known: known are",
    ),
    ({"shots": ()}, r"label_efficiency.shots=\(\) compares nothing"),
    ({}, "nothing to start from: set --config.init_from=CHECKPOINT"),
    ({"pretrain": "nowhere.py"}, "recipe nowhere.py is not a file"),
    (
      {"pretrain": "configs/digits.py:steps=5"},
      "label_efficiency.pretrain=configs/digits.py:steps=5: "
      "optim.warmup='200 steps' is",
    ),
    (
      {"pretrain": "configs/digits_finetune.py"},
      "is of task=label_efficiency: name a recipe that pre-trains",
    ),
  ],
)
def test_a_mistake_is_one_line(tmp_path, compare_settings, text):
  def run() -> None:
    settings = config(
      label_efficiency=dataclasses.replace(
        config().label_efficiency, **compare_settings
      )
    )
    label_efficiency.run(settings, str(tmp_path), signals.StopSignals())

  with pytest.raises(ConfigError, match=text):
    run()
  assert not list(tmp_path.iterdir())


def test_pre_training_on_other_images_is_refused(tmp_path):
  settings = config(
    label_efficiency=dataclasses.replace(
      config().label_efficiency, pretrain="configs/digits.py:steps=9"
    ),
    data={"image_size": (12, 12)},
  )
  text = r"has data.image_size=\(8, 8\), and this config \(12, 12\)"
  with pytest.raises(ConfigError, match=text):
    label_efficiency.run(settings, str(tmp_path), signals.StopSignals())


@pytest.mark.slow
def test_a_comparison_cannot_be_a_start(whole, tmp_path):
  workdir, settings, *_ = whole
  text = f"trains many networks: .*such as {settings.init_from}, from which"
  again = dataclasses.replace(settings, init_from=str(workdir))
  with pytest.raises(ConfigError, match=text):
    train(again, tmp_path)
  with pytest.raises(ConfigError, match=text):
    load_model.load(workdir, runs.devices_mesh())


def test_held_out_images_are_needed(tmp_path):
  settings = config(data={"eval_split": ""})
  with pytest.raises(ConfigError, match="no held-out images to com"):
    runs.open_task(settings, runs.devices_mesh())
