"""The properties of a network that a file of weights states or leaves open."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from mae_jax.config import Config
from mae_jax.models import architecture, factory
from mae_jax.utils.errors import ConfigError

ENCODER, MAE, CLASSIFIER, PROBE = "encoder", "mae", "classifier", "probe"
# The task that trains each kind, and its description.
TASKS = {
  ENCODER: "pretrain",
  MAE: "pretrain",
  CLASSIFIER: "finetune",
  PROBE: "linprobe",
}
KIND_OF_TASK = {task: kind for kind, task in TASKS.items() if kind != ENCODER}
KINDS = {
  ENCODER: "encoder only",
  MAE: "encoder and decoder",
  CLASSIFIER: "fine-tuned classifier",
  PROBE: "linear probe",
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# The reference's evaluation crops 224 of 256 pixels.
EVAL_CROP = 224 / 256
DECODER_HEADS = {512: 16}  # by width, of the reference's decoder
TARGETS = {"norm_pix": True, "raw": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
  """The properties of a network; None for unknown ones.

  Attributes:
    kind: a name in KINDS.
    width: width of the encoder.
    depth: number of the encoder's blocks.
    mlp_dim: hidden width of the encoder's MLP.
    patch_size: height and width in pixels.
    channels: channels of images.
    heads: attention heads of the encoder.
    image_size: height and width in pixels.
    decoder: dimensions of the decoder; None without one.
    norm_eps: epsilon of every LayerNorm.
    activation: a name in `transformer.ACTIVATIONS`.
    norm_pix: whether the decoder predicts normalized patches.
    mask_ratio: mask ratio of pre-training.
    mean: mean of pixels in [0, 1], per channel.
    std: standard deviation of pixels in [0, 1], per channel.
    eval_crop: as in `DataConfig`; also the next two.
    eval_fit: how images are fitted to `image_size`.
    eval_resample: interpolation of images.
    pooling: pooling in front of the head.
    classes: number of classes.
    class_names: names of the classes; () if unknown.
    assumed: names of flags whose values are defaults, not in the file.
    notes: what the file states and this project does not do, one line each.
  """

  kind: str
  width: int
  depth: int
  mlp_dim: int
  patch_size: tuple[int, int]
  channels: int
  heads: int | None = None
  image_size: tuple[int, int] | None = None
  decoder: architecture.Dims | None = None
  norm_eps: float = 1e-6
  activation: str = "gelu"
  norm_pix: bool | None = None
  mask_ratio: float = 0.75
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  eval_crop: float = EVAL_CROP
  eval_fit: str = "crop"
  eval_resample: str = "bicubic"
  pooling: str = "mean"
  classes: int = 0
  class_names: Sequence[str] = ()
  assumed: frozenset[str] = dataclasses.field(
    default=frozenset(), compare=False
  )
  notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  @property
  def size(self) -> str:
    """The name of the encoder's size; "" if no named size fits."""
    for name, dims in architecture.VARIANTS.items():
      if all(getattr(self, x) == getattr(dims, x) for x in architecture.DIMS):
        return name
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOverrides:
  """Model info from a user or a config, to complete that of a file.

  None leaves a field to the file. `target` and `positions` are values of the
  command line. With `insist`, a contradiction to the file raises an error, and
  overrides replace assumed values. Without, the file takes precedence.
  `encoder_only` loads only the encoder of any network; `no_decoder` drops the
  decoder of an autoencoder. `fixed_positions` leaves out the note that other
  positions are kept, as the caller refuses them.
  """

  heads: int | None = None
  decoder_heads: int | None = None
  image_size: tuple[int, int] | None = None
  target: str | None = None
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  norm_eps: float | None = None
  class_names: Sequence[str] | None = None
  positions: str | None = None
  insist: bool = False
  encoder_only: bool = False
  no_decoder: bool = False
  fixed_positions: bool = False

  @classmethod
  def from_config(cls, config: Config) -> Self:
    """Returns the model info of a config whose run starts from a file."""
    return cls(
      heads=factory.encoder(config).config.heads,
      decoder_heads=config.model.decoder_heads,
      mean=config.data.mean,
      std=config.data.std,
      target=config.objective.target
      if config.objective.target in TARGETS
      else None,
    )


NO_OVERRIDES = ModelOverrides()


def default_class_names(classes: int) -> tuple[str, ...]:
  """Returns names for unnamed classes, as transformers does."""
  return tuple(f"LABEL_{number}" for number in range(classes))


def heads_of_named_size(width: int, depth: int) -> int | None:
  """Returns the heads of the named size with these dimensions, or None."""
  for dims in architecture.VARIANTS.values():
    if (dims.width, dims.depth) == (width, depth):
      return dims.heads
  return None


