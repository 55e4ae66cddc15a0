"""What a file of weights says of its network, and what it leaves open."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mae_jax.config import Config
from mae_jax.models import architecture, factory
from mae_jax.utils.errors import ConfigError

ENCODER, MAE, CLASSIFIER, PROBE = "encoder", "mae", "classifier", "probe"
# What a file holds, by the task that trains it here, and for people.
TASKS = {
  ENCODER: "pretrain",
  MAE: "pretrain",
  CLASSIFIER: "finetune",
  PROBE: "linprobe",
}
KINDS = {
  ENCODER: "encoder only",
  MAE: "encoder and decoder",
  CLASSIFIER: "fine-tuned classifier",
  PROBE: "linear probe",
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# What crops the evaluation of the reference: 224 of 256 pixels.
EVAL_CROP = 224 / 256
# The reference's decoder.
_DECODER_HEADS = {512: 16}
TARGETS = {"norm_pix": True, "raw": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
  """What is known of a network; None for what is not.

  Attributes:
    kind: a name in KINDS.
    width: of the encoder, as the next three.
    depth: number of blocks.
    mlp_dim: hidden width of the MLP.
    heads: attention heads.
    patch_size: height and width.
    channels: of images.
    image_size: height and width.
    decoder: the same of the decoder; None without one.
    norm_eps: of every LayerNorm.
    activation: a name in `transformer.ACTIVATIONS`.
    norm_pix: whether the decoder predicts normalized patches.
    mask_ratio: it was trained with.
    mean: of pixels in [0, 1], per channel.
    std: likewise.
    eval_crop: see `config.Data`.
    pooling: in front of the head.
    classes: how many.
    class_names: of them; () if they are not known.
    presumed: names of flags for what the file does not say, and is usual.
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
  pooling: str = "mean"
  classes: int = 0
  class_names: Sequence[str] = ()
  presumed: frozenset[str] = dataclasses.field(
    default=frozenset(), compare=False
  )

  @property
  def size(self) -> str:
    """The name of the encoder's dimensions, "" if they have none."""
    for name, dims in architecture.VARIANTS.items():
      if (self.width, self.depth, self.mlp_dim, self.heads) == (
        dims.width,
        dims.depth,
        dims.mlp_dim,
        dims.heads,
      ):
        return name
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOverrides:
  """What a user, or the config that a network is for, says of it.

  None for nothing. `target` and `positions` are words of the command line.
  `insist` makes it an error to contradict the file, and takes them for what is
  only presumed; a config is compared with what comes of it.
  `encoder_only` takes no more than the encoder of any network, `no_decoder` no
  more than that of an autoencoder.
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

  @classmethod
  def of_config(cls, config: Config) -> ModelOverrides:
    """What a config says of the network that is to start from a file."""
    model = factory.encoder(config)
    return cls(
      heads=model.heads,
      decoder_heads=config.model.decoder_heads,
      mean=config.data.mean,
      std=config.data.std,
      target=config.objective.target
      if config.objective.target in TARGETS
      else None,
    )


NO_OVERRIDES = ModelOverrides()


def unnamed(classes: int) -> tuple[str, ...]:
  """What classes without a name are called, as in transformers."""
  return tuple(f"LABEL_{number}" for number in range(classes))


def known_heads(width: int, depth: int) -> int | None:
  """Those of the named size with these dimensions."""
  for dims in architecture.VARIANTS.values():
    if (dims.width, dims.depth) == (width, depth):
      return dims.heads
  return None


def known_decoder_heads(width: int) -> int | None:
  """Those of the reference's decoder, if it is as wide."""
  return _DECODER_HEADS.get(width)


