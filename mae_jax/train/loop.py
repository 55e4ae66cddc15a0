"""The training loop: next batch, step, health, log, evaluate, save, stop.

The loop knows no task: `tasks.base.Task` is all that it asks of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from mae_jax import checkpoints, distributed
from mae_jax.checkpoints import TrainState
from mae_jax.checkpoints.workdir import Workdir, hold
from mae_jax.config import Config
from mae_jax.distributed import sharding, vote
from mae_jax.evals.results import Report
from mae_jax.models import classifiers
from mae_jax.train import best as best_lib
from mae_jax.train import health, metrics, profiler, run_info
from mae_jax.train import step as step_lib
from mae_jax.train.sinks import trackers
from mae_jax.train.sinks.callback import OnMetrics
from mae_jax.train.tasks.base import Task
from mae_jax.utils import console, hardware, signals, startup, storage
from mae_jax.utils.errors import TrainingError

if TYPE_CHECKING:
  from mae_jax.train.run_data import RunData


def train(
  make_task: Callable[[Config, Mesh], Task],
  config: Config,
  workdir: str,
  stop: signals.StopSignals,
  on_metrics: OnMetrics | None = None,
) -> None:
  """Trains a task from start to end, or resumes an interrupted run.

  Args:
    make_task: the class of the task.
    config: settings of the run.
    workdir: directory for checkpoints, logs and pictures.
    stop: the signals that ask the run to stop.
    on_metrics: called on process 0 with each record that is logged, as
      {"step": 50, "loss": ...}. What it raises ends the run.

  Raises:
    ConfigError: if something cannot work, before any step.
    TrainingError: if training cannot continue; what was learned is saved.
    RunInterrupted: after a signal; everything is saved.
  """
  trackers.check(config)
  mesh = sharding.make_mesh(config.mesh)
  startup.mark("devices")
  task = make_task(config, mesh)
  # TensorFlow takes seconds to import; wrong settings are reported before.
  from mae_jax.train.run_data import RunData

  data = RunData(config, mesh)
  task.prepare(data.info)
  run(task, data, config, mesh, workdir, stop, on_metrics)


def initial_state(
  task: Task, data: RunData, config: Config, mesh: Mesh, workdir: epath.PathLike
) -> TrainState:
  """Returns the state that a run starts from.

  The newest whole checkpoint of the workdir comes first, then the parameters of
  `init_from`, then random initialization.
  """
  shapes = step_lib.abstract_state(task)
  restored = checkpoints.restore_newest(
    workdir, _metadata(task, config), shapes
  )
  if restored is not None:
    return restored
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  state = jax.jit(task.init, out_shardings=shardings)()
  if config.init_from:
    params = task.load(config.init_from, shapes.params)
    state = dataclasses.replace(state, params=params)
  return task.fit(state, data)


def _metadata(task: Task, config: Config) -> checkpoints.CheckpointMetadata:
  info = task.info
  return checkpoints.CheckpointMetadata(config, info.identity, info.class_names)


def run(
  task: Task,
  data: RunData,
  config: Config,
  mesh: Mesh,
  workdir: epath.PathLike,
  stop: signals.StopSignals | None = None,
  on_metrics: OnMetrics | None = None,
) -> Report:
  """Trains a prepared task to the end.

  Args:
    task: what to train.
    data: the images.
    config: settings of the run; saved with every checkpoint.
    mesh: the devices.
    workdir: directory for checkpoints, logs and pictures; one run at a time.
    stop: the signals that ask the run to stop; None for none.
    on_metrics: called on process 0 with each record that is logged.

  Returns:
    The last evaluation.

  Raises:
    ConfigError: if something cannot work, before any step.
    TrainingError: if training cannot continue; what was learned is saved.
    RunInterrupted: after a signal; everything is saved.
  """
  first = jax.process_index() == 0
  evaluate = task.evaluator(data)
  best = best_lib.follow(task, data, config)
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(hold(workdir, owner=first))
    with storage.os_errors(held.path):
      state = initial_state(task, data, config, mesh, held.path)
    start = int(state.step)
    startup.mark("state")
    if first:
      origin = f"starting from {config.init_from or 'scratch'} with"
      console.info(
        f"{'resuming at' if start else origin} step {start} of "
        f"{task.total_steps} on {mesh.size} {mesh.devices.flat[0].platform} "
        f"device(s); metrics and checkpoints go to {workdir}"
      )
      if slow := hardware.slow_dtype(mesh.devices.flat[0], config.model.dtype):
        console.warn(slow)
    with storage.os_errors(held.path):
      writer = metrics.Writer(
        held.path,
        start_step=start,
        total_steps=task.total_steps,
        enabled=first,
        open_trackers=lambda: trackers.open_all(config, held.path),
        on_metrics=on_metrics,
      )
    stack.callback(writer.close)
    best.resume(writer.evaluations)
    if first:
      _write_run_info(held.path, config, mesh, task.total_steps, state.params)
    retention = checkpoints.Retention(
      config.train.keep,
      task.interval(config.train.keep_every, "train.keep_every"),
      list(best.steps),
    )
    if first and start:
      best_lib.warn_of_kept(held.path, best, retention)
    checkpointer = stack.enter_context(
      checkpoints.Checkpointer(held.path, retention, _metadata(task, config))
    )
    trainer = Trainer(
      task,
      data,
      config,
      mesh,
      held,
      stop or signals.StopSignals(),
      writer,
      checkpointer,
      evaluate,
      best,
      retention,
    )
    with jax.set_mesh(mesh):
      result = trainer.train(state)
  if first:
    console.info(trainer.summary(result))
    if result.warning:
      console.warn(result.warning)
  return result


def _write_run_info(
  workdir: epath.Path,
  config: Config,
  mesh: Mesh,
  total_steps: int,
  params: Mapping[str, Any],
) -> None:
  trained = {k: v for k, v in params.items() if k != classifiers.AVERAGED}
  num_params = sum(leaf.size for leaf in jax.tree.leaves(trained))
  try:
    run_info.write_run_info(workdir, config, mesh, total_steps, num_params)
  except OSError as error:  # training works without the file
    console.warn(f"{workdir / run_info.FILE} cannot be written: {error}")


@dataclasses.dataclass
class Trainer:
  """The state of the loop, and the objects that it drives."""

  _task: Task
  _data: RunData
  _config: Config
  _mesh: Mesh
  _held: Workdir
  _signals: signals.StopSignals
  _writer: metrics.Writer
  _checkpointer: checkpoints.Checkpointer
  _evaluate_params: Callable[[Mapping[str, Any]], Report]
  _best: best_lib.BestEvaluation
  _retention: checkpoints.Retention

  def __post_init__(self):
    config, mesh = self._config, self._mesh
    self._schedule = Schedule(self._task, config)
    # With several processes: votes on whether to stop and whether to save.
    self._votes = (
      None if distributed.single_process() else vote.AsyncVote(mesh, 2)
    )
    self._stop = self._overdue = False
    self._meter = metrics.Meter(
      mesh.devices, config.data.batch_size, self._task.flops_per_image
    )
    self._first = self._step = 0
    self._start_times: dict[str, float] = {}  # until they are logged
    self._values: Mapping[str, jax.Array] = {}
    self._result: Report | None = None

  def train(self, state: TrainState) -> Report:
    """Trains from `state.step` to the end; returns the last evaluation."""
    task, data = self._task, self._config.data
    self._first = self._step = start = int(state.step)
    if start:
      self._evaluate_if_missing(state)
    monitor = health.HealthMonitor(
      self._config,
      task.info.num_examples,
      self._data.bad_images,
      state.health,
      self._held.path,
    )
    monitor.check_start(start, state.health)
    train_step = step_lib.jit_step(
      task.train_step, self._mesh, state, overlap=self._config.mesh.overlap
    )
    batches = sharding.prefetch(
      self._mesh,
      task.train_batches(self._data, start),
      data.batch_size,
      ahead=data.prefetch,
    )
    profile = profiler.Profiler(
      self._config.train,
      self._held.path,
      task.total_steps,
      enabled=jax.process_index() == 0,
    )
    batch = None
    with contextlib.ExitStack() as stack:
      stack.callback(profile.stop)
      for step in range(start + 1, task.total_steps + 1):
        if self._best.exhausted:
          self._writer.end()
          break
        previous_batch, previous_values = batch, self._values
        with self._saved_if_it_fails(state):
          batch = next(batches)
        startup.mark("images")
        if profile.starts(step):
          with self._meter.paused(previous_values):
            profile.start()
        with profile.annotate(step):
          state, self._values = train_step(state, batch)
        self._vote()
        # Waits for the step before this one, so that the host is never more
        # than two steps ahead of the devices.
        problem = monitor.check(step - 1, previous_values)
        self._step = step
        self._meter.tick(self._values)
        if profile.ends(step):
          with self._meter.paused(self._values):
            profile.stop()
        self._writer.advance()
        if step == start + 1:
          stack.enter_context(self._signals.unsaved_work())
          self._report_start()
        if problem:
          self._give_up(problem, state, previous_batch)
        if step == task.total_steps and (
          problem := monitor.check(step, self._values)
        ):
          self._give_up(problem, state, batch)
        # What is written about a step comes before its checkpoint, so that a
        # resumed run finds its logs complete.
        self._log()
        self._count_votes()
        self._evaluate_if_due(state)
        self._save_if_due(state)
        self._stop_if_asked()
    if self._result is None:  # nothing was left to train
      self._result = self._evaluate_params(state.params)
      self._save_pictures(self._result)
    return self._result

  @property
  def _last(self) -> bool:
    return self._step == self._task.total_steps

  def _evaluate_if_missing(self, state: TrainState) -> None:
    """Evaluates a resumed run that was stopped before its evaluation."""
    evaluated = distributed.from_first(
      any(each["step"] == self._step for each in self._writer.evaluations)
    )
    if self._schedule.evaluate(self._step) and not evaluated:
      self._evaluate(state)
      startup.mark("evaluation")

  @contextlib.contextmanager
  def _saved_if_it_fails(self, state: TrainState) -> Iterator[None]:
    """Saves the state if the block raises, so that training is not lost."""
    try:
      yield
    except Exception:
      # Several processes cannot save: the others are in a step.
      if self._step > self._first and distributed.single_process():
        self._save(state, wait=True)
      raise

  def _vote(self) -> None:
    if self._votes:
      self._votes.cast(self._signals.requested, self._schedule.overdue())

  def _count_votes(self) -> None:
    """Decides whether to stop or save; with several processes, by vote."""
    if self._votes is None:
      self._stop = self._signals.requested
      self._overdue = self._schedule.overdue()
    else:
      self._stop, self._overdue = self._votes.count()
      if self._stop:
        self._signals.agree_to_stop()
    self._stop = self._stop and not self._last

  def _report_start(self) -> None:
    startup.mark("compile")
    self._start_times = startup.first_step()
    if self._start_times:
      self._writer.say(startup.describe(self._start_times))

  def _log(self) -> None:
    if self._schedule.log(self._step):
      scalars = {key: float(value) for key, value in self._values.items()}
      scalars |= self._meter.read() | self._start_times
      self._writer.scalars(self._step, scalars)
      self._start_times = {}

  def _evaluate_if_due(self, state: TrainState) -> None:
    if self._stop or not self._schedule.evaluate(self._step):
      return
    with self._meter.paused(self._values):
      try:
        with self._saved_if_it_fails(state):
          self._evaluate(state)
      except signals.RunInterrupted:
        self._signals.agree_to_stop()
        self._stop = True

  def _evaluate(self, state: TrainState) -> None:
    begin = time.monotonic()
    with self._signals.interruptible():
      result = self._evaluate_params(state.params)
    seconds = {"eval_seconds": time.monotonic() - begin}
    self._writer.scalars(self._step, {**result.scalars, **seconds})
    if self._best.add(self._step, result.scalars):
      self._retention.best.append(self._step)
    for name, pixels in result.pictures.items():
      self._writer.image(self._step, name, pixels)
    self._save_pictures(result)
    self._result = result

  def _save_if_due(self, state: TrainState) -> None:
    ended = self._stop or self._best.exhausted
    due = self._schedule.save(self._step, self._overdue)
    if due or ended or self._best.step == self._step:
      with self._meter.paused(self._values):
        self._save(state, wait=ended or self._last)

  def _stop_if_asked(self) -> None:
    if self._stop:
      raise signals.RunInterrupted(
        f"stopped after step {self._step} of {self._task.total_steps}, which "
        "is saved: the same command resumes from there"
      )

  def _save(self, state: TrainState, *, wait: bool = False) -> None:
    """Flushes the logs, then writes a checkpoint."""

    def flush() -> None:
      try:
        self._held.check()
      except TrainingError:
        self._writer.abandon()
        raise
      self._writer.flush()

    for _ in range(2 if wait else 1):
      error = checkpoints.run_on_all(flush, OSError)
      if error is None:
        self._checkpointer.save(self._step, state, wait=wait)
        return
      self._checkpointer.failed(self._step, error)

  def _save_pictures(self, result: Report) -> None:
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
    self, problem: health.Problem, state: TrainState, batch: Any
  ) -> None:
    """Saves what was learned, and the inputs that may be the cause; raises."""
    text = f"stopped at step {self._step}: {problem.text}"
    if problem.keep_inputs:
      with contextlib.suppress(OSError):  # the checkpoint matters more
        path = health.save_inputs(self._held.path, problem.step, batch)
        text += f". The inputs of step {problem.step} are in {path}"
    if problem.keep_state:
      self._log()
      self._save(state, wait=True)
    raise TrainingError(text)

  def summary(self, result: Report) -> str:
    """Describes the finished run, in a few lines."""
    if self._values:
      self._meter.read()  # counts the last steps
      lines = [
        f"trained to step {self._step} in {self._meter.seconds:.1f} s after "
        f"{self._meter.compile_seconds:.1f} s of compiling; "
        f"training loss {float(self._values['loss']):.4f}"
      ]
    else:
      lines = [f"all {self._step} steps were already done"]
    if self._best.exhausted:
      lines.append(
        f"ended early: the last {self._best.waited} evaluation(s) were not "
        f"better (train.patience={self._best.patience}). A larger patience "
        "trains on"
      )
    if "eval_loss" in result.scalars:
      lines.append(f"held-out loss {result.scalars['eval_loss']:.4f}")
    if result.text:
      lines += ["", result.text, ""]
    if self._best.metric:
      lines.append(self._describe_best())
    lines += [
      f"{name}: {self._held.path / name}.png" for name in result.pictures
    ]
    return "\n".join(lines)

  def _describe_best(self) -> str:
    path = self._held.path / "checkpoints" / str(self._best.step)
    if self._best.step is None:
      return str(self._best)
    kept = f"kept in {path}" if path.exists() else "which has no checkpoint"
    return f"{self._best}, {kept}"


class Schedule:
  """Decides after which steps to log, evaluate and save.

  After the last step everything is due.
  """

  def __init__(self, task: Task, config: Config):
    train = config.train
    self._total = task.total_steps
    self._log = task.interval(train.log_every, "train.log_every")
    self._save = task.interval(train.save_every, "train.save_every")
    self._keep = task.interval(train.keep_every, "train.keep_every")
    self._evaluate = task.interval(config.eval.every, "eval.every")
    self._save_seconds = 60 * train.save_every_minutes
    self._saved_at, self._saved_step = time.monotonic(), 0

  def log(self, step: int) -> bool:
    """Checks whether to log after `step`."""
    return self._due(self._log, step)

  def evaluate(self, step: int) -> bool:
    """Checks whether to evaluate after `step`."""
    return self._due(self._evaluate, step)

  def overdue(self) -> bool:
    """Checks whether save_every_minutes have passed in this process."""
    waited = time.monotonic() - self._saved_at
    return 0 < self._save_seconds < waited

  def save(self, step: int, overdue: bool) -> bool:
    """Checks whether to save after `step`.

    Args:
      step: the current step.
      overdue: what all processes have agreed on.
    """
    # A vote that was cast before the last save is about that save.
    overdue = overdue and step > self._saved_step + 1
    due = self._due(self._save, step) or self._due(self._keep, step) or overdue
    if due:
      self._saved_at, self._saved_step = time.monotonic(), step
    return due

  def _due(self, every: int, step: int) -> bool:
    return step == self._total or (every > 0 and step % every == 0)
