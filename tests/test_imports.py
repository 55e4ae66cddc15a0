"""Tests that modules import only from the layers below them.

The tests read the source, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "mae_jax"

# A package of mae_jax may import itself and those of a lower tier; a module at
# the top level may import everything.
TIERS = {
  "utils": 0,
  "config": 1,
  "distributed": 2,
  "models": 3,
  "data": 3,
  "checkpoints": 3,
  "conversion": 4,
  "evals": 5,
  "train": 6,
  "api": 7,
  "tools": 7,
  "main": 8,
  "__main__": 8,
}
# The one module, or its parts by their names, that may import each package.
ONLY = {
  "tensorflow": "mae_jax.data.tf_setup",
  "tensorflow_datasets": "mae_jax.data.sources.tfds",
}
TASKS = "mae_jax.train.tasks"


def imports(module: str, source: str) -> set[str]:
  """Returns the full names of imports; `module` is the importer's full name."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = module.split(".")[: -node.level]
        base = ".".join([*parents, *filter(None, [base])])
      names |= {f"{base}.{alias.name}" for alias in node.names}
  return names


def tier(name: str) -> int | None:
  """Returns the tier of a full name, or None outside mae_jax."""
  first, _, rest = name.partition(".")
  if first != "mae_jax":
    return None
  part = rest.partition(".")[0]
  return TIERS[part] if part else -1


def violations(module: str, source: str) -> list[str]:
  """Lists the imports that a module of mae_jax must not have."""
  wrong = []
  inside = module.split(".")[1:]
  for name in sorted(imports(module, source)):
    target = tier(name)
    if target is not None and inside and target > tier(module):
      wrong.append(f"{module} imports {name} of a higher tier")
    package = name.partition(".")[0]
    if not module.startswith(ONLY.get(package, module)):
      wrong.append(f"{module} imports {name}: only {ONLY[package]} may")
    if (
      inside[:1] == ["train"]
      and name.startswith(f"{TASKS}.")
      and not name.startswith((f"{TASKS}.base", module))
    ):
      wrong.append(f"{module} imports {name}, another task")
  return wrong


def modules(package: pathlib.Path = PACKAGE) -> dict[str, pathlib.Path]:
  found = {}
  for path in sorted(package.rglob("*.py")):
    parts = path.relative_to(package.parent).with_suffix("").parts
    found[".".join(p for p in parts if p != "__init__")] = path
  return found


def test_every_module_has_a_tier():
  parts = {name.split(".")[1] for name in modules() if "." in name}
  assert parts == set(TIERS), "add the new package to TIERS"


def test_imports_point_down():
  found = {
    name: violations(name, path.read_text()) for name, path in modules().items()
  }
  assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize(
  ("package", "forbidden"),
  [("bench", {"tests"}), ("mae_jax", {"bench", "tests"})],
)
def test_packages_do_not_import_benchmarks_or_tests(
  package: str, forbidden: set[str]
):
  found = {
    name: imports(name, path.read_text())
    for name, path in modules(ROOT / package).items()
  }
  wrong = {
    f"{name} imports {each}"
    for name, names in found.items()
    for each in names
    if each.partition(".")[0] in forbidden
  }
  assert wrong == set()


@pytest.mark.parametrize(
  ("module", "source", "text"),
  [
    ("mae_jax.utils.rng", "from mae_jax import models", "higher tier"),
    ("mae_jax.utils.rng", "from mae_jax import config", "higher tier"),
    ("mae_jax.config", "import mae_jax.train.optim", "higher tier"),
    ("mae_jax.models.mae", "from mae_jax.evals import probes", "higher tier"),
    ("mae_jax.models.mae", "from ..evals import probes", "higher tier"),
    ("mae_jax.data.pipeline", "from mae_jax import train", "higher tier"),
    ("mae_jax.evals.a", "def f():\n  import mae_jax.train.loop", "higher"),
    ("mae_jax.train.loop", "from mae_jax import main", "higher tier"),
    ("mae_jax.train.metrics", "import tensorflow as tf", "only mae_jax.data"),
    ("mae_jax.main", "from tensorflow import io", "only mae_jax.data"),
    ("mae_jax.evals.a", "import tensorflow_datasets", "only mae_jax.data"),
    ("mae_jax.data.pipeline", "import tensorflow as tf", "only mae_jax.data"),
    (f"{TASKS}.a", f"from {TASKS} import pretrain", "another task"),
    (f"{TASKS}.a", f"from {TASKS}.b import init", "another task"),
    (f"{TASKS}.a", "from . import b", "another task"),
    ("mae_jax.train.loop", f"from {TASKS} import pretrain", "another"),
  ],
)
def test_a_wrong_import_is_found(module: str, source: str, text: str):
  found = violations(module, source)
  assert len(found) == 1
  assert text in found[0]


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("mae_jax.models.mae", "from mae_jax import config\nimport jax"),
    ("mae_jax.models.mae", "from mae_jax.models import losses"),
    ("mae_jax.data.tf_setup", "import tensorflow as tf\nfrom . import listing"),
    (f"{TASKS}.a", f"from {TASKS} import base\nfrom mae_jax.train import loop"),
    ("mae_jax.main", f"from {TASKS} import pretrain"),
    ("mae_jax.evals.a", "import tensorflowish"),
    ("mae_jax.data.a", "from mae_jax.data.tf_setup import tf"),
  ],
)
def test_a_right_import_is_allowed(module: str, source: str):
  assert violations(module, source) == []
