"""Runs train steps on request in a process, for `bench.step`.

    python bench/lib/timed_steps.py PROGRAM MODEL DTYPE CORES

The process prints "ready". Then it reads numbers of steps, and prints a line
with wall and CPU seconds for each step. Each program has its own process, so
that threads and memory of one do not disturb another.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Step = Callable[[], float]  # takes one step and returns its loss


@dataclasses.dataclass(frozen=True)
class Model:
  """The dimensions of a network and its batch, for both libraries."""

  image: int
  patch: int
  batch: int
  width: int
  depth: int
  heads: int
  decoder_width: int
  decoder_depth: int
  decoder_heads: int


MODELS = {
  "ViT-B/16": Model(224, 16, 16, 768, 12, 12, 512, 8, 16),
  "CIFAR": Model(32, 4, 128, 192, 12, 3, 128, 4, 4),
}
LR, DECAY, BETAS = 1.5e-4, 0.05, (0.9, 0.95)


def photos(model: Model) -> np.ndarray:
  """Returns noise, [B, H, W, C] uint8: content does not change the time."""
  shape = (model.batch, model.image, model.image, 3)
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pytorch(model: Model, dtype: str, cores: int, compiled: bool) -> Step:
  """Builds a step of transformers' ViTMAE with fused attention and AdamW."""
  import torch
  import transformers

  torch.set_num_threads(cores)
  config = transformers.ViTMAEConfig(
    image_size=model.image,
    patch_size=model.patch,
    hidden_size=model.width,
    num_hidden_layers=model.depth,
    num_attention_heads=model.heads,
    intermediate_size=4 * model.width,
    decoder_hidden_size=model.decoder_width,
    decoder_num_hidden_layers=model.decoder_depth,
    decoder_num_attention_heads=model.decoder_heads,
    decoder_intermediate_size=4 * model.decoder_width,
    layer_norm_eps=1e-6,
    mask_ratio=0.75,
    norm_pix_loss=True,
  )
  network = transformers.ViTMAEForPreTraining(config).train()
  assert network.config._attn_implementation == "sdpa"  # the fused one
  optimizer = torch.optim.AdamW(
    network.parameters(), LR, BETAS, weight_decay=DECAY, fused=True
  )
  images = torch.from_numpy(photos(model)).permute(0, 3, 1, 2) / 255.0
  images = images.contiguous()

  def loss_of(images: torch.Tensor) -> torch.Tensor:
    half = dtype == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
      return network(images).loss

  if compiled:
    loss_of = torch.compile(loss_of)

  def step() -> float:
    optimizer.zero_grad()
    loss = loss_of(images)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


@dataclasses.dataclass
class Run:
  """A run of mae_jax that takes single steps."""

  step: Any  # jitted function: state, batch -> state, metrics
  state: Any
  batch: Any
  mesh: Any
  flops: int = 0  # counted flops of a step

  def compile(self) -> Any:
    """Compiles the step ahead of time, and returns it for its analysis."""
    import jax

    with jax.set_mesh(self.mesh):
      self.step = self.step.lower(self.state, self.batch).compile()
    return self.step

  def take(self) -> float:
    """Takes a step, and returns its loss."""
    import jax

    with jax.set_mesh(self.mesh):
      self.state, metrics = self.step(self.state, self.batch)
    return float(metrics["loss"])


def run(model: Model, dtype: str) -> Run:
  """Builds a run of `task=pretrain` on all devices, with a new state."""
  import jax

  from mae_jax.config import overrides
  from mae_jax.distributed import sharding
  from mae_jax.train import step as step_lib
  from mae_jax.train.tasks import base
  from mae_jax.train.tasks.pretrain import PretrainTask

  recipe = overrides.recipe("configs/vit_b.py")
  config = dataclasses.replace(
    recipe,
    data=dataclasses.replace(
      recipe.data,
      batch_size=model.batch,
      image_size=(model.image, model.image),
    ),
    model=dataclasses.replace(
      recipe.model,
      variant=f"B/{model.patch}",
      width=model.width,
      depth=model.depth,
      heads=model.heads,
      mlp_dim=4 * model.width,
      decoder_width=model.decoder_width,
      decoder_depth=model.decoder_depth,
      decoder_heads=model.decoder_heads,
      dtype=dtype,
    ),
  )
  mesh = sharding.make_mesh(config.mesh)
  task = PretrainTask(config, mesh)
  task.prepare(base.DataInfo(num_examples=10**6))
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(task.init)
    where = sharding.state_shardings(mesh, shapes)
    state = jax.jit(task.init, out_shardings=where)()
    train_step = step_lib.jit_step(task.train_step, mesh, state)
  local = {"image": photos(model), "readable": np.ones(model.batch, bool)}
  batch = sharding.to_global(mesh, local, model.batch)
  flops = model.batch * task.flops_per_image
  return Run(train_step, state, batch, mesh, flops)


def ours(model: Model, dtype: str, cores: int, split: bool) -> Step:
  """Builds a step of mae_jax; `split` sets `mesh.cpu_devices=cores`."""
  if split:  # as `mae_jax.main` does
    os.environ["NPROC"] = str(4 * cores)
  import jax

  jax.config.update("jax_num_cpu_devices", cores if split else 1)
  return run(model, dtype).take


PROGRAMS: dict[str, Callable[[Model, str, int], Step]] = {
  "PyTorch": functools.partial(pytorch, compiled=False),
  "PyTorch compiled": functools.partial(pytorch, compiled=True),
  "mae_jax": functools.partial(ours, split=False),
  "mae_jax split": functools.partial(ours, split=True),
}


def timed(step: Step) -> tuple[float, float]:
  """Returns wall and CPU seconds of a step.

  Raises:
    RuntimeError: if the loss is not finite.
  """
  wall, cpu = time.perf_counter(), time.process_time()
  loss = step()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  if not np.isfinite(loss):
    raise RuntimeError(f"the loss of a timed step is {loss}, not finite")
  return wall, cpu


def timed_in_turn(step: Step) -> tuple[float, float]:
  """Takes a step that does not count, and times the next one.

  The first step finds the memory and caches that another network left. In a
  run, each step follows a step of the same network.
  """
  step()
  return timed(step)


def serve(step: Step, lines: Iterable[str]) -> None:
  """Takes and times steps; each line is a number of steps."""
  for line in lines:
    for _ in range(int(line)):
      print(*timed(step), flush=True)


def main(argv: list[str]) -> None:
  """Builds the program of the command line, warms it up, and serves."""
  program, name, dtype, cores = argv
  os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(cores)]))
  step = PROGRAMS[program](MODELS[name], dtype, int(cores))
  for _ in range(2):
    step()
  print("ready", flush=True)
  serve(step, sys.stdin)


if __name__ == "__main__":
  main(sys.argv[1:])
