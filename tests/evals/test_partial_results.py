"""Partial results are resumed only by the same evaluation."""

from __future__ import annotations

import json

import pytest
from etils import epath

from mae_jax.evals import partial_results
from mae_jax.utils.errors import TrainingError

ABOUT = {"parameters": 7, "shots": (1, 2)}


def opened(path, about=ABOUT, *, owner=True, check=lambda: None):
  result = partial_results.PartialResults(epath.Path(path), check, owner=owner)
  result.resume(about)
  return result


def test_the_same_goes_on_and_the_end_leaves_nothing(tmp_path):
  path = tmp_path / "parts.json"
  opened(path).add("a", {"error": 0.1 + 0.2})
  again = opened(path)
  assert again.done == {"a": {"error": 0.1 + 0.2}}  # to the bit
  again.add("b", None)
  assert list(opened(path, owner=False).done) == ["a", "b"]
  again.delete()
  assert not path.exists()
  opened(path).delete()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": {"a": 1}}'])
def test_what_is_no_such_file_is_passed_over(tmp_path, content):
  path = tmp_path / "parts.json"
  path.write_text(content)
  kept = opened(path)
  assert kept.done == {}
  kept.add("a", 1)
  assert opened(path).done == {"a": 1}
  assert opened(path, ABOUT | {"parameters": 8}).done == {}


def test_one_process_writes_while_it_may(tmp_path):
  path = tmp_path / "parts.json"
  opened(path, owner=False).add("a", 1)
  assert not path.exists()

  def taken():
    raise TrainingError("another run took over")

  with pytest.raises(TrainingError):
    opened(path, check=taken).add("a", 1)
  assert not path.exists()
  opened(path).add("a", 1)
  assert json.loads(path.read_text())["done"] == {"a": 1}
