"""Monitors a run's health: warns of problems, and stops a run that diverged."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import einops
import jax
import numpy as np
from etils import epath
from PIL import Image

from mae_jax import checkpoints
from mae_jax.config import Config
from mae_jax.data import image_io
from mae_jax.utils import console, storage
from mae_jax.utils.errors import TrainingError

if TYPE_CHECKING:
  from mae_jax.data.bad_images import BadImages


COUNTS = ("skipped", "consecutive_skipped", "loss_spikes", "unreadable")


@dataclasses.dataclass(frozen=True)
class Problem:
  """A reason to end a run.

  Attributes:
    step: the step after which it was found.
    text: a message with the way out.
    keep_inputs: whether to save the inputs of that step, a possible cause.
    keep_state: whether to save a checkpoint.
  """

  step: int
  text: str
  keep_inputs: bool = False
  keep_state: bool = True


class HealthMonitor:
  """Watches the health counters from step to step."""

  def __init__(
    self,
    config: Config,
    num_examples: int,
    unreadable: BadImages,
    health: Any,
    workdir: epath.Path,
  ):
    """Starts from the counters of the first state.

    Args:
      config: settings of the run.
      num_examples: size of the training set.
      unreadable: the images that could not be read.
      health: counters of the first state.
      workdir: directory of the checkpoints.
    """
    self._config, self._workdir = config, workdir
    self._num_examples = num_examples
    self._unreadable = unreadable
    self._skipped, self._spikes = int(health.skipped), int(health.spikes)
    # Unreadable images are counted by epoch. A resumed run counts from its
    # start, as files may have been repaired.
    self._epoch: int | None = None
    self._before = int(health.unreadable)

  def check_start(self, step: int, health: checkpoints.Health) -> None:
    """Refuses to resume after too many steps that were not finite.

    Raises:
      TrainingError: with the way out.
    """
    problem = self._diverged(step, int(health.consecutive_skipped))
    if problem:
      raise TrainingError(f"step {step}: {problem.text}")

  def check(self, step: int, values: Mapping[str, jax.Array]) -> Problem | None:
    """Warns of what is new after a step, whose end it waits for.

    Returns:
      The reason to end the run; None to continue.
    """
    if not values:  # before the first step
      return None
    counts = {name: values[name] for name in COUNTS}
    now = {k: int(v) for k, v in jax.device_get(counts).items()}
    if now["skipped"] > self._skipped and _worth_a_line(now["skipped"]):
      console.warn(
        f"step {step} is skipped, because it is not finite: loss "
        f"{float(values['loss']):g}, gradient norm "
        f"{float(values['grad_norm']):g} ({now['skipped']} skipped so far)",
        shared=True,
      )
    if now["loss_spikes"] > self._spikes and _worth_a_line(now["loss_spikes"]):
      console.warn(
        f"loss spike at step {step}: {float(values['loss']):.4g} is more than "
        f"train.spike_factor={self._config.train.spike_factor:g} times the "
        f"running mean ({now['loss_spikes']} spikes so far)",
        shared=True,
      )
    self._skipped, self._spikes = now["skipped"], now["loss_spikes"]
    return self._diverged(
      step, now["consecutive_skipped"]
    ) or self._too_many_unreadable(step, now)

  def _diverged(self, step: int, consecutive_skipped: int) -> Problem | None:
    """Returns a problem if too many consecutive steps were not finite."""
    limit = self._config.train.max_bad_steps
    if consecutive_skipped < limit:
      return None
    return Problem(
      step,
      f"loss or gradient was not finite for train.max_bad_steps={limit} steps "
      "in a row. They changed nothing, and the state before them is saved. "
      "Lower optim.blr, set optim.grad_clip or use model.dtype=float32, and "
      "start another --workdir from this one with "
      f"--config.init_from={self._workdir}",
      keep_inputs=True,
    )

  def _too_many_unreadable(
    self, step: int, now: Mapping[str, int]
  ) -> Problem | None:
    batch, total = self._config.data.batch_size, self._num_examples
    if self._epoch is None:
      self._epoch = (step - 1) * batch // total
    last = (step * batch - 1) // total
    epochs, share = last - self._epoch + 1, self._config.data.max_unreadable
    count = now["unreadable"] - self._before
    if last > self._epoch:  # each epoch reads the same files again
      self._epoch, self._before = last, now["unreadable"]
    if count <= self._unreadable.allowed(total, share) * epochs:
      return None
    return Problem(
      step,
      f"images could not be read {count} times in one epoch, which is more "
      f"than data.max_unreadable={share:g} of {total}. Replace these files, or "
      "raise data.max_unreadable, and run the same command again: it resumes "
      "from the last checkpoint\n"
      f"{self._unreadable.listing(50)}",
      keep_state=False,
    )


def _worth_a_line(count: int) -> bool:
  """Limits repeated warnings: the first ten, then powers of two."""
  return count <= 10 or count & (count - 1) == 0


def save_inputs(
  workdir: epath.Path, step: int, batch: Mapping[str, jax.Array]
) -> epath.Path:
  """Saves the inputs of a step, as arrays and as a picture.

  Args:
    workdir: the directory to write to.
    step: number of the step.
    batch: global arrays [B, ...]; this process writes its own rows.

  Returns:
    The path of the `.npz` file.
  """
  local = {name: _local_rows(array) for name, array in batch.items()}
  part = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
  path = workdir / f"bad_step_{step}{part}.npz"
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {"step": np.asarray(step), **local}
  np.savez_compressed(buffer, **arrays)
  storage.write_atomic(path, buffer.getvalue())
  picture = io.BytesIO()
  _contact_sheet(local["image"]).save(picture, format="png")
  storage.write_atomic(path.with_suffix(".png"), picture.getvalue())
  return path


def _local_rows(array: jax.Array) -> np.ndarray:
  parts = {
    shard.index[0].start or 0: shard.data for shard in array.addressable_shards
  }
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _contact_sheet(images: np.ndarray, columns: int = 8) -> Image.Image:
  """Draws up to 64 images [n, H, W, C]; only the first channel unless C = 3."""
  images = image_io.to_bytes(images[: columns * columns])
  if images.shape[-1] != 3:
    images = np.repeat(images[..., :1], 3, axis=-1)
  blank = np.zeros((-len(images) % columns, *images.shape[1:]), np.uint8)
  grid = np.concatenate([images, blank])
  return Image.fromarray(
    einops.rearrange(grid, "(r c) h w d -> (r h) (c w) d", c=columns)
  )
