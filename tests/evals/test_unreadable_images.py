"""Missing classes, splits or images are reported and do not stop a run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mae_jax.config import EvalConfig
from mae_jax.evals import pretraining
from tests.helpers import runs, tiny
from tests.helpers.params import slow


def make(root, **classes: int) -> str:
  """Writes gray images of each class to train/ and to val/."""
  for split in ("train", "val"):
    for name, count in classes.items():
      (root / split / name).mkdir(parents=True)
      for k in range(count):
        image = Image.fromarray(np.full((8, 8), 9 * k, np.uint8))
        image.save(root / split / name / f"{k}.png")
  return str(root)


def evaluation(**changes) -> pretraining.Evaluation:
  sections = {"eval": {"images": 0}} | changes
  data = {"source": "folder", "batch_size": 4} | sections.pop("data", {})
  task, data = runs.open_task(
    tiny.config(data=data, **sections), runs.devices_mesh()
  )
  return task.evaluator(data)


def test_one_class_no_held_out_part_or_nothing_left_out(tmp_path):
  one = make(tmp_path / "one", cat=2)
  assert evaluation(data={"path": one}).unavailable == (
    "no probes: all images are of one class, cat"
  )
  two = make(tmp_path / "two", cat=2, dog=1)
  assert evaluation(data={"path": two}).unavailable == ""
  for changes, why in (
    ({"path": two, "eval_split": ""}, "data.eval_split is empty"),
    ({"path": f"{two}/train/cat"}, "data.source='folder' found none"),
  ):
    left_out = evaluation(data=changes).unavailable
    assert left_out.startswith("no held-out loss and no probes: there are no")
    assert left_out.endswith(why)


@pytest.mark.parametrize(("most", "probed"), [slow(2, False), (0, True)])
def test_a_training_part_of_one_class_does_not_end_the_run(
  tmp_path, most, probed
):
  path = make(tmp_path, cat=5, dog=1)
  settings = EvalConfig(images=0, max_train=most)
  evaluate = evaluation(data={"path": path}, eval=settings)
  report = evaluate({"model": tiny.params()})
  assert np.isfinite(report.scalars["eval_loss"])
  assert ("eval_knn_all/MAE" in report.scalars) == probed
  assert ("warning: " in report.text) is False
  assert probed or report.text == (
    "no probes: all 2 training images (eval.max_train=2) are of one class"
  )
