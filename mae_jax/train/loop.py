"""The one loop: step, log, evaluate, save. It never knows which task runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from mae_jax import checkpoints, distributed
from mae_jax.checkpoints import workdir as workdirs
from mae_jax.config import Config
from mae_jax.distributed import sharding, vote
from mae_jax.evals import results
from mae_jax.train import health as watch_lib
from mae_jax.train import metrics, run_info
from mae_jax.train import step as program
from mae_jax.utils import console, startup, storage
from mae_jax.utils import signals as interrupts_lib
from mae_jax.utils.errors import TrainingError


class Task(program.ShardedStep, Protocol):
  """What the loop asks of a task."""

  @property
  def total_steps(self) -> int:
    """Where training ends."""

  @property
  def flops_per_image(self) -> int:
    """Of a training step, for utilization."""

  @property
  def num_examples(self) -> int:
    """Size of the training set."""

  @property
  def data_identity(self) -> Mapping[str, int | str]:
    """Tells the training data from others, wherever they are."""

  @property
  def class_names(self) -> Sequence[str]:
    """Of the labels; () if there are none."""

  @property
  def unreadable(self) -> watch_lib.Unreadable:
    """Names the images that could not be read."""

  @property
  def evaluate(self) -> Callable[[Mapping[str, Any]], results.Report]:
    """Measures parameters, by role."""

  def train_batches(self, start_step: int) -> Iterator[Any]:
    """This process's rows of every global batch from `start_step` on."""

  def interval(self, duration: str, field: str) -> int:
    """A Duration between events in steps; 0 for never."""

  def load(self, path: str, like: Any) -> Any:
    """The parameters by role that a new run starts from, out of a checkpoint.

    `like` is what `init` makes, of ShapeDtypeStructs with shardings. What the
    checkpoint does not have is drawn as in `init`.
    """

  def fit(self, state: checkpoints.TrainState) -> checkpoints.TrainState:
    """A new state, with what is to be learned of the data before training."""


def initial_state(
  task: Task,
  config: Config,
  mesh: Mesh,
  workdir: epath.PathLike,
) -> checkpoints.TrainState:
  """Where a run starts.

  In this order: the newest whole checkpoint of its workdir; the parameters
  named by `init_from`; scratch.
  """
  shapes = program.abstract_state(task)
  run = checkpoints.CheckpointMetadata(
    config, task.data_identity, task.class_names
  )
  restored = checkpoints.restore_newest(workdir, run, shapes)
  if restored is not None:
    return restored
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  if config.init_from:
    params = task.load(config.init_from, shapes.params)
    state = jax.jit(task.init, out_shardings=shardings)()
    return dataclasses.replace(state, params=params)
  return task.fit(jax.jit(task.init, out_shardings=shardings)())


def run(
  task: Task,
  config: Config,
  mesh: Mesh,
  workdir: epath.PathLike,
  interrupts: interrupts_lib.StopSignals | None = None,
) -> results.Report:
  """Trains to the end, and says how it went.

  Args:
    task: what to train.
    config: the run; saved with every checkpoint.
    mesh: the devices.
    workdir: where checkpoints, logs and pictures go; one run at a time.
    interrupts: signals that ask the run to stop; None for none.

  Returns:
    The last evaluation.

  Raises:
    ConfigError: if something cannot work, before any step.
    TrainingError: if training cannot go on; what was learned is kept.
    Stopped: if a signal asked for it; everything is saved.
  """
  first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(workdirs.hold(workdir, owner=first))
    with storage.os_errors(held.path):
      state = initial_state(task, config, mesh, held.path)
    start = int(state.step)
    startup.mark("state")
    if first:
      origin = f"starting from {config.init_from or 'scratch'} with"
      console.info(
        f"{'resuming at' if start else origin} step {start} of "
        f"{task.total_steps} on {mesh.size} {mesh.devices.flat[0].platform} "
        f"device(s); metrics and checkpoints go to {workdir}"
      )
    with storage.os_errors(held.path):
      writer = metrics.Writer(
        held.path, start_step=start, total_steps=task.total_steps, enabled=first
      )
    stack.callback(writer.close)
    if first:
      _tell_about(held.path, config, mesh)
    checkpointer = stack.enter_context(
      checkpoints.Checkpointer(
        held.path,
        config.train.keep,
        checkpoints.CheckpointMetadata(
          config, task.data_identity, task.class_names
        ),
      )
    )
    runner = Trainer(
      task,
      config,
      mesh,
      held,
      interrupts or interrupts_lib.StopSignals(),
      writer,
      checkpointer,
    )
    with jax.set_mesh(mesh):
      result = runner.train(state, start)
  if first:
    console.info(runner.summary(result))
  return result