def with_overrides(info: ModelInfo, overrides: ModelOverrides) -> ModelInfo:
  """Completes the model info of a file with overrides.

  Overrides fill in what the file leaves open. Only class names and the
  LayerNorm's eps replace its values, because files are known to state these
  wrongly.

  Raises:
    ConfigError: if an override contradicts the file, with `insist`.
  """
  if (overrides.encoder_only and info.kind != ENCODER) or (
    overrides.no_decoder and info.kind == MAE
  ):
    info = _encoder_only(info)
  changes: dict[str, Any] = {
    name: _fill(
      name, getattr(info, name), getattr(overrides, name), info, overrides
    )
    for name in ("heads", "image_size", "mean", "std")
  }
  if overrides.norm_eps is not None:
    changes["norm_eps"] = overrides.norm_eps
  if info.decoder is not None:
    stated = info.decoder.heads or None
    heads = _fill(
      "decoder_heads", stated, overrides.decoder_heads, info, overrides
    )
    changes["decoder"] = dataclasses.replace(info.decoder, heads=heads or 0)
    target = None if overrides.target is None else TARGETS[overrides.target]
    changes["norm_pix"] = _fill(
      "target", info.norm_pix, target, info, overrides
    )
  elif overrides.insist:
    _check_no_decoder(overrides)
  if overrides.class_names is not None:
    _check_class_names(overrides.class_names, info.classes)
    changes["class_names"] = tuple(overrides.class_names)
  return dataclasses.replace(info, **changes)


def _fill(
  name: str,
  known: Any,
  override: Any,
  info: ModelInfo,
  overrides: ModelOverrides,
) -> Any:
  """Returns the known value, or the override where nothing is known."""
  if override is None or known == override:
    return known
  if known is None or (overrides.insist and name in info.assumed):
    return override
  if overrides.insist:
    words = {value: word for word, value in TARGETS.items()}
    stated = [words[x] if name == "target" else x for x in (override, known)]
    raise ConfigError(
      f"--{name}={stated[0]} contradicts the weights, which have {stated[1]}: "
      "leave the flag out"
    )
  return known


def _encoder_only(info: ModelInfo) -> ModelInfo:
  if info.kind == CLASSIFIER and info.pooling == "mean":
    raise ConfigError(
      "--encoder_only: an encoder that was fine-tuned with mean pooling has no "
      "final norm and cannot be used alone: leave the flag out to convert the "
      "whole classifier"
    )
  return dataclasses.replace(
    info, kind=ENCODER, decoder=None, norm_pix=None, classes=0, class_names=()
  )


def _check_no_decoder(overrides: ModelOverrides) -> None:
  for name in ("target", "decoder_heads"):
    value = getattr(overrides, name)
    if value is not None:
      raise ConfigError(
        f"--{name}={value} describes a decoder, but "
        + (
          "--encoder_only leaves it out"
          if overrides.encoder_only
          else "the weights have none"
        )
        + f": leave --{name} out"
      )


def check_distinct(names: Sequence[str]) -> None:
  """Raises ConfigError if two classes have one name."""
  labels: dict[str, int] = {}
  for label, name in enumerate(names):
    first = labels.setdefault(name, label)
    if first != label:
      raise ConfigError(
        f"--class_names has {name!r} for the labels {first} and {label}, which "
        "results could not tell apart: give each class a name of its own"
      )


def _check_class_names(names: Sequence[str], classes: int) -> None:
  check_distinct(names)
  if len(names) != classes:
    raise ConfigError(
      f"--class_names has {len(names)} lines, but the head has {classes} "
      "classes: write one name per line, in the order of labels"
      if classes
      else "--class_names is given, but the weights have no head: leave it out"
    )


def missing_info(info: ModelInfo) -> list[str]:
  """Lists the info that conversion needs but lacks, each with its flag."""
  decoder = info.decoder
  questions = (
    (
      info.heads is None,
      "the number of attention heads, which no tensor shows, and no named size "
      f"has width {info.width} and {info.depth} blocks: convert it with "
      "--heads",
    ),
    (
      decoder is not None and not decoder.heads,
      "the number of the decoder's attention heads, which no tensor shows, and "
      "the reference's decoder has width 512: convert it with --decoder_heads",
    ),
    (
      info.image_size is None,
      "the height and width of its images, which are not square or whose "
      "position table has no class token: convert it with "
      "--image_size=HEIGHT,WIDTH",
    ),
    (
      decoder is not None and info.norm_pix is None,
      "the target of its decoder: convert it with --target=norm_pix (as for "
      "mae_pretrain_vit_*_full.pth) or --target=raw (as for "
      "mae_visualize_*.pth)",
    ),
    (
      info.mean is None or info.std is None,
      "the normalization of pixels: convert it with --mean and --std, one "
      f"number for each of {info.channels} channels or one for all (ImageNet's "
      "are 0.485,0.456,0.406 and 0.229,0.224,0.225)",
    ),
  )
  return [text for is_missing, text in questions if is_missing]


def has_fixed_positions(info: ModelInfo) -> bool:
  """Checks whether the network's position tables are fixed, not trained."""
  return info.kind in (ENCODER, MAE)


def check_fixed_positions(info: ModelInfo, what: str) -> None:
  """Raises ConfigError if the position tables were trained."""
  if not has_fixed_positions(info):
    raise ConfigError(
      f"--positions=sincos: the positions of {what} were trained with its head "
      "and cannot be replaced: leave the flag out"
    )