def with_overrides(facts: ModelInfo, hints: ModelOverrides) -> ModelInfo:
  """What the file leaves open, filled in by the hints.

  Only what it does not say may be said of it, but for the class names and the
  LayerNorm's eps, which files are known to say wrongly.

  Raises:
    ConfigError: if a hint contradicts it.
  """
  if (hints.encoder_only and facts.kind != ENCODER) or (
    hints.no_decoder and facts.kind == MAE
  ):
    facts = _encoder_of(facts)
  changes: dict[str, Any] = {
    name: _filled(
      name, getattr(facts, name), getattr(hints, name), facts, hints
    )
    for name in ("heads", "image_size", "mean", "std")
  }
  if hints.norm_eps is not None:
    changes["norm_eps"] = hints.norm_eps
  if facts.decoder is not None:
    said = facts.decoder.heads or None
    heads = _filled("decoder_heads", said, hints.decoder_heads, facts, hints)
    changes["decoder"] = dataclasses.replace(facts.decoder, heads=heads or 0)
    target = None if hints.target is None else TARGETS[hints.target]
    changes["norm_pix"] = _filled(
      "target", facts.norm_pix, target, facts, hints
    )
  elif hints.insist:
    _check_no_decoder(hints)
  if hints.class_names is not None:
    _check_names(hints.class_names, facts.classes)
    changes["class_names"] = tuple(hints.class_names)
  return dataclasses.replace(facts, **changes)


def _filled(
  name: str, known: Any, hint: Any, facts: ModelInfo, hints: ModelOverrides
) -> Any:
  """What is known, or what the user says where that is less."""
  if hint is None or known == hint:
    return known
  if known is None or (hints.insist and name in facts.presumed):
    return hint
  if hints.insist:
    words = {value: word for word, value in TARGETS.items()}
    said = [words[x] if name == "target" else x for x in (hint, known)]
    raise ConfigError(
      f"--{name}={said[0]} contradicts the weights, which say {said[1]}: leave "
      "the flag out"
    )
  return known


def _encoder_of(facts: ModelInfo) -> ModelInfo:
  if facts.kind == CLASSIFIER and facts.pooling == "mean":
    raise ConfigError(
      "--encoder_only: an encoder that was fine-tuned with mean pooling has no "
      "final norm, without which it is no encoder of its own: leave the flag "
      "out to convert the classifier whole"
    )
  return dataclasses.replace(
    facts, kind=ENCODER, decoder=None, norm_pix=None, classes=0, class_names=()
  )


def _check_no_decoder(hints: ModelOverrides) -> None:
  for name in ("target", "decoder_heads"):
    value = getattr(hints, name)
    if value is not None:
      raise ConfigError(
        f"--{name}={value} is about a decoder, and "
        + (
          "--encoder_only leaves that out"
          if hints.encoder_only
          else "the weights have none"
        )
        + f": leave --{name} out"
      )


def _check_names(names: Sequence[str], classes: int) -> None:
  if len(names) != classes:
    raise ConfigError(
      f"--class_names has {len(names)} lines, and the head {classes} classes: "
      "write the name of each on a line, in the order of labels"
      if classes
      else "--class_names is given, and the weights have no head: leave it out"
    )


def open_questions(facts: ModelInfo) -> list[str]:
  """What must be known and is not, each with the flag that says it."""
  sized = f"{facts.width} wide with {facts.depth} blocks"
  decoder = facts.decoder
  questions = (
    (
      facts.heads is None,
      "the number of attention heads, which no tensor shows: none of the named "
      f"sizes is {sized}: convert it with --heads",
    ),
    (
      decoder is not None and not decoder.heads,
      "the number of the decoder's attention heads, which no tensor shows; the "
      "reference's is 512 wide: convert it with --decoder_heads",
    ),
    (
      facts.image_size is None,
      "the height and width of its images, which are not square: convert it "
      "with --image_size=HEIGHT,WIDTH",
    ),
    (
      decoder is not None and facts.norm_pix is None,
      "what its decoder predicts: convert it with --target=norm_pix (as "
      "mae_pretrain_vit_*_full.pth) or --target=raw (as mae_visualize_*.pth)",
    ),
    (
      facts.mean is None or facts.std is None,
      "how pixels were normalized: convert it with --mean and --std, a number "
      f"for each of {facts.channels} channels or one for all (ImageNet's are "
      "0.485,0.456,0.406 and 0.229,0.224,0.225)",
    ),
  )
  return [text for asked, text in questions if asked]


def is_fixed(facts: ModelInfo) -> bool:
  """Whether positions are a table that could be replaced."""
  return facts.kind in (ENCODER, MAE)


def check_fixed(facts: ModelInfo, what: str) -> None:
  """Raises ConfigError if positions are not a table that could be replaced."""
  if not is_fixed(facts):
    raise ConfigError(
      f"--positions=sincos: the positions of {what} were trained with its "
      "head, and are no table to replace: leave the flag out"
    )
