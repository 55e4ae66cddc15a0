"""Records as lines of JSON, in `metrics.jsonl`: the complete log of a run."""

import contextlib
import json
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from mae_jax.train.sinks.file_sink import FileSink
from mae_jax.utils import log_file, storage
from mae_jax.utils.errors import ConfigError

NAME, CUT = "metrics.jsonl", "metrics.cut.jsonl"


class JsonLines(FileSink):
  """A log with one JSON object a line: step, scalars, and the time.

  Attributes:
    path: path of the file.
    evaluations: the records of evaluations until the first step.
  """

  def __init__(self, workdir: epath.Path, start_step: int):
    """Opens the log and removes lines later than `start_step`.

    Removed lines are appended to `metrics.cut.jsonl`.

    Raises:
      ConfigError: if the log of an earlier run cannot be read.
      OSError: if the log cannot be written.
    """
    storage.make_directories(workdir)
    self.path = workdir / NAME
    kept = _cut_lines(self.path, start_step)
    self.evaluations = evaluations(kept)
    super().__init__(self.path)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Appends a line."""
    # JSON has no NaN.
    known = {k: v if math.isfinite(v) else None for k, v in values.items()}
    known["timestamp"] = round(time.time(), 3)
    self._file.append((json.dumps({"step": step} | known) + "\n").encode())

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Leaves pictures to other sinks."""


def evaluations(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns those of a log's records that an evaluation has written."""
  return [each for each in records if "eval_seconds" in each]


def removed(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns the records that restarts have removed from the log, if readable.

  A tracker has them already: a resumed run computes the same values again.
  """
  path = workdir / CUT
  records = []
  with storage.os_errors(path):
    lines = path.read_bytes().splitlines() if path.exists() else []
  for line in lines:
    with contextlib.suppress(ValueError):
      records.append(json.loads(line))
  return records


def _cut_lines(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """Moves lines later than `step` away; the run will write them again.

  Returns:
    The records that stay.
  """
  if not path.exists():
    return []
  kept, cut, records = [], [], []
  # Text after the last line end is a record whose writing was interrupted.
  *lines, rest = path.read_bytes().split(b"\n")
  if _is_json(rest):  # an editor left out the line end
    lines, rest = [*lines, rest], b"\n"
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      if record["step"] <= step:
        kept.append(line + b"\n")
        records.append(record)
      else:
        cut.append(line + b"\n")
    except (ValueError, KeyError, TypeError):
      raise ConfigError(
        f"{path} line {number} is not a record of this project: move "
        "the file away or choose another --workdir"
      ) from None
  if cut:
    away = log_file.LogFile(path.with_name(CUT))
    away.append(b"".join(cut))
    away.flush()
  if cut or rest:
    storage.write_atomic(path, b"".join(kept))
  return records


def _is_json(text: bytes) -> bool:
  try:
    json.loads(text)
    return True
  except ValueError:
    return False
