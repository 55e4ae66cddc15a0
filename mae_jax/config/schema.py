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
import math
from collections.abc import Iterator
from typing import Any

from mae_jax.utils.errors import ConfigError, abbreviate

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
        f"{field}={abbreviate(text)} is not a duration: write a number and one "
        f"of {', '.join(UNITS)}, for instance '800 epochs'"
      )
    return cls(amount, unit)

  def steps(self, num_examples: int, batch_size: int) -> int:
    """The number of optimizer steps, rounded down.

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
class DataConfig:
  """Where images come from and how they are cropped."""

  source: str  # a name in mae_jax.data.sources.SOURCES
  batch_size: int  # examples a step over all devices
  image_size: tuple[int, int]  # height, width; one number makes a square
  crop_scale: tuple[float, float]  # share of the area a training crop covers
  flip: bool  # mirror half of the training images
  eval_crop: float  # part of the resized image kept by evaluation's center crop
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
  record_shards: int = (
    64  # tfds: independent record streams, shared out over hosts
  )
  prefetch: int = 2  # batches waiting on the device
  # Images are turned as their EXIF tag says, as viewers show them; the
  # reference, like torchvision, does not look at it.
  exif_rotate: bool = True
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
  shots: int = 0  # labeled training images a class; 0: all
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
class ModelConfig:
  """The network: a named variant, any of whose dimensions may be set."""

  variant: (
    str  # "L/16": a name in mae_jax.models.architecture and the patch size
  )
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
  attention_chunk_mb: float | None = None
  norm_eps: float = 1e-6  # of every LayerNorm
  activation: str = "gelu"  # a name in mae_jax.models.transformer.ACTIVATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
  """What is hidden and what is to be reconstructed."""

  mask_ratio: float = 0.75
  mask: str = "random"  # a name in mae_jax.models.masking.STRATEGIES, or given
  # Rows of patches for mask=given (of pixels with masked_input=pixel_noise),
  # 1 = masked; the rows of one mask after those of the other.
  mask_rows: tuple[str, ...] = ()
  # Training uses these instead, one a batch, as `mask_schedule` says. All
  # else (evaluation, pictures, conversion) uses `mask_ratio` and `mask`.
  mask_ratios: tuple[float, ...] = ()
  mask_strategies: tuple[str, ...] = ()
  # random | sequential (equal parts of training, in order; like the learning
  # rate, the parts change with train.length)
  mask_schedule: str = "random"
  # What the encoder sees of hidden patches: a name in
  # mae_jax.models.masked_input.HIDDEN.
  masked_input: str = "dropped"
  target: str = "norm_pix"  # norm_pix | raw | pca, of each patch
  pca_components: int = 96  # of target=pca
  loss: str = "mse"  # of an error: a name in mae_jax.models.losses.ERRORS
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
  trainable: str = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
  """A discriminator that pre-training is to deceive."""

  type: str = "none"  # none | patch (parts of images) | image (as a whole)
  loss: str = "hinge"  # hinge | non_saturating
  # Of what it costs the network; on photographs, a third of this may be enough
  # (bench/results/discriminator.md).
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
class ClassifyConfig:
  """The head of a classifier, and how fine-tuning mixes its images."""

  pooling: str = "mean"  # mean (of patch tokens, then fc_norm) | cls
  trainable: str = "all"  # all | head | mlp (of the last block) | "4 blocks"
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
class OptimConfig:
  """The optimizer and its schedule; `lr` follows blr and batch unless set."""

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
class TrainConfig:
  """How long, how often, and from which seed."""

  length: str  # a Duration
  seed: int = 0
  log_every: str = "50 steps"
  save_every: str = "1 epochs"
  save_every_minutes: float = (
    0.0  # save also after so many minutes; 0 for never
  )
  keep: int = 3  # checkpoints kept
  max_bad_steps: int = 10  # non-finite steps in a row that stop the run
  spike_factor: float = 3.0  # a loss above so many running means is told
  shutdown_timeout: float = (
    120.0  # to save and leave in after SIGTERM or Ctrl-C
  )
  # A directory, of many runs, where compiled programs are kept for the next
  # start; "": where JAX_COMPILATION_CACHE_DIR says, if it is set.
  compile_cache: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """How devices are laid out: data x fsdp, where data is what remains."""

  fsdp: int = 1  # devices that share one copy of parameters and optimizer
  cpu_devices: int = 0  # XLA devices on a CPU-only host; 0 leaves it to JAX
  # TPU, from v5e: gradients are summed over the devices while others are
  # computed. False leaves its compiler the options it has by itself.
  overlap: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Probes of the frozen features, and pictures, during and after training."""

  every: str = "0 steps"  # a Duration; 0: only at the end
  shots: tuple[int, ...] = (0,)  # a class, that a probe learns from; 0: all
  num_trials: int = (
    10  # random choices of them, over which accuracy is averaged
  )
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
class LabelEfficiencyConfig:
  """Runs of task=label_efficiency, which differ in start, labels and seed."""

  task: str = "finetune"  # of each run: finetune | linprobe
  pretrain: str = ""  # the recipe of the start, unless there is an init_from
  scratch: bool = True  # whether as many runs start from scratch
  shots: tuple[int, ...] = (5, 10, 0)  # labeled images a class; 0: all
  seeds: int = 5  # of labels chosen, order and start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole run."""

  task: str  # a name in mae_jax.main.TASKS
  data: DataConfig
  model: ModelConfig
  objective: ObjectiveConfig
  optim: OptimConfig
  train: TrainConfig
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig = EvalConfig()
  classify: ClassifyConfig = ClassifyConfig()
  label_efficiency: LabelEfficiencyConfig = LabelEfficiencyConfig()
  discriminator: DiscriminatorConfig = DiscriminatorConfig()
  # A checkpoint whose parameters a new run starts from, or weights of the
  # reference, transformers or timm.
  init_from: str = ""
  # Whether that checkpoint may be of another patch size or number of channels:
  # see mae_jax.models.resize_patches for what becomes of its kernels.
  init_adapt: bool = False


# Settings that are Durations.
DURATIONS = (
  "eval.every",
  "optim.warmup",
  "train.length",
  "train.log_every",
  "train.save_every",
)


# What may differ when a run goes on: how long, where, how it is watched.
# Everything else makes it another run. Names of settings or whole sections.
MAY_CHANGE = (
  "label_efficiency.pretrain",
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
  "model.attention_chunk_mb",
  "model.remat",
  "model.unroll",
  "optim.accum_steps",
  "train.compile_cache",
  "train.keep",
  "train.length",
  "train.log_every",
  "train.max_bad_steps",
  "train.save_every",
  "train.save_every_minutes",
  "train.spike_factor",
  "train.shutdown_timeout",
)


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
