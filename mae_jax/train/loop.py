"""The one loop: step, log, evaluate, save. It never knows which task runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from mae_jax import checkpoints, metrics, sharding
from mae_jax import config as config_lib
from mae_jax.evals import report


class Task(Protocol):
  """What the loop asks of a task."""

  @property
  def total_steps(self) -> int:
    """Where training ends."""

  @property
  def flops_per_image(self) -> int:
    """Of a training step, for utilisation."""

  @property
  def init(self) -> Callable[[], checkpoints.TrainState]:
    """Makes a new state; only ever traced."""

  @property
  def train_step(
    self,
  ) -> Callable[
    [checkpoints.TrainState, Any],
    tuple[checkpoints.TrainState, dict[str, jax.Array]],
  ]:
    """A pure function of state and global batch: state and scalar metrics."""

  @property
  def evaluate(self) -> Callable[[Mapping[str, Any]], report.Report]:
    """Measures parameters, by role."""

  def train_batches(self, start_step: int) -> Iterator[Any]:
    """This process's rows of every global batch from `start_step` on."""

  def interval(self, duration: str, field: str) -> int:
    """A Duration between events in steps; 0 for never."""


def abstract_state(task: Task, mesh: Mesh) -> checkpoints.TrainState:
  """The state as ShapeDtypeStructs, each with its sharding."""
  shapes = jax.eval_shape(task.init)
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    sharding.state_shardings(mesh, shapes),
  )


