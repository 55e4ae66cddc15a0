"""Metrics of a classifier that weight classes equally, as in scikit-learn."""

import numpy as np


def by_class(
  labels: np.ndarray, predictions: np.ndarray
) -> tuple[float, float]:
  """Computes balanced accuracy and macro F1.

  Balanced accuracy is the mean recall of the classes that have images. Macro F1
  is the mean F1 of the classes that have images or predictions.

  Args:
    labels: [N], N > 0.
    predictions: [N], -1 for none.
  """
  number = int(max(labels.max(), predictions.max())) + 1
  images = np.bincount(labels, minlength=number)
  answers = np.bincount(predictions[predictions >= 0], minlength=number)
  right = np.bincount(labels[labels == predictions], minlength=number)
  present, seen = images > 0, images + answers > 0
  recall = right[present] / images[present]
  f1 = 2 * right[seen] / (images + answers)[seen]
  return float(recall.mean()), float(f1.mean())


def auc_macro(
  labels: np.ndarray, probabilities: np.ndarray, answers: np.ndarray
) -> float | None:
  """Computes the mean over classes of the one-vs-rest area under the ROC curve.

  The area is the share of pairs of an image of the class and another image in
  which the former has the higher probability of the class; a tie counts half.
  Sorting takes half a second for ImageNet's 50,000 images.

  Args:
    labels: [N]; images without a label (-1) do not count.
    probabilities: [N, K].
    answers: the classes to compare, of 0..K-1.

  Returns:
    None if one of the classes has no image, if there is only one, or if a
    probability is NaN.
  """
  known = labels >= 0
  missing = np.setdiff1d(answers, labels)
  if len(answers) < 2 or missing.size or np.isnan(probabilities).any():
    return None
  areas = []
  for answer in answers:
    column = probabilities[known, answer]
    mine = np.sort(column[labels[known] == answer])
    column.sort()
    lower = _count_lower(column, mine) - _count_lower(mine, mine)
    areas.append(lower.mean() / (len(column) - len(mine)))
  return float(np.mean(areas))


def _count_lower(values: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Counts the sorted values below each place; equal values count half."""
  below, not_above = (
    np.searchsorted(values, places, side) for side in ("left", "right")
  )
  return (below + not_above) / 2