def _tell_about(workdir: epath.Path, config: Config, mesh: Mesh) -> None:
  try:
    run_info.write_run_info(workdir, config, mesh)
  except OSError as error:  # training does without
    console.warn(f"{workdir / run_info.FILE} cannot be written: {error}")


class Trainer:
  """The loop and what it drives."""

  def __init__(
    self,
    task: Task,
    config: Config,
    mesh: Mesh,
    held: workdirs.Workdir,
    interrupts: interrupts_lib.StopSignals,
    writer: metrics.Writer,
    checkpointer: checkpoints.Checkpointer,
  ):
    self._task, self._config, self._mesh = task, config, mesh
    self._held, self._interrupts = held, interrupts
    self._writer, self._checkpointer = writer, checkpointer
    self._due = Schedule(task, config)
    # Of several processes, on whether to stop and whether it is time to save.
    self._votes = (
      None if distributed.single_process() else vote.AsyncVote(mesh, 2)
    )
    self._stop = self._late = False
    self._meter = metrics.Meter(
      mesh.devices, config.data.batch_size, task.flops_per_image
    )
    self._step = 0
    self._start: dict[str, float] = {}  # until it is logged
    self._values: Mapping[str, jax.Array] = {}
    self._result: results.Report | None = None

  def train(self, state: checkpoints.TrainState, start: int) -> results.Report:
    """Steps from `start` to the end; returns the last evaluation."""
    task = self._task
    self._step = start
    (evaluated, *_) = distributed.gather("yes" * self._writer.evaluated)
    if start and self._due.evaluate(start) and not evaluated:
      self._evaluate(state)  # the run was stopped before it
      startup.mark("evaluation")
    watch = watch_lib.HealthMonitor(
      self._config,
      task.num_examples,
      task.unreadable,
      state.health,
      self._held.path,
    )
    if problem := watch.lost(start, int(state.health.consecutive_skipped)):
      raise TrainingError(f"step {start}: {problem.text}")
    train_step = program.jit_step(
      task.train_step, self._mesh, state, overlap=self._config.mesh.overlap
    )
    batches = sharding.prefetch(
      self._mesh,
      task.train_batches(start),
      self._config.data.batch_size,
      ahead=self._config.data.prefetch,
    )
    previous_batch: Any = None
    with contextlib.ExitStack() as stack:
      for step in range(start + 1, task.total_steps + 1):
        try:
          batch, previous = next(batches), self._values
        except Exception:
          # Of several processes the others are in a step, and cannot save.
          if self._step > start and distributed.single_process():
            self._save(state, wait=True)  # training was not in vain
          raise
        startup.mark("images")
        state, self._values = train_step(state, batch)
        if self._votes:
          self._votes.cast(self._interrupts.requested, self._due.late())
        # Waits for the step before this one, so that the host is never more
        # than two steps ahead of the devices.
        problem = watch.look(step - 1, previous)
        self._step = step
        self._meter.tick(self._values)
        self._writer.advance()
        if step == start + 1:
          stack.enter_context(self._interrupts.unsaved_work())
          self._tell_start()
        if problem:
          self._give_up(problem, state, previous_batch)
        last = step == task.total_steps
        if last and (problem := watch.look(step, self._values)):
          self._give_up(problem, state, batch)
        self._after_step(state)
        previous_batch = batch
    if self._result is None:  # there was nothing left to train
      self._result = task.evaluate(state.params)
      self._save_pictures(self._result)
    return self._result

  def _after_step(self, state: checkpoints.TrainState) -> None:
    """Logs, evaluates and saves: in this order.

    What is written about a step comes before its checkpoint, so that a resumed
    run finds the logs whole up to where it starts.
    """
    last = self._step == self._task.total_steps
    self._log()
    self._ask()
    stop = not last and self._stop
    if self._due.evaluate(self._step) and not stop:
      with self._meter.paused(self._values):
        try:
          self._evaluate(state)
        except interrupts_lib.RunInterrupted:
          self._interrupts.agree_to_stop()
          stop = True
        except Exception:
          if distributed.single_process():  # as above
            self._save(state, wait=True)
          raise
    if self._due.save(self._step, self._late) or stop:
      with self._meter.paused(self._values):
        self._save(state, wait=stop or last)
    if stop:
      raise interrupts_lib.RunInterrupted(
        f"stopped after step {self._step} of {self._task.total_steps}, which "
        "is saved: the same command goes on from there"
      )

  def _ask(self) -> None:
    """Whether to stop or save; of several processes, by the last ballot."""
    if self._votes is None:
      self._stop, self._late = self._interrupts.requested, self._due.late()
      return
    self._stop, self._late = self._votes.count()
    if self._stop:
      self._interrupts.agree_to_stop()

  def _tell_start(self) -> None:
    startup.mark("compile")
    self._start = startup.first_step()
    if self._start:
      self._writer.say(startup.describe(self._start))

  def _log(self) -> None:
    if self._due.log(self._step):
      scalars = {key: float(value) for key, value in self._values.items()}
      scalars |= self._meter.read() | self._start
      self._writer.scalars(self._step, scalars)
      self._start = {}

  def _evaluate(self, state: checkpoints.TrainState) -> None:
    begin = time.monotonic()
    with self._interrupts.interruptible():
      result = self._task.evaluate(state.params)
    seconds = {"eval_seconds": time.monotonic() - begin}
    self._writer.scalars(self._step, {**result.scalars, **seconds})
    for name, pixels in result.pictures.items():
      self._writer.image(self._step, name, pixels)
    self._save_pictures(result)
    self._result = result

  def _save(self, state: checkpoints.TrainState, *, wait: bool = False) -> None:
    """Makes the logs safe, then writes a checkpoint."""
    for _ in range(2 if wait else 1):
      failure: OSError | None = None
      try:
        self._held.check()
        self._writer.flush()
      except OSError as error:
        failure = error
      except TrainingError:
        self._writer.abandon()
        raise
      failures = distributed.gather(
        console.first_line(failure) if failure else ""
      )
      if not any(failures):
        self._checkpointer.save(self._step, state, wait=wait)
        return
      self._checkpointer.failed(
        self._step, checkpoints.combined_error(failures)
      )

  def _save_pictures(self, result: results.Report) -> None:
    if jax.process_index() != 0:
      return
    for name, pixels in result.pictures.items():
      picture = io.BytesIO()
      Image.fromarray(pixels).save(picture, format="png")
      try:
        storage.write_atomic(
          self._held.path / f"{name}.png", picture.getvalue()
        )
      except OSError as error:
        console.warn(f"{name}.png could not be written: {error}")

  def _give_up(
    self, problem: watch_lib.Problem, state: checkpoints.TrainState, batch: Any
  ) -> None:
    """Keeps what was learned, and what may be to blame; raises."""
    text = f"stopped at step {self._step}: {problem.text}"
    if problem.keep_inputs:
      with contextlib.suppress(OSError):  # the checkpoint matters more
        path = watch_lib.save_inputs(self._held.path, problem.step, batch)
        text += f". What step {problem.step} was given is in {path}"
    if problem.keep_state:
      self._log()
      self._save(state, wait=True)
    raise TrainingError(text)

  def summary(self, result: results.Report) -> str:
    """What a user wants to know at the end."""
    if self._values:
      lines = [
        f"trained to step {self._step} in {self._meter.seconds:.1f} s after "
        f"{self._meter.compile_seconds:.1f} s of compiling; "
        f"training loss {float(self._values['loss']):.4f}"
      ]
    else:
      lines = [f"all {self._step} steps were already done"]
    if "eval_loss" in result.scalars:
      lines.append(f"held-out loss {result.scalars['eval_loss']:.4f}")
    if result.text:
      lines += ["", result.text, ""]
    lines += [
      f"{name}: {self._held.path / name}.png" for name in result.pictures
    ]
    return "\n".join(lines)