def compile_step(task: Task, mesh: Mesh) -> Any:
  """The jitted, sharded train step, which takes the state's memory over."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(task, mesh))
  return jax.jit(
    task.train_step,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def initial_state(
  task: Task,
  config: config_lib.Config,
  mesh: Mesh,
  checkpointer: checkpoints.Checkpointer,
) -> checkpoints.TrainState:
  """Where a run starts.

  In this order: the newest checkpoint of its workdir; the parameters named by
  `init_from`; scratch.
  """
  shapes = abstract_state(task, mesh)
  newest = checkpointer.latest_step()
  if newest is not None:
    return checkpointer.restore(newest, shapes)
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  if config.init_from:
    params = checkpoints.load_params(config.init_from, shapes.params)
    state = jax.jit(task.init, out_shardings=shardings)()
    return dataclasses.replace(state, params=params)
  return jax.jit(task.init, out_shardings=shardings)()


def run(
  task: Task,
  config: config_lib.Config,
  mesh: Mesh,
  workdir: epath.PathLike,
) -> report.Report:
  """Trains to the end, and says how it went.

  Args:
    task: what to train.
    config: the run; saved with every checkpoint.
    mesh: the devices.
    workdir: where checkpoints, logs and pictures go.

  Returns:
    The last evaluation.

  Raises:
    ConfigError: if something cannot work, before any step.
    TrainingError: if too many steps in a row were not finite.
  """
  workdir = epath.Path(workdir)
  due = _Due(task, config)
  checkpointer = checkpoints.Checkpointer(workdir, config.train.keep)
  state = initial_state(task, config, mesh, checkpointer)
  start = int(state.step)
  if jax.process_index() == 0:
    print(
      f"{'resuming at' if start else 'starting with'} step {start} of "
      f"{task.total_steps} on {mesh.size} {mesh.devices.flat[0].platform} "
      f"device(s); metrics and checkpoints go to {workdir}",
      flush=True,
    )
  writer = metrics.Writer(
    workdir,
    start_step=start,
    total_steps=task.total_steps,
    enabled=jax.process_index() == 0,
  )
  meter = metrics.Meter(
    mesh.devices, config.data.batch_size, task.flops_per_image
  )
  values: dict[str, jax.Array] = {}
  result = None

  def after_step(step: int, state: checkpoints.TrainState) -> None:
    """Logs, evaluates and saves: in this order.

    What is written about a step comes before its checkpoint, so that a resumed
    run finds the logs whole up to where it starts.
    """
    nonlocal result
    if due.log(step):
      scalars = {key: float(value) for key, value in values.items()}
      writer.scalars(step, scalars | meter.read())
    if due.evaluate(step):
      with meter.paused(values):
        try:
          result = task.evaluate(state.params)
        except Exception:
          checkpointer.save(step, state, config)  # training was not in vain
          raise
        _publish(result, writer, workdir, step)
    if due.save(step):
      with meter.paused(values):
        checkpointer.save(step, state, config)

  try:
    with jax.set_mesh(mesh):
      train_step = compile_step(task, mesh)
      batches = sharding.prefetch(
        mesh,
        task.train_batches(start),
        config.data.batch_size,
        ahead=config.data.prefetch,
      )
      for step in range(start + 1, task.total_steps + 1):
        previous = values
        state, values = train_step(state, next(batches))
        # Keeps the host two steps ahead of the devices, no more.
        jax.block_until_ready(previous)
        if _is_lost(previous, config):
          checkpointer.save(step, state, config)
          raise config_lib.TrainingError(
            f"stopped at step {step}: loss or gradient was not finite for "
            f"train.max_bad_steps={config.train.max_bad_steps} steps in a row. "
            "They changed nothing, and what was learned before is saved: lower "
            "optim.blr, set optim.grad_clip or use model.dtype=float32, and "
            "start from it in another workdir with "
            f"--config.init_from={workdir}"
          )
        meter.tick(values)
        writer.advance()
        after_step(step, state)
      if result is None:  # there was nothing left to train
        result = task.evaluate(state.params)
        _save_pictures(result, workdir)
  finally:
    checkpointer.close()
    writer.close()
  if jax.process_index() == 0:
    print(_summary(result, workdir, int(state.step), meter, values))
  return result


class _Due:
  """Says what is due after a step; after the last one, everything is."""

  def __init__(self, task: Task, config: config_lib.Config):
    train = config.train
    self._total = task.total_steps
    self._log = task.interval(train.log_every, "train.log_every")
    self._save = task.interval(train.save_every, "train.save_every")
    self._evaluate = task.interval(config.eval.every, "eval.every")
    self._save_seconds = 60 * train.save_minutes
    self._saved_at = time.monotonic()

  def log(self, step: int) -> bool:
    return self._due(self._log, step)

  def evaluate(self, step: int) -> bool:
    return self._due(self._evaluate, step)

  def save(self, step: int) -> bool:
    due = self._due(self._save, step)
    # Clocks differ between hosts, so that the first one's word goes. To ask it
    # makes all hosts wait: not at every step, only at those that log.
    if self._save_seconds and not due and self.log(step):
      late = time.monotonic() - self._saved_at > self._save_seconds
      due = bool(multihost_utils.broadcast_one_to_all(late))
    if due:
      self._saved_at = time.monotonic()
    return due

  def _due(self, every: int, step: int) -> bool:
    return step == self._total or (every > 0 and step % every == 0)


def _is_lost(
  values: Mapping[str, jax.Array], config: config_lib.Config
) -> bool:
  if not values:  # before the first step
    return False
  return int(values["skipped_in_a_row"]) >= config.train.max_bad_steps


def _publish(
  result: report.Report,
  writer: metrics.Writer,
  workdir: epath.Path,
  step: int,
) -> None:
  if result.scalars:
    writer.scalars(step, result.scalars)
  for name, pixels in result.pictures.items():
    writer.image(step, name, pixels)
  _save_pictures(result, workdir)


def _save_pictures(result: report.Report, workdir: epath.Path) -> None:
  if jax.process_index() != 0:
    return
  for name, pixels in result.pictures.items():
    with (workdir / f"{name}.png").open("wb") as file:
      Image.fromarray(pixels).save(file, format="png")


def _summary(
  result: report.Report,
  workdir: epath.Path,
  step: int,
  meter: metrics.Meter,
  values: Mapping[str, jax.Array],
) -> str:
  if values:
    lines = [
      f"trained to step {step} in {meter.seconds:.1f} s after "
      f"{meter.compile_seconds:.1f} s of compiling; "
      f"training loss {float(values['loss']):.4f}"
    ]
  else:
    lines = [f"all {step} steps were already done"]
  if "eval_loss" in result.scalars:
    lines.append(f"held-out loss {result.scalars['eval_loss']:.4f}")
  if result.text:
    lines += ["", result.text, ""]
  lines += [f"{name}: {workdir / name}.png" for name in result.pictures]
  return "\n".join(lines)
