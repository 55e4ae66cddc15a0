"""Optional packages: which extra of mae_jax installs each.

`pip install mae_jax` brings the network, checkpoints and conversion. Other
packages are imported where they are needed. If one is missing, `errors.explain`
names the extra, so imports need no check of their own.
"""

import importlib.util
import sys
from collections.abc import Iterable

# The extra of each package that the core does not require.
EXTRAS = {
  "google.cloud.storage": "gcs",
  "google.cloud.storage_control_v2": "gcs",
  "huggingface_hub": "hf",
  "importlib_resources": "train",
  "jinja2": "report",
  "libtpu": "tpu",
  "matplotlib": "viz",
  "mlflow": "mlflow",
  "onnx": "onnx",
  "onnxruntime": "onnx",
  "plotly": "report",
  "prometheus_client": "serve",
  "pyarrow": "arrow",
  "skimage": "viz",
  "sklearn": "viz",
  "starlette": "serve",
  "tensorboardX": "train",
  "tensorflow": "train",
  "tensorflow_datasets": "train",
  "torch": "torch",
  "trackio": "trackio",
  "uvicorn": "serve",
  "wandb": "wandb",
}
# The names that pip knows packages by, where they are others.
_PROJECTS = {
  "google.cloud.storage": "google-cloud-storage",
  "google.cloud.storage_control_v2": "google-cloud-storage-control",
  "mlflow": "mlflow-skinny",
  "skimage": "scikit-image",
  "sklearn": "scikit-learn",
  "tensorflow_datasets": "tensorflow-datasets",
}
# The packages without which no run trains or evaluates.
TRAIN = (
  *("tensorflow", "tensorflow_datasets", "tensorboardX"),
  *("matplotlib", "skimage", "sklearn"),
)


def describe(module: str, extra: str = "") -> str | None:
  """Says how to install a package that is missing.

  Args:
    module: name of the module that could not be imported, as "torch.nn".
    extra: the extra to name; by default that of the package.

  Returns:
    One line; None if no extra has the package.
  """
  names = [
    name for name in EXTRAS if module == name or module.startswith(f"{name}.")
  ]
  if not names:
    return None
  project = _PROJECTS.get(names[0], names[0])
  return (
    f"{project} is not installed: pip install "
    f"'mae_jax[{extra or EXTRAS[names[0]]}]'"
  )


def missing(modules: Iterable[str]) -> list[str]:
  """Lists the modules that are not installed, without importing any."""
  return [name for name in modules if not _is_installed(name)]


def _is_installed(module: str) -> bool:
  if module in sys.modules:  # None if it is hidden
    return sys.modules[module] is not None
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # nor is its parent
    return False
