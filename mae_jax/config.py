"""What a run is: one frozen dataclass a section, and its way to and from flags.

A file under `configs/` returns `config_dict(Config(...))`, a locked
`ml_collections.ConfigDict`, so that every field can be set on the command line
(`--config.data.batch_size=1024`) and a misspelt one is an error. `main` turns
the result into a frozen, checked `Config` again with `from_config_dict`:
everything below `main` reads attributes of known type, never `.get`.

A field without a default here defines the recipe, so each recipe states it.
Defaults are left for what a recipe of the paper never says.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict as mlc


class ConfigError(ValueError):
  """A setting that cannot work; the message names the value and the way out."""


class TrainingError(RuntimeError):
  """Training cannot go on; the message says what is kept and what to do."""


def shown(value: Any) -> str:
  """A value in a message, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:190]}..."


UNITS = ("steps", "epochs", "examples")


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training: "1500 steps", "40 epochs" or "51_200 examples"."""

  amount: float
  unit: str

  @classmethod
  def parse(cls, text: str, field: str = "duration") -> Duration:
    """Reads "<amount> <unit>"; the blank may be missing, the unit singular."""
    stripped = text.strip()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    word = stripped[len(number) :].strip()
    unit = word if word.endswith("s") else word + "s"
    try:
      amount = float(number)
    except ValueError:
      amount = math.nan
    if unit not in UNITS or not 0 <= amount < 2**63:
      raise ConfigError(
        f"{field}={shown(text)} is not a duration: write a number and one of "
        f"{', '.join(UNITS)}, for instance '800 epochs'"
      )
    return cls(amount, unit)

  def steps(self, num_examples: int, batch_size: int) -> int:
    """The number of optimiser steps, rounded down.

    An epoch is `num_examples` examples, not a number of whole batches: the
    stream of examples runs on across its end and drops nothing.

    Args:
      num_examples: size of the training set.
      batch_size: examples a step, over all devices.
    """
    if self.unit == "steps":
      return int(self.amount)
    examples = self.amount * (num_examples if self.unit == "epochs" else 1)
    # The small addend keeps 0.1 epochs of 1000 examples from being 99.999...
    return math.floor(examples / batch_size + 1e-9)

  def interval(self, num_examples: int, batch_size: int) -> int:
    """As `steps`, but at least 1 unless the amount is 0, which means never."""
    steps = self.steps(num_examples, batch_size)
    return max(steps, 1) if self.amount else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where images come from and how they are cropped."""

  source: str  # a name in mae_jax.data.sources.SOURCES
  batch_size: int  # examples a step over all devices
  image_size: tuple[int, int]  # height, width; one number makes a square
  crop_scale: tuple[float, float]  # share of the area a training crop covers
  flip: bool  # mirror half of the training images
  eval_crop: float  # part of the resized image kept by evaluation's centre crop
  mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
  std: tuple[float, ...]
  channels: int = 3
  crop_ratio: tuple[float, float] = (
    3 / 4,
    4 / 3,
  )  # width / height, log-uniform
  name: str = ""  # tfds: the data set, e.g. "imagenet2012"
  path: str = ""  # folder: the directory of images
  data_dir: str = ""  # tfds: where it was prepared; "" is TFDS's own default
  train_split: str = "train"
  eval_split: str = "validation"  # "" for none
  shuffle_buffer: int = 16384  # tfds: records held over all hosts
  lanes: int = 64  # tfds: independent record streams, shared out over hosts
  prefetch: int = 2  # batches waiting on the device
  # Images are turned as their EXIF tag says, as viewers show them; the
  # reference, like torchvision, does not look at it.
  upright: bool = True
  # One box is drawn, and clipped to the image: the reference's linear probe;
  # else the first of ten that fits, as torchvision has it.
  crop_clipped: bool = False
  # Above 0: crops have one size, this share of the sides of the largest box
  # whose aspect is in crop_ratio, at a random place; crop_scale is not used.
  crop_fixed: float = 0.0
  # Brightness, contrast and saturation by factors in 1 - it to 1 + it.
  color_jitter: float = 0.0
  randaugment: float = 0.0  # magnitude, of 10; 0 for none
  randaugment_std: float = 0.5  # of the magnitude, operation by operation
  shots: int = 0  # labelled training images a class; 0: all
  shots_seed: int = 0  # which ones
  max_unreadable: float = 0.01  # share of images above which a run stops

  def __post_init__(self):
    _check_range("crop_scale", self.crop_scale, 1.0)
    _check_range("crop_ratio", self.crop_ratio, math.inf)
    if self.crop_fixed and self.crop_clipped:
      raise ConfigError(
        f"data.crop_fixed={self.crop_fixed:g} crops are never clipped: set "
        "--config.data.crop_clipped=False"
      )


