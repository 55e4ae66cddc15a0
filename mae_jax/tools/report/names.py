"""Names of metrics as a reader knows them."""

import re
from typing import NamedTuple

# Counters of problems.
COUNTS = {
  "loss_spikes": "loss spikes",
  "skipped": "skipped steps",
  "consecutive_skipped": "skipped steps in a row",
  "unreadable": "unreadable images",
  "eval_unreadable": "unreadable held-out images",
}
_TITLES = COUNTS | {
  "eval_loss": "held-out loss",
  "eval_top1": "top-1 accuracy",
  "eval_top5": "top-5 accuracy",
  "eval_balanced_accuracy": "balanced accuracy",
  "eval_f1_macro": "macro F1",
  "eval_auc_macro": "macro AUC",
  "mfu": "share of the devices' peak (MFU)",
}
_OF_ROLES = {"lr_": "learning rate", "grad_norm_": "gradient norm"}
_PROBE = re.compile(r"eval_(linear|knn)_(\d+|all)")
_PROBES = {"linear": "linear probe", "knn": "kNN"}
_SHOTS = re.compile(r"(.*)_(\d+|all)")
# Accuracies from 0 to 1.
_SHARES = (
  *("eval_top1", "eval_top5", "eval_balanced_accuracy"),
  *("eval_linear_", "eval_knn_"),
)


class Compared(NamedTuple):
  """One of several values of a metric that an evaluation compares.

  Attributes:
    measure: the metric, for instance "linear probe, accuracy".
    series: which of the compared, for instance "MAE" or "from scratch".
    shots: labels a class, or "all"; "" if the metric has no such number.
  """

  measure: str
  series: str
  shots: str


def title(key: str) -> str:
  """Returns the words for a scalar of metrics.jsonl."""
  if key in _TITLES:
    return _TITLES[key]
  if probe := _PROBE.fullmatch(key):
    return f"{_PROBES[probe[1]]}, {labels(probe[2])}, accuracy"
  for start, name in _OF_ROLES.items():
    if key.startswith(start):
      return f"{name}, {key.removeprefix(start).replace('_', ' ')}"
  return key.removeprefix("eval_").replace("_", " ")


def labels(shots: str) -> str:
  """Returns the words for labels a class."""
  if shots == "all":
    return "all labels"
  return f"{shots} label{'' if shots == '1' else 's'} a class"


def compared(key: str) -> Compared:
  """Reads the name of a scalar such as eval_knn_5/MAE."""
  group, _, name = key.partition("/")
  if probe := _PROBE.fullmatch(group):
    return Compared(f"{_PROBES[probe[1]]}, accuracy", name, probe[2])
  # A trial of label_efficiency: eval_top1/from_scratch_5.
  shots = _SHOTS.fullmatch(name) if group == "eval_top1" else None
  if shots is None:
    return Compared(title(group), name, "")
  return Compared(title(group), shots[1].replace("_", " "), shots[2])


def series(key: str) -> str:
  """Returns the words for one line of a chart."""
  if "/" not in key:
    return "held out" if key.startswith("eval_") else "training"
  found = compared(key)
  if _PROBE.fullmatch(key.partition("/")[0]) or not found.shots:
    return found.series
  return f"{found.series}, {labels(found.shots)}"


def figure(key: str, value: float | None, spread: float | None = None) -> str:
  """Formats a value: accuracies in percent, with a standard deviation."""
  if value is None:
    return ""
  if not key.startswith(_SHARES):
    return f"{value:.4g}"
  text = f"{100 * value:.1f}"
  return f"{text} %" if spread is None else f"{text} ± {100 * spread:.1f} %"
