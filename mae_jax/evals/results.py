"""What an evaluation hands to whoever asked for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Report:
  """What an evaluation found.

  Attributes:
    scalars: by name.
    pictures: by name, [H, W, 3] uint8.
    text: a table for people, or "".
  """

  scalars: Mapping[str, float]
  pictures: Mapping[str, np.ndarray]
  text: str


@dataclasses.dataclass(frozen=True)
class EvalResult:
  """What was found.

  Attributes:
    text: for people.
    scalars: by name, as in metrics.jsonl.
    facts: what was evaluated.
    files: tables by name.
  """

  text: str
  scalars: Mapping[str, float]
  facts: Mapping[str, Any]
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