def _check_range(name: str, value: tuple[float, float], most: float) -> None:
  if not 0 < value[0] <= value[1] <= most:
    upper = f" and the larger at most {most:g}" if math.isfinite(most) else ""
    raise ConfigError(
      f"data.{name}={value} must be two numbers above 0, the smaller one first"
      f"{upper}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The network: a named variant, any of whose dimensions may be set."""

  variant: str  # "L/16": a name in mae_jax.models.variants and the patch size
  width: int | None = None
  depth: int | None = None
  heads: int | None = None
  mlp_dim: int | None = None
  patch_size: tuple[int, int] | None = None  # height, width
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16
  decoder_mlp_dim: int | None = None  # 4 x decoder_width if None
  dtype: str = "bfloat16"  # of activations; parameters are always float32
  # What the backward pass recomputes: none | dots (all but products, which are
  # kept) | full (whole blocks) | auto: none on CPU, dots elsewhere.
  remat: str = "auto"
  unroll: int = 0  # blocks a scan step; 0: all on CPU, 1 elsewhere
  # What attention's logits may take of a device at a time, in MB; more go part
  # by part. 0: no bound; None: 6 on CPU (its cache), 2048 elsewhere.
  attention_mb: float | None = None
  norm_eps: float = 1e-6  # of every LayerNorm
  activation: str = "gelu"  # a name in mae_jax.models.transformer.ACTIVATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What is hidden and what is to be reconstructed."""

  mask_ratio: float = 0.75
  mask: str = "random"  # a name in mae_jax.models.masking.STRATEGIES, or given
  # Of mask=given: rows of patches (of pixels, with hidden=pixel_noise), 1 =
  # hidden, of one mask after the other.
  mask_rows: tuple[str, ...] = ()
  # What training takes instead of the one, batch by batch, as `varies` says;
  # what is evaluated, drawn or converted keeps to the one.
  mask_ratios: tuple[float, ...] = ()
  masks: tuple[str, ...] = ()
  # drawn | staged (equal parts of training, in order; like the learning rate,
  # they are other parts if train.length changes)
  varies: str = "drawn"
  # What the encoder sees of hidden patches: a name in
  # mae_jax.models.hiding.HIDDEN.
  hidden: str = "dropped"
  target: str = "norm_pix"  # norm_pix | raw | pca, of each patch
  pca_components: int = 96  # of target=pca
  loss: str = "mse"  # of an error: a name in mae_jax.losses.ERRORS
  loss_on: str = "masked"  # which patches count: masked | all
  # InfoNCE besides: each reconstructed patch is to find its own original among
  # others of its image, or of the batch. Of originals that are alike, such as
  # empty corners, none is told from the others: that costs what it costs.
  contrast: str = "none"  # none | image | batch
  contrast_weight: float = 0.1
  contrast_temperature: float = 0.1
  # Hidden patches of an image that take part; 0: all, but with the batch.
  contrast_patches: int = 0
  # all | decoder (the encoder stays as `init_from` has it)
  trained: str = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversary:
  """A discriminator that pre-training is to deceive."""

  judges: str = "none"  # none | patch (parts of images) | image (as a whole)
  loss: str = "hinge"  # hinge | non_saturating
  # Of what it costs the network; on photographs, a third of this may be enough
  # (bench/adversary.md).
  weight: float = 0.1
  # Shares of training, however long it is by now, at which that weight leaves 0
  # and is reached.
  ramp: tuple[float, float] = (0.1, 0.3)
  gradient_penalty: float = 1.0  # R1, at real images
  width: int = 64  # channels after the first of its convolutions
  depth: int = 4  # convolutions, each of which halves the image
  lr: float = 2e-4  # at its peak; it follows the schedule of optim.lr
  b1: float = 0.0
  b2: float = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify:
  """The head of a classifier, and how fine-tuning mixes its images."""

  pooling: str = "mean"  # mean (of patch tokens, then fc_norm) | cls
  trained: str = "all"  # all | head | mlp (of the last block) | "4 blocks"
  norm_group: int = 512  # examples a mean of the linear probe's BatchNorm takes
  head_std: float = 2e-5  # of the normal that the head's kernel begins with
  drop_path: float = 0.0  # of the last block; rises linearly from 0
  smoothing: float = 0.0  # of labels
  mixup: float = 0.0  # alpha; 0 for none
  cutmix: float = 0.0  # alpha; 0 for none
  mix_switch: float = 0.5  # how often cutmix and not mixup
  mix_prob: float = 1.0  # how often a batch is mixed
  erasing: float = 0.0  # how often a box of an image is filled with noise
  ema: float = 0.0  # decay of averaged parameters, which are evaluated; 0: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
  """The optimiser and its schedule; `lr` follows blr and batch unless set."""

  blr: float  # base learning rate per 256 examples
  warmup: str  # a Duration
  weight_decay: float
  b1: float
  b2: float
  lr: float | None = None  # None: blr * data.batch_size / 256
  min_lr: float = 0.0  # where the cosine ends
  grad_clip: float | None = None  # global norm; None for no clipping
  accum_steps: int = 1  # micro-batches a step
  layer_decay: float = 1.0  # of a layer's rate, from the head downwards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """How long, how often, and from which seed."""

  length: str  # a Duration
  seed: int = 0
  log_every: str = "50 steps"
  save_every: str = "1 epochs"
  save_minutes: float = 0.0  # save also after so many minutes; 0 for never
  keep: int = 3  # checkpoints kept
  max_bad_steps: int = 10  # non-finite steps in a row that stop the run
  spike_factor: float = 3.0  # a loss above so many running means is told
  stop_seconds: float = 120.0  # to save and leave in after SIGTERM or Ctrl-C
  # A directory, of many runs, where compiled programs are kept for the next
  # start; "": where JAX_COMPILATION_CACHE_DIR says, if it is set.
  compile_cache: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """How devices are laid out: data x fsdp, where data is what remains."""

  fsdp: int = 1  # devices that share one copy of parameters and optimiser
  cpu_devices: int = 0  # XLA devices on a CPU-only host; 0 leaves it to JAX
  # TPU, from v5e: gradients are summed over the devices while others are
  # computed. False leaves its compiler the options it has by itself.
  overlap: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Probes of the frozen features, and pictures, during and after training."""

  every: str = "0 steps"  # a Duration; 0: only at the end
  shots: tuple[int, ...] = (0,)  # a class, that a probe learns from; 0: all
  draws: int = 10  # random choices of them, over which accuracy is averaged
  max_train: int = 0  # at most so many training images; 0: all
  pooling: str = "mean"  # of patch tokens: mean | cls | all (side by side)
  knn_k: int = 20
  knn_temperature: float = 0.07
  probe_l2: float = 1.0  # see evals.probe
  raw_pixels: bool = False  # the same probes on pixels, for comparison
  images: int = 8  # in reconstructions.png; 0 for none
  # Of task=evaluate: a checkpoint's head, or probes of its frozen features.
  measure: str = "head"  # head | features
  # Which classes an answer may be: all of the head's, those among the labels,
  # or the latter for the sets of evals.robustness alone.
  classes: str = "auto"  # auto | all | present


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
  """What task=compare trains: runs that differ in start, labels and seed."""

  task: str = "finetune"  # of each run: finetune | linprobe
  pretrain: str = ""  # the recipe of the start, unless there is an init_from
  scratch: bool = True  # whether as many runs start from scratch
  shots: tuple[int, ...] = (5, 10, 0)  # labelled images a class; 0: all
  seeds: int = 5  # of labels chosen, order and start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole run."""

  task: str  # a name in mae_jax.main.TASKS
  data: Data
  model: Model
  objective: Objective
  optim: Optim
  train: Train
  mesh: Mesh = Mesh()
  eval: Eval = Eval()
  classify: Classify = Classify()
  compare: Compare = Compare()
  adversary: Adversary = Adversary()
  # A checkpoint whose parameters a new run starts from, or weights of the
  # reference, transformers or timm.
  init_from: str = ""
  # Whether that checkpoint may be of another patch size or number of channels:
  # see mae_jax.models.adapt for what becomes of its kernels.
  init_adapt: bool = False


# Settings that are Durations.
DURATIONS = (
  "eval.every",
  "optim.warmup",
  "train.length",
  "train.log_every",
  "train.save_every",
)

# Bounds of single settings; of a tuple, of each item.
AT_LEAST: dict[str, float] = {
  "adversary.b1": 0,
  "adversary.b2": 0,
  "adversary.depth": 1,
  "adversary.gradient_penalty": 0,
  "adversary.lr": 0,
  "adversary.ramp": 0,
  "adversary.weight": 0,
  "adversary.width": 1,
  "classify.cutmix": 0,
  "classify.drop_path": 0,
  "classify.ema": 0,
  "classify.erasing": 0,
  "classify.head_std": 0,
  "classify.mix_prob": 0,
  "classify.mix_switch": 0,
  "classify.mixup": 0,
  "classify.norm_group": 2,
  "classify.smoothing": 0,
  "compare.seeds": 1,
  "compare.shots": 0,
  "data.batch_size": 1,
  "data.channels": 1,
  "data.color_jitter": 0,
  "data.crop_fixed": 0,
  "data.eval_crop": 0.1,  # images are enlarged by its inverse
  "data.image_size": 1,
  "data.lanes": 1,
  "data.max_unreadable": 0,
  "data.prefetch": 0,
  "data.randaugment": 0,
  "data.randaugment_std": 0,
  "data.shots": 0,
  "data.shots_seed": 0,
  "data.shuffle_buffer": 1,
  "data.std": 1e-6,
  "eval.draws": 1,
  "eval.images": 0,
  "eval.knn_k": 1,
  "eval.shots": 0,
  "eval.max_train": 0,
  "mesh.cpu_devices": 0,
  "mesh.fsdp": 1,
  "model.attention_mb": 0,
  "model.decoder_mlp_dim": 1,
  "model.patch_size": 1,
  "model.unroll": 0,
  "objective.contrast_patches": 0,
  "objective.contrast_temperature": 1e-4,  # below, similarities overflow
  "objective.contrast_weight": 0,
  "objective.mask_ratio": 0,
  "objective.mask_ratios": 0,
  "objective.pca_components": 1,
  "optim.accum_steps": 1,
  "optim.b1": 0,
  "optim.b2": 0,
  "optim.blr": 0,
  "optim.lr": 0,
  "optim.min_lr": 0,
  "optim.weight_decay": 0,
  "train.keep": 1,
  "train.max_bad_steps": 1,
  "train.save_minutes": 0,
  "train.seed": 0,
}
ABOVE: dict[str, float] = {
  "eval.knn_temperature": 0,
  "eval.probe_l2": 0,
  "model.norm_eps": 0,
  "train.spike_factor": 1,
  "train.stop_seconds": 0,
  "optim.grad_clip": 0,
  "optim.layer_decay": 0,
}
BELOW: dict[str, float] = {
  "adversary.b1": 1,
  "adversary.b2": 1,
  "classify.drop_path": 1,
  "classify.ema": 1,
  "classify.smoothing": 1,
  "optim.b1": 1,
  "optim.b2": 1,
}
# Beyond any use, and small enough that the run ends in an error about memory
# rather than never.
AT_MOST: dict[str, float] = {
  "adversary.depth": 14,
  "adversary.lr": 1e20,
  "adversary.ramp": 1,
  "adversary.width": 2**12,
  "classify.erasing": 1,
  "classify.mix_prob": 1,
  "classify.mix_switch": 1,
  "data.batch_size": 2**20,
  "data.channels": 2**12,
  "data.color_jitter": 1,
  "data.crop_fixed": 1,
  "data.eval_crop": 1,
  "data.image_size": 2**14,
  "data.max_unreadable": 1,
  "data.prefetch": 2**10,
  "data.randaugment": 10,
  "data.randaugment_std": 10,
  "eval.images": 2**12,
  "mesh.cpu_devices": 2**10,
  "model.decoder_depth": 2**10,
  "model.decoder_mlp_dim": 2**18,
  "model.decoder_width": 2**16,
  "model.depth": 2**10,
  "model.mlp_dim": 2**18,
  "model.patch_size": 2**14,
  "model.width": 2**16,
  "objective.mask_ratio": 1,
  "objective.mask_ratios": 1,
  "optim.blr": 1e20,
  "optim.layer_decay": 1,
  "optim.lr": 1e20,
  "optim.min_lr": 1e20,
  "optim.weight_decay": 1e6,
}
# Of all others: JAX counts in int32, makes one random key of seeds that differ
# in higher bits alone, and computes in float32.
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3e38

# What may differ when a run goes on: how long, where, how it is watched.
# Everything else makes it another run. Names of settings or whole sections.
MAY_CHANGE = (
  "compare.pretrain",
  "data.data_dir",
  "data.eval_crop",
  "data.eval_split",
  "data.max_unreadable",
  "data.path",
  "data.prefetch",
  "eval",
  "init_adapt",
  "init_from",
  "mesh",
  "model.attention_mb",
  "model.remat",
  "model.unroll",
  "optim.accum_steps",
  "train.compile_cache",
  "train.keep",
  "train.length",
  "train.log_every",
  "train.max_bad_steps",
  "train.save_every",
  "train.save_minutes",
  "train.spike_factor",
  "train.stop_seconds",
)


# Settings that had another name: what it is now, by the old value.
RENAMED: dict[str, dict[Any, tuple[str, Any]]] = {
  "objective.norm_pix_loss": {
    True: ("target", "norm_pix"),
    False: ("target", "raw"),
  },
}


def config_dict(config: Config) -> ml_collections.ConfigDict:
  """A locked, overridable ConfigDict in which `optim.lr` follows the batch."""
  result = _to_dict(config)
  if config.optim.lr is None:
    optim = result.optim
    batch_size = result.data.get_ref("batch_size")
    # Removed first: the typed placeholder does not take a reference.
    with result.unlocked():
      del optim.lr
      optim.lr = optim.get_ref("blr") * batch_size / 256
  return result.lock()


def from_config_dict(values: Mapping[str, Any]) -> Config:
  """The frozen Config of a ConfigDict, or of a dict read from JSON.

  Raises:
    ConfigError: on an unknown or missing key, a value of the wrong type, or one
      that cannot work whatever the others are.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = _build(Config, values, "config")
  _check_probes(config.eval)
  if config.init_adapt and not config.init_from and config.task != "compare":
    raise ConfigError(
      "init_adapt=True adapts the checkpoint of init_from, which is not set"
    )
  return config


def to_dict(config: Config) -> dict[str, Any]:
  """The plain nested dict that a checkpoint stores as JSON."""
  return dataclasses.asdict(config)


def fixed_changes(before: Config, now: Config) -> list[str]:
  """What differs although it may not when a run goes on, one text each."""
  old, new = dict(leaves(before)), dict(leaves(now))
  return [
    f"{name} was {old[name]!r}, is {new[name]!r}"
    for name in old
    if old[name] != new[name]
    and name not in MAY_CHANGE
    and name.partition(".")[0] not in MAY_CHANGE
  ]


def leaves(config: Config) -> Iterator[tuple[str, Any]]:
  """Each setting by its full name, as "data.batch_size"."""
  for section, values in to_dict(config).items():
    if isinstance(values, dict):
      yield from ((f"{section}.{key}", each) for key, each in values.items())
    else:
      yield section, values


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Reads a config file's argument, as in `configs/vit_l.py:epochs=1600`.

  Args:
    arg: "key=value,key=value" or None.
    **defaults: the known keys; a value takes the type of its default.

  Raises:
    ConfigError: on an unknown key or a value of another type.
  """
  result = dict(defaults)
  given: set[str] = set()
  for part in filter(None, (arg or "").split(",")):
    key, equals, value = part.partition("=")
    if key not in defaults or not equals:
      raise ConfigError(
        f"config argument {part!r} is not known: "
        + (
          f"write key=value, where key is one of {', '.join(defaults)}"
          if defaults
          else "this config takes none"
        )
      )
    if key in given:
      raise ConfigError(f"config argument {key} is given twice: {arg}")
    given.add(key)
    try:
      result[key] = type(defaults[key])(value)
    except ValueError:
      raise ConfigError(
        f"config argument {key}={value!r} is not of type "
        f"{type(defaults[key]).__name__}"
      ) from None
  return types.SimpleNamespace(**result)


def one_of(key: str, value: str, known: typing.Collection[str]) -> str:
  """A config argument that must be one of a few words.

  Raises:
    ConfigError: if it is none of them.
  """
  if value not in known:
    raise ConfigError(
      f"config argument {key}={value!r} is not known: use {' or '.join(known)}"
    )
  return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
  """The known name that comes closest, or all of them, for an error."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  if close:
    return f"did you mean {close[0]!r}?"
  return f"known are {', '.join(known)}"


def lookup(table: Mapping[str, Any], name: str, field: str) -> Any:
  """`table[name]`, or a ConfigError that lists what there is."""
  if name not in table:
    told, every = nearest(name, table), f"known are {', '.join(sorted(table))}"
    if told != every:  # what is near may be the opposite of what is meant
      told += f" {every}"
    raise ConfigError(f"{field}={shown(name)} is not known: {told}")
  return table[name]


def check_key(key: str) -> None:
  """Refuses what is not the name of a setting, such as "data.batchsize".

  Raises:
    ConfigError: with the nearest name there is.
  """
  kind: Any = Config
  path = "config"
  for name in key.split("."):
    if not dataclasses.is_dataclass(kind):
      raise ConfigError(f"config.{key} is not known: set the whole {path}")
    hints = typing.get_type_hints(kind)
    if name not in hints:
      if key in RENAMED:
        raise ConfigError(
          f"config.{key} has another name: set "
          + " or ".join(f"{path}.{x}={y}" for x, y in RENAMED[key].values())
        )
      raise ConfigError(f"{path}.{name} is not known: {_meant(name, hints)}")
    kind, path = hints[name], f"{path}.{name}"
  if dataclasses.is_dataclass(kind):
    one = dataclasses.fields(kind)[0].name
    raise ConfigError(
      f"{path} is a section: set what is in it, for instance {path}.{one}"
    )


def _meant(name: Any, known: typing.Iterable[str]) -> str:
  """As `nearest`, but first the section that has a setting of that name."""
  for section, kind in typing.get_type_hints(Config).items():
    if name in getattr(kind, "__dataclass_fields__", ()):
      return f"did you mean 'config.{section}.{name}'?"
  return nearest(str(name), known)


def _to_dict(section: Any) -> ml_collections.ConfigDict:
  hints = typing.get_type_hints(type(section))
  result = ml_collections.ConfigDict()
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      value = _to_dict(value)
    elif value is None:
      # A typed placeholder, so that the command line knows how to parse it.
      kind = typing.get_args(hints[field.name])[0]
      value = mlc.placeholder(typing.get_origin(kind) or kind)
    result[field.name] = value
  return result


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, Mapping):
    raise ConfigError(f"{path}={shown(values)} is not a section of settings")
  section = path.removeprefix("config.")
  values = dict(_renamed(section, *item) for item in values.items())
  for key in values:
    if key not in fields:
      key = key if str(key).isprintable() else repr(key)
      raise ConfigError(f"{path}.{key} is not known: {_meant(key, fields)}")
  built = {}
  for name, field in fields.items():
    here = f"{path}.{name}"
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise ConfigError(f"{here} is missing: set it in the config file")
      continue
    kind, value = hints[name], values[name]
    if dataclasses.is_dataclass(kind):
      built[name] = _build(typing.cast(type, kind), value, here)
    else:
      built[name] = _check(kind, value, here)
      _check_bounds(here, built[name])
  return cls(**built)


def _renamed(section: str, key: str, value: Any) -> tuple[str, Any]:
  names = RENAMED.get(f"{section}.{key}")
  return names.get(value, (key, value)) if names else (key, value)


def _check_bounds(path: str, value: Any) -> None:
  name = path.removeprefix("config.")
  if name in DURATIONS:
    Duration.parse(value, name)
  items = value if isinstance(value, tuple) else (value,)
  for item in items:
    if isinstance(item, str) or item is None:
      continue
    if isinstance(item, float) and not math.isfinite(item):
      raise ConfigError(f"{path}={shown(value)} is not a finite number")
    largest = LARGEST_FLOAT if isinstance(item, float) else LARGEST_INT
    for bound, holds, words in (
      (AT_LEAST.get(name), operator.ge, "at least"),
      (ABOVE.get(name), operator.gt, "above"),
      (BELOW.get(name), operator.lt, "below"),
      (AT_MOST.get(name, largest), operator.le, "at most"),
      (-largest, operator.ge, "at least"),
    ):
      if bound is not None and not holds(item, bound):
        raise ConfigError(f"{path}={shown(value)} must be {words} {bound}")


def _check_probes(settings: Eval) -> None:
  # A probe tells classes apart, and one image is of one class.
  if settings.max_train == 1:
    raise ConfigError(
      "eval.max_train=1 lets a probe see one image and so one class: give it "
      "at least 2, or 0 for all there are"
    )


def _check(kind: Any, value: Any, path: str) -> Any:
  """The value as the declared type; numbers and lists are taken leniently."""
  if isinstance(kind, types.UnionType):  # X | None
    return None if value is None else _check(kind.__args__[0], value, path)
  if typing.get_origin(kind) is tuple:
    item, *rest = typing.get_args(kind)
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if item is str:  # a command line takes 1010,1111 for numbers
      items = tuple(str(x) if type(x) is int else x for x in items)
    if Ellipsis not in rest:
      wanted = 1 + len(rest)
      items = items * wanted if len(items) == 1 else items
      if len(items) != wanted:
        raise ConfigError(f"{path}={shown(value)} must have {wanted} items")
    return tuple(_check(item, each, path) for each in items)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    # A whole number may be too large for a float, but not for a message.
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f"{path}={shown(value)} is a {type(value).__name__}, not a "
      f"{kind.__name__}"
    )
  return value