class Schedule:
  """Decides after which steps to log, evaluate and save.

  After the last step everything is due.
  """

  def __init__(self, task: Task, config: Config):
    train = config.train
    self._total = task.total_steps
    self._log = task.interval(train.log_every, "train.log_every")
    self._save = task.interval(train.save_every, "train.save_every")
    self._evaluate = task.interval(config.eval.every, "eval.every")
    self._save_seconds = 60 * train.save_every_minutes
    self._saved_at, self._saved_step = time.monotonic(), 0

  def log(self, step: int) -> bool:
    """Whether to log after `step`."""
    return self._due(self._log, step)

  def evaluate(self, step: int) -> bool:
    """Whether to evaluate after `step`."""
    return self._due(self._evaluate, step)

  def late(self) -> bool:
    """Whether it is time to save, by this process's clock."""
    waited = time.monotonic() - self._saved_at
    return 0 < self._save_seconds < waited

  def save(self, step: int, late: bool) -> bool:
    """Whether to save after `step`; `late`: what the processes agreed on."""
    # A vote that was cast before the last save is about that one.
    late = late and step > self._saved_step + 1
    due = self._due(self._save, step) or late
    if due:
      self._saved_at, self._saved_step = time.monotonic(), step
    return due

  def _due(self, every: int, step: int) -> bool:
    return step == self._total or (every > 0 and step % every == 0)
