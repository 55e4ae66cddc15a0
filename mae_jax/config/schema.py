"""Every setting of a run: one frozen dataclass a section.

A file under `configs/` returns `config_dict(Config(...))`, a locked
`ml_collections.ConfigDict`, so that each field can be set on the command line
(`--config.data.batch_size=1024`) and a misspelled one is an error.
`from_config_dict` turns the result into a frozen, checked `Config`; the rest of
the program reads attributes of known type.

`setting` keeps each field's bounds, names, role on resume, old names and help
text beside the field. A field without a default defines the recipe, so each
recipe states it; the others have a value that a recipe of the paper never sets.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, dataclass_transform

from mae_jax.utils.errors import ConfigError, abbreviate

UNITS = ("steps", "epochs", "examples")
# Names of comparisons, as in `operator`, and words for them.
BOUNDS = {"ge": "at least", "gt": "above", "lt": "below", "le": "at most"}


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training: "1500 steps", "40 epochs" or "51_200 examples"."""

  amount: float
  unit: str

  @classmethod
  def parse(cls, text: str, field: str = "duration") -> Duration:
    """Reads "<amount> <unit>"; the space may be missing, the unit singular.

    Raises:
      ConfigError: if the text is no duration.
    """
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
    """Converts the duration to optimizer steps, rounded down.

    An epoch is `num_examples` examples, not a number of whole batches: a batch
    may span two epochs, and no example is dropped.

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
    """Converts to steps between two events: at least 1, or 0 for never."""
    steps = self.steps(num_examples, batch_size)
    return max(steps, 1) if self.amount else 0


@dataclasses.dataclass(frozen=True)
class Rule:
  """The facts about one setting that its type does not say.

  Attributes:
    help: the text of `--help`.
    ge: the value, or each item of a tuple, is at least this.
    gt: ... above this.
    le: ... at most this. Many of these bounds are far beyond any use; they make
      a typing error end in a message instead of hours of allocation.
    lt: ... below this.
    choices: the names that are known; None for any value.
    refused: names that people expect, and why they are not known.
    duration: whether the value is a Duration.
    resumable: whether the setting may differ when a run resumes.
    was: the field's name in version 0.1, where it had another one.
    values_were: today's value for values that version 0.1 knew.
    absent: the value of files that were written before there was this setting;
      None for the default.
  """

  help: str
  ge: float | None = None
  gt: float | None = None
  le: float | None = None
  lt: float | None = None
  choices: tuple[str, ...] | None = None
  refused: tuple[tuple[str, str], ...] = ()
  duration: bool = False
  resumable: bool = False
  was: str | None = None
  values_were: tuple[tuple[str, str], ...] = ()
  absent: Any = None

  @property
  def bounds(self) -> str:
    """The bounds for people, as "above 0, at most 1"; "" without any."""
    parts = [
      f"{word} {value}"
      for name, word in BOUNDS.items()
      if (value := getattr(self, name)) is not None
    ]
    if self.choices:
      parts.append(" | ".join(self.choices))
    return ", ".join(parts)


def setting(default: Any = dataclasses.MISSING, **rule: Any) -> Any:
  """Declares a field of a section; `rule` holds the fields of `Rule`."""
  metadata = {"rule": Rule(**rule)}
  if dataclasses.is_dataclass(default):
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def resumable(default: Any = dataclasses.MISSING, **rule: Any) -> Any:
  """Declares a setting that may differ when a run resumes."""
  return setting(default, resumable=True, **rule)


def rule_of(field: dataclasses.Field) -> Rule:
  """Returns the rule that `setting` attached to a field."""
  rule: Rule = field.metadata["rule"]
  return rule


def current(cls: type, name: str, value: Any) -> tuple[str, Any]:
  """Translates a field of a section, and its value, from version 0.1."""
  if cls is ObjectiveConfig and name == "norm_pix_loss":
    return "target", "norm_pix" if value else "raw"
  for field in dataclasses.fields(cls):
    rule = rule_of(field)
    if name == field.name or (rule.was and name == rule.was):
      words = dict(rule.values_were)
      value = words.get(value, value) if isinstance(value, str) else value
      return field.name, value
  return name, value


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type) -> type:
  """Makes a class a section: a frozen dataclass that knows its old names.

  A recipe written for version 0.1 may pass old names and values. Each is
  understood, with a warning that says the new one. A TypeError is raised if a
  setting is given by both names.
  """
  made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  init = made.__init__

  @functools.wraps(init)
  def __init__(self: Any, **values: Any) -> None:
    now = {}
    for old, value in values.items():
      name, new = current(made, old, value)
      if name in now:
        raise TypeError(
          f"{cls.__name__}: {old} is the old name of {name}, which is given too"
        )
      if (name, new) != (old, value):
        warnings.warn(
          f"{cls.__name__}({old}={value!r}) is now {name}={new!r}",
          FutureWarning,
          stacklevel=2,
        )
      now[name] = new
    init(self, **now)

  made.__init__ = __init__
  return made


# Sources of images: the module and the function of each.
SOURCES = {
  "digits": "mae_jax.data.sources.digits:open_digits",
  "folder": "mae_jax.data.sources.folder:open_folder",
  "huggingface": "mae_jax.data.sources.huggingface:open_saved",
  "photos": "mae_jax.data.sources.sample_photos:open_photos",
  "table": "mae_jax.data.sources.table:open_table",
  "tfds": "mae_jax.data.sources.tfds:open_prepared",
  "webdataset": "mae_jax.data.sources.webdataset:open_shards",
}


@section
class DataConfig:
  """Images: the source, how they are cropped, and how they are augmented."""

  source: str = setting(
    choices=tuple(SOURCES),
    help="where images come from: digits of scikit-learn, a folder, a Hugging "
    "Face data set on disk, sample photographs, a table of paths (CSV or "
    "parquet), a TFDS data set, or tar shards of WebDataset",
  )
  batch_size: int = setting(
    ge=1, le=2**20, help="examples a step, over all devices"
  )
  image_size: tuple[int, int] = setting(
    ge=1, le=2**14, help="height, width in pixels; one number makes a square"
  )
  crop_scale: tuple[float, float] = setting(
    help="smallest and largest share of the image area that a training crop "
    "covers"
  )
  flip: bool = setting(help="mirror half of the training images")
  eval_crop: float = resumable(
    ge=0.1,
    le=1,
    help="share of the resized image that the center crop of evaluation keeps",
  )
  mean: tuple[float, ...] = setting(
    help="per channel, of pixels in [0, 1]; subtracted"
  )
  std: tuple[float, ...] = setting(
    ge=1e-6, help="per channel, of pixels in [0, 1]; divides"
  )
  channels: int = setting(3, ge=1, le=2**12, help="channels of an image")
  crop_ratio: tuple[float, float] = setting(
    (3 / 4, 4 / 3),
    help="smallest and largest width / height of a training crop, sampled "
    "log-uniformly",
  )
  name: str = setting(
    "", help="source=tfds: the data set, for instance imagenet2012"
  )
  path: str = resumable(
    "",
    help="source=folder: the directory of images; source=table, huggingface or "
    "webdataset: a file, or a directory of files; webdataset takes patterns "
    "too, as shards-{000..099}.tar",
  )
  image_column: str = setting(
    "",
    help="source=table, huggingface or tfds: the column of images; '' finds it "
    "by its name or type; source=webdataset: a suffix, as jpg",
  )
  label_column: str = setting(
    "",
    help="the column of labels of these sources; '' finds label, labels, "
    "class, target or category, if there is one; none reads no labels; "
    "source=webdataset: a suffix, as cls, or a field of JSON",
  )
  data_dir: str = resumable(
    "",
    help="source=tfds: where the data set was prepared; '' is TFDS's default",
  )
  layout: str = setting(
    "auto",
    choices=("auto", "splits", "classes"),
    help="source=folder: whether folders with names such as train and val are "
    "splits or classes; auto looks into them, and asks if both make sense",
  )
  train_split: str = setting(
    "train",
    help="split to train on; source=folder: the name of a folder, where train "
    "may be called training too; source=table, huggingface or webdataset: a "
    "name or word of files, or a value of the column split",
  )
  eval_split: str = resumable(
    "validation",
    help="split to evaluate on; '' for none; source=folder: the name of a "
    "folder, where validation is the first of val, valid, validation, dev, "
    "eval, test and testing",
  )
  holdout: float = setting(
    0.0,
    ge=0,
    lt=1,
    help="share of the images of each class to hold out, where none are held "
    "out; chosen by the names of the files; not for tfds, digits and photos",
  )
  shuffle_buffer: int = setting(
    16384,
    ge=1,
    help="source=tfds: records in the shuffle buffers of all hosts together",
  )
  record_shards: int = setting(
    64,
    ge=1,
    was="lanes",
    help="source=tfds: independent streams of records, divided among hosts",
  )
  prefetch: int = resumable(
    2, ge=0, le=2**10, help="batches that wait on the devices"
  )
  eval_fit: str = resumable(
    "crop",
    choices=("crop", "squash"),
    help="how evaluation fits an image to image_size; crop: resize it to cover "
    "image_size / eval_crop and take the center; squash: resize all of it, "
    "which changes its aspect",
  )
  eval_resample: str = resumable(
    "bicubic",
    choices=("bicubic", "bilinear", "lanczos"),
    help="interpolation of evaluation images, with antialiasing",
  )
  exif_rotate: bool = setting(
    True,
    was="upright",
    help="rotate images as their EXIF tag says, as viewers do; the reference "
    "and torchvision ignore the tag",
  )
  background: str = setting(
    "white",
    choices=("white", "gray", "black", "drop"),
    absent="drop",
    help="what shows through transparent pixels; drop: their stored colors, "
    "as torchvision and version 0.1 do",
  )
  value_range: tuple[float, ...] = setting(
    (),
    help="the pixel values that become 0 and 1, as 0,4095 for 12 bits; values "
    "beyond are clipped. Pixels are then float32 and keep all levels of uint16 "
    "and float files; () reads 8 bits",
  )
  crop_clipped: bool = setting(
    False,
    help="sample one crop and clip it to the image, as the reference's linear "
    "probe; otherwise take the first of ten that fits, as torchvision",
  )
  crop_fixed: float = setting(
    0.0,
    ge=0,
    le=1,
    help="above 0: all crops have this share of the sides of the largest box "
    "with an aspect in crop_ratio, at a random place; crop_scale is unused",
  )
  color_jitter: float = setting(
    0.0,
    ge=0,
    le=1,
    help="strength s: brightness, contrast and saturation are scaled by "
    "factors in 1 - s to 1 + s",
  )
  randaugment: float = setting(
    0.0, ge=0, le=10, help="magnitude of RandAugment, of 10; 0 for none"
  )
  randaugment_std: float = setting(
    0.5, ge=0, le=10, help="standard deviation of that magnitude"
  )
  shots: int = setting(
    0, ge=0, help="labeled training images of each class; 0 for all"
  )
  shots_seed: int = setting(0, ge=0, help="seed of the choice of these images")
  max_image_pixels: int = resumable(
    16384 * 12288,
    ge=1,
    le=2**30,
    help="images of more pixels are unreadable; decoding takes up to 12 bytes "
    "a pixel. The default admits the photographs of 200-megapixel phones",
  )
  truncated_images: str = resumable(
    "skip",
    choices=("skip", "decode"),
    help="files that lack their end: skip counts them as unreadable; decode "
    "takes the rows that are there, and the others are gray or black",
  )
  max_unreadable: float = resumable(
    0.01, ge=0, le=1, help="the run stops above this share of unreadable images"
  )

  def __post_init__(self):
    _check_range("crop_scale", self.crop_scale, 1.0)
    _check_range("crop_ratio", self.crop_ratio, math.inf)
    if self.value_range:
      _check_value_range(self)
    if self.holdout and not self.can_hold_out:
      raise ConfigError(
        f"data.holdout={self.holdout:g} divides images without splits, and "
        f"data.source={self.source!r} has splits: set "
        "--config.data.holdout=0, or other splits, such as "
        "--config.data.train_split=train[:90%]"
      )
    if self.crop_fixed and self.crop_clipped:
      raise ConfigError(
        f"data.crop_fixed={self.crop_fixed:g} crops are never clipped: set "
        "--config.data.crop_clipped=False"
      )

  @property
  def can_hold_out(self) -> bool:
    """Checks whether `holdout` can divide the source."""
    return self.source not in ("digits", "photos", "tfds")


def _check_value_range(data: DataConfig) -> None:
  if len(data.value_range) != 2 or data.value_range[0] >= data.value_range[1]:
    raise ConfigError(
      f"data.value_range={data.value_range} must be two numbers, the smaller "
      "one first, or () for 8 bits"
    )
  for name in ("color_jitter", "randaugment"):
    if value := getattr(data, name):
      raise ConfigError(
        f"data.{name}={value:g} works on 8 bits, and data.value_range keeps "
        f"more: set --config.data.{name}=0, or --config.data.value_range=()"
      )
  if data.source in ("digits", "photos"):
    raise ConfigError(
      f"data.value_range={data.value_range} is for image files, and "
      f"data.source={data.source!r} has 8 bits: set "
      "--config.data.value_range=()"
    )


def _check_range(name: str, value: tuple[float, float], most: float) -> None:
  if not 0 < value[0] <= value[1] <= most:
    upper = f" and the larger at most {most:g}" if math.isfinite(most) else ""
    raise ConfigError(
      f"data.{name}={value} must be two numbers above 0, the smaller one first"
      f"{upper}"
    )


@section
class ModelConfig:
  """The network: a named variant, any of whose dimensions may be set."""

  variant: str = setting(
    help="name and patch size, for instance L/16; names: "
    "mae_jax/models/architecture.py"
  )
  width: int | None = setting(
    None, le=2**16, help="token width D; default: the variant's"
  )
  depth: int | None = setting(
    None, le=2**10, help="encoder blocks; default: the variant's"
  )
  heads: int | None = setting(
    None, help="attention heads; default: the variant's"
  )
  mlp_dim: int | None = setting(
    None, le=2**18, help="hidden width of the MLP; default: the variant's"
  )
  patch_size: tuple[int, int] | None = setting(
    None, ge=1, le=2**14, help="height, width; default: the variant's"
  )
  decoder_width: int = setting(512, le=2**16, help="decoder token width")
  decoder_depth: int = setting(8, le=2**10, help="decoder blocks")
  decoder_heads: int = setting(16, help="decoder attention heads")
  decoder_mlp_dim: int | None = setting(
    None,
    ge=1,
    le=2**18,
    help="hidden width of the decoder's MLP; default: 4 x decoder_width",
  )
  dtype: str = setting(
    "bfloat16",
    choices=("bfloat16", "float32"),
    refused=(
      (
        "float16",
        "gradients below 6e-8 would become 0. Use bfloat16, or float32 on GPUs "
        "without bfloat16 (compute capability below 8.0, such as V100 and T4)",
      ),
    ),
    help="type of activations; parameters are always float32",
  )
  remat: str = resumable(
    "auto",
    choices=("auto", "dots", "full", "none"),
    help="what the backward pass recomputes: nothing, all but matrix products "
    "(dots), or whole blocks (full); auto: none on CPU, dots elsewhere",
  )
  unroll: int = resumable(
    0,
    ge=0,
    help="blocks in one iteration of the scan; 0: all on CPU, 1 elsewhere",
  )
  attention_chunk_mb: float | None = resumable(
    None,
    ge=0,
    was="attention_mb",
    help="memory for attention logits on a device, in MB; more are computed in "
    "chunks. 0: no limit; default: 6 on CPU (its cache), 2048 elsewhere",
  )
  norm_eps: float = setting(1e-6, gt=0, help="epsilon of every LayerNorm")
  activation: str = setting(
    "gelu",
    choices=("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"),
    help="activation of the MLPs; gelu is the exact one",
  )


_MASKS = ("block", "given", "grid", "random")


@section
class ObjectiveConfig:
  """Pre-training: which patches are masked, and what is reconstructed."""

  mask_ratio: float = setting(
    0.75, ge=0, le=1, help="share of patches that are masked"
  )
  mask: str = setting(
    "random",
    choices=_MASKS,
    help="how masked patches are chosen; given: see mask_rows",
  )
  mask_rows: tuple[str, ...] = setting(
    (),
    help="mask=given: rows of patches (of pixels with "
    "masked_input=pixel_noise), 1 = masked; several masks follow each other",
  )
  mask_ratios: tuple[float, ...] = setting(
    (),
    ge=0,
    le=1,
    help="train with these ratios, one a batch, in place of mask_ratio, which "
    "evaluation, pictures and conversion keep",
  )
  mask_strategies: tuple[str, ...] = setting(
    (),
    choices=_MASKS,
    was="masks",
    help="train with these masks, one a batch, in place of mask",
  )
  mask_schedule: str = setting(
    "random",
    choices=("random", "sequential"),
    was="varies",
    values_were=(("drawn", "random"), ("staged", "sequential")),
    help="how a step picks among mask_ratios and mask_strategies; sequential: "
    "equal parts of training, in order, which change with train.length",
  )
  masked_input: str = setting(
    "dropped",
    choices=("dropped", "mask_tokens", "noise", "pixel_noise"),
    was="hidden",
    help="what the encoder gets for masked patches: nothing, as in MAE, mask "
    "tokens, or noise",
  )
  target: str = setting(
    "norm_pix",
    choices=("norm_pix", "pca", "raw"),
    help="what is predicted of a patch: normalized pixels, raw pixels, or "
    "principal components",
  )
  pca_components: int = setting(
    96, ge=1, help="target=pca: the number of components"
  )
  loss: str = setting(
    "mse",
    choices=("l1", "log_cosh", "mse", "smooth_l1"),
    help="error between prediction and target",
  )
  loss_on: str = setting(
    "masked", choices=("all", "masked"), help="patches that the loss counts"
  )
  contrast: str = setting(
    "none",
    choices=("batch", "image", "none"),
    help="add InfoNCE: each reconstructed patch must find its original among "
    "others of its image, or of the batch. Identical patches, such as blank "
    "corners, cannot be distinguished, so this loss cannot reach 0",
  )
  contrast_weight: float = setting(0.1, ge=0, help="weight of InfoNCE")
  contrast_temperature: float = setting(
    0.1,
    ge=1e-4,  # below, similarities overflow
    help="temperature of InfoNCE",
  )
  contrast_patches: int = setting(
    0,
    ge=0,
    help="masked patches of an image that InfoNCE compares; 0: all, which is "
    "not possible with contrast=batch",
  )
  trainable: str = setting(
    "all",
    choices=("all", "decoder"),
    was="trained",
    help="decoder: keep the encoder as init_from has it",
  )


@section
class DiscriminatorConfig:
  """A discriminator, which adds a GAN loss to the reconstruction."""

  type: str = setting(
    "none",
    choices=("image", "none", "patch"),
    was="judges",
    help="none, or a network that scores parts of images or whole images",
  )
  loss: str = setting(
    "hinge", choices=("hinge", "non_saturating"), help="the GAN loss"
  )
  weight: float = setting(
    0.1,
    ge=0,
    help="weight of the generator loss; on photographs a third of this may be "
    "enough (bench/results/discriminator.md)",
  )
  ramp: tuple[float, float] = setting(
    (0.1, 0.3),
    ge=0,
    le=1,
    help="shares of training at which the weight leaves 0 and reaches its "
    "full value",
  )
  gradient_penalty: float = setting(
    1.0, ge=0, help="weight of the R1 penalty on real images"
  )
  width: int = setting(
    64, ge=1, le=2**12, help="channels after the first convolution"
  )
  depth: int = setting(
    4, ge=1, le=14, help="convolutions, each of which halves the image"
  )
  lr: float = setting(
    2e-4, ge=0, le=1e20, help="peak learning rate; follows optim.lr's schedule"
  )
  b1: float = setting(0.0, ge=0, lt=1, help="beta 1 of Adam")
  b2: float = setting(0.99, ge=0, lt=1, help="beta 2 of Adam")

  def __post_init__(self):
    if self.ramp[0] > self.ramp[1]:
      raise ConfigError(
        f"discriminator.ramp={self.ramp} ends before it begins: write the "
        "smaller share of training first"
      )


@section
class ClassifyConfig:
  """The head of a classifier, and the regularization of fine-tuning."""

  pooling: str = setting(
    "mean",
    choices=("all", "cls", "mean"),
    help="features for the head: mean of patch tokens (with fc_norm when "
    "fine-tuning), the class token, or for linprobe all patch tokens",
  )
  trainable: str = setting(
    "all",
    was="trained",
    help="all, head, mlp (of the last block), or a number of last blocks, as "
    "'4 blocks'",
  )
  norm_group: int = setting(
    512, ge=2, help="examples over which the linear probe's BatchNorm averages"
  )
  head_std: float = setting(
    2e-5, ge=0, help="standard deviation of the head's initial kernel"
  )
  drop_path: float = setting(
    0.0, ge=0, lt=1, help="rate at the last block; rises linearly from 0"
  )
  smoothing: float = setting(0.0, ge=0, lt=1, help="label smoothing")
  mixup: float = setting(0.0, ge=0, help="alpha of mixup; 0 for none")
  cutmix: float = setting(0.0, ge=0, help="alpha of cutmix; 0 for none")
  mix_switch: float = setting(
    0.5, ge=0, le=1, help="probability of cutmix in place of mixup"
  )
  mix_prob: float = setting(
    1.0, ge=0, le=1, help="probability that a batch is mixed"
  )
  erasing: float = setting(
    0.0, ge=0, le=1, help="probability that a box of an image becomes noise"
  )
  ema: float = setting(
    0.0,
    ge=0,
    lt=1,
    help="decay of averaged parameters, which are then evaluated; 0 for none",
  )
  class_weights: str = setting(
    "",
    choices=("", "balanced"),
    help="weights of classes in the loss; balanced: inverse to the number of "
    "training images, with mean 1 over these images",
  )


@section
class OptimConfig:
  """The optimizer and its schedule; `lr` follows blr and batch unless set."""

  blr: float = setting(
    ge=0, le=1e20, help="base learning rate, per 256 examples"
  )
  warmup: str = setting(duration=True, help="linear warm-up from 0")
  weight_decay: float = setting(ge=0, le=1e6, help="decoupled weight decay")
  b1: float = setting(ge=0, lt=1, help="beta 1 of Adam")
  b2: float = setting(ge=0, lt=1, help="beta 2 of Adam")
  lr: float | None = setting(
    None,
    ge=0,
    le=1e20,
    help="peak learning rate; default: blr x data.batch_size / 256",
  )
  min_lr: float = setting(
    0.0, ge=0, le=1e20, help="learning rate at the end of the cosine"
  )
  grad_clip: float | None = setting(
    None, gt=0, help="largest global norm of gradients; default: no clipping"
  )
  accum_steps: int = resumable(1, ge=1, help="micro-batches a step")
  layer_decay: float = setting(
    1.0,
    gt=0,
    le=1,
    help="factor on the learning rate from each layer to the one below",
  )


@section
class TrainConfig:
  """Length of training, intervals of logs and checkpoints, and the seed."""

  length: str = resumable(duration=True, help="how long to train")
  seed: int = setting(0, ge=0, help="seed of everything random")
  log_every: str = resumable(
    "50 steps", duration=True, help="between logged steps"
  )
  save_every: str = resumable(
    "1 epochs", duration=True, help="between checkpoints"
  )
  save_every_minutes: float = resumable(
    0.0,
    ge=0,
    was="save_minutes",
    help="save also after this many minutes; 0 for never",
  )
  keep: int = resumable(
    3, ge=1, help="newest checkpoints to keep; older ones are deleted"
  )
  keep_every: str = resumable(
    "0 steps",
    duration=True,
    help="between checkpoints that are never deleted; 0: none",
  )
  keep_best: str = resumable(
    "",
    help="metric of the evaluations, such as eval_top1 or eval_loss, whose "
    "best checkpoint is kept too; '' for none",
  )
  patience: int = resumable(
    0,
    ge=0,
    help="evaluations in a row without a better keep_best, after which "
    "training ends; 0: it never ends early",
  )
  max_bad_steps: int = resumable(
    10,
    ge=1,
    help="consecutive steps with a loss that is not finite that stop the run",
  )
  spike_factor: float = resumable(
    3.0, gt=1, help="warn of a loss above this many times its running mean"
  )
  shutdown_timeout: float = resumable(
    120.0,
    gt=0,
    was="stop_seconds",
    help="seconds to save and exit after SIGTERM or Ctrl-C",
  )
  compile_cache: str = resumable(
    "",
    help="directory for compiled programs, shared by runs; '' leaves it to "
    "JAX_COMPILATION_CACHE_DIR",
  )
  trackers: tuple[str, ...] = resumable(
    (),
    choices=("mlflow", "trackio", "wandb"),
    help="experiment trackers that get the metrics too; a resumed run "
    "continues its runs there",
  )
  project: str = resumable(
    "mae_jax", help="trackers: the project or experiment of the run"
  )
  profile: str = resumable(
    "",
    help="first and last step of a JAX profiler trace, as 100:110, written to "
    "WORKDIR/profile; '' for none",
  )

  def __post_init__(self):
    self.profiled_steps()

  def profiled_steps(self) -> tuple[int, int] | None:
    """Reads `profile`.

    Returns:
      The first and the last step to trace; None for none.

    Raises:
      ConfigError: if the text is something else.
    """
    if not self.profile:
      return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.profile, re.ASCII)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
      raise ConfigError(
        f"train.profile={abbreviate(self.profile)} is no range of steps: write "
        "the first and the last one, for instance 100:110"
      )
    return first, last


@section
class MeshConfig:
  """The devices as a mesh data x fsdp, where data is what remains."""

  fsdp: int = resumable(
    1,
    ge=1,
    help="devices that share one copy of parameters and optimizer state",
  )
  cpu_devices: int = resumable(
    0,
    ge=0,
    le=2**10,
    help="XLA devices of a host without accelerators; 0 leaves it to JAX",
  )
  overlap: bool = resumable(
    True,
    help="TPU v5e and newer: sum gradients over devices while others are "
    "computed. Set it to false if your TPU compiler rejects our options",
  )


@section
class EvalConfig:
  """Probes of frozen features, and pictures, during and after training."""

  every: str = resumable(
    "0 steps", duration=True, help="between evaluations; 0: only at the end"
  )
  shots: tuple[int, ...] = resumable(
    (0,),
    ge=0,
    help="labeled images of each class that probes learn from; 0 for all",
  )
  num_trials: int = resumable(
    10,
    ge=1,
    was="draws",
    help="random choices of these images, over which accuracy is averaged",
  )
  max_train: int = resumable(
    0, ge=0, help="training images for probes; 0 for all"
  )
  pooling: str = resumable(
    "mean",
    choices=("all", "cls", "mean"),
    help="features: mean of patch tokens, class token, or all patch tokens "
    "side by side",
  )
  knn_k: int = resumable(20, ge=1, help="neighbors of kNN")
  knn_temperature: float = resumable(
    0.07, gt=0, help="temperature of kNN's weights"
  )
  probe_l2: float = resumable(
    1.0, gt=0, help="L2 penalty of the logistic regression"
  )
  raw_pixels: bool = resumable(
    False, help="probe raw pixels too, for comparison"
  )
  images: int = resumable(
    8, ge=0, le=2**12, help="images in reconstructions.png; 0 for none"
  )
  measure: str = resumable(
    "head",
    choices=("features", "head"),
    help="task=evaluate: accuracy of a checkpoint's head, or probes of its "
    "frozen features",
  )
  classes: str = resumable(
    "auto",
    choices=("all", "auto", "present"),
    help="classes that a prediction may be: all of the head's, those among "
    "the labels, or (auto) the latter for ImageNet-A and ImageNet-R alone",
  )


@section
class LabelEfficiencyConfig:
  """Runs of task=label_efficiency, which differ in start, labels and seed."""

  task: str = setting(
    "finetune", choices=("finetune", "linprobe"), help="task of each run"
  )
  pretrain: str = resumable(
    "", help="recipe of the pre-training that runs first, without init_from"
  )
  scratch: bool = setting(True, help="train as many runs from scratch")
  shots: tuple[int, ...] = setting(
    (5, 10, 0), ge=0, help="labeled images of each class; 0 for all"
  )
  seeds: int = setting(
    5, ge=1, help="seeds of labels, order and initialization"
  )


# Tasks with a train step: the module and the class of each.
TASKS = {
  "pretrain": "mae_jax.train.tasks.pretrain:PretrainTask",
  "finetune": "mae_jax.train.tasks.finetune:FinetuneTask",
  "linprobe": "mae_jax.train.tasks.linprobe:LinprobeTask",
}


@section
class Config:
  """All settings of a run."""

  task: str = setting(
    choices=(*TASKS, "label_efficiency", "evaluate"),
    values_were=(("compare", "label_efficiency"),),
    help="what the run does",
  )
  data: DataConfig = setting(help="images")
  model: ModelConfig = setting(help="the network")
  objective: ObjectiveConfig = setting(help="the pre-training objective")
  optim: OptimConfig = setting(help="the optimizer")
  train: TrainConfig = setting(help="length, logging, saving")
  mesh: MeshConfig = setting(MeshConfig(), help="devices")
  eval: EvalConfig = setting(EvalConfig(), help="evaluation")
  classify: ClassifyConfig = setting(ClassifyConfig(), help="classification")
  label_efficiency: LabelEfficiencyConfig = setting(
    LabelEfficiencyConfig(), was="compare", help="label efficiency"
  )
  discriminator: DiscriminatorConfig = setting(
    DiscriminatorConfig(), was="adversary", help="the discriminator"
  )
  init_from: str = resumable(
    "",
    help="checkpoint or weights (facebook, transformers, timm, hf://ORG/NAME) "
    "that a new run starts from",
  )
  init_adapt: bool = resumable(
    False,
    help="let init_from have another patch size or number of channels; see "
    "mae_jax/models/resize_patches.py",
  )

  if not typing.TYPE_CHECKING:  # otherwise mypy would know every name

    def __getattr__(self, name: str) -> Any:
      """Explains the names of settings that are in a section."""
      found = [f"config.{x}" for x in RULES if x.endswith(f".{name}")]
      hint = f": use {' or '.join(found)}" if found else ""
      raise AttributeError(f"'Config' object has no attribute {name!r}{hint}")

  def replace(self, changes: Mapping[str, Any]) -> Config:
    """Returns a config with other settings.

    The learning rate follows `optim.blr` and `data.batch_size`, unless it was
    set apart from them.

    Args:
      changes: values by name, as {"data.path": "photos", "task": "pretrain"}.

    Raises:
      ConfigError: if a name is not known, or a value cannot work.

    Example:
      >>> import mae_jax
      >>> config = mae_jax.recipe("few_images").replace({"data.path": "photos"})
      >>> config.data.path
      'photos'
    """
    from mae_jax.config import changes as changes_lib  # which imports this

    return changes_lib.replace(self, changes)


def to_dict(config: Config) -> dict[str, Any]:
  """Returns the plain nested dict that a checkpoint stores as JSON."""
  return dataclasses.asdict(config)


def rules() -> Iterator[tuple[str, dataclasses.Field, Rule]]:
  """Yields each setting's full name, as "data.batch_size", field and rule."""
  for field in dataclasses.fields(Config):
    kind = SECTIONS.get(field.name)
    if kind is None:
      yield field.name, field, rule_of(field)
      continue
    for each in dataclasses.fields(kind):
      yield f"{field.name}.{each.name}", each, rule_of(each)


SECTIONS: dict[str, Any] = {
  name: kind
  for name, kind in typing.get_type_hints(Config).items()
  if dataclasses.is_dataclass(kind)
}
RULES: dict[str, Rule] = {name: rule for name, _, rule in rules()}


def fixed_changes(before: Config, now: Config) -> list[str]:
  """Lists the settings that differ but may not when a run resumes."""
  old, new = dict(leaves(before)), dict(leaves(now))
  return [
    f"{name} was {old[name]!r}, is {new[name]!r}"
    for name in old
    if old[name] != new[name] and not RULES[name].resumable
  ]


def leaves(config: Config) -> Iterator[tuple[str, Any]]:
  """Yields each setting's full name, as "data.batch_size", and value."""
  for section_name, values in to_dict(config).items():
    if isinstance(values, dict):
      for key, value in values.items():
        yield f"{section_name}.{key}", value
    else:
      yield section_name, values
