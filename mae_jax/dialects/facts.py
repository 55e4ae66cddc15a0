"""What a file of weights says of its network, and what it leaves open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mae_jax import checkpoints
from mae_jax import config as config_lib
from mae_jax.checkpoints import sums
from mae_jax.models import build, classifiers, variants

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
_DIMS = ("width", "depth", "heads", "mlp_dim")
TARGETS = {"norm_pix": True, "raw": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
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
    norm_pix: whether the decoder predicts normalised patches.
    mask_ratio: it was trained with.
    mean: of pixels in [0, 1], per channel.
    std: likewise.
    eval_crop: see `config.Data`.
    pooling: in front of the head.
    classes: how many.
    class_names: of them; () if they are not known.
  """

  kind: str
  width: int
  depth: int
  mlp_dim: int
  patch_size: tuple[int, int]
  channels: int
  heads: int | None = None
  image_size: tuple[int, int] | None = None
  decoder: variants.Dims | None = None
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

  @property
  def size(self) -> str:
    """The name of the encoder's dimensions, "" if they have none."""
    for name, dims in variants.VARIANTS.items():
      if (self.width, self.depth, self.mlp_dim, self.heads) == (
        dims.width,
        dims.depth,
        dims.mlp_dim,
        dims.heads,
      ):
        return name
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
  """What a user, or the config that a network is for, says of it.

  None for nothing. `target` and `positions` are words of the command line.
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
  encoder_only: bool = False
  no_decoder: bool = False

  @classmethod
  def of_config(cls, config: config_lib.Config) -> Hints:
    """What a config says of the network that is to start from a file."""
    model = build.encoder(config)
    return cls(
      heads=model.heads,
      decoder_heads=config.model.decoder_heads,
      mean=config.data.mean,
      std=config.data.std,
      target=next(
        word
        for word, value in TARGETS.items()
        if value == config.objective.norm_pix_loss
      ),
    )


NO_HINTS = Hints()


def unnamed(classes: int) -> tuple[str, ...]:
  """What classes without a name are called, as in transformers."""
  return tuple(f"LABEL_{number}" for number in range(classes))


def known_heads(width: int, depth: int) -> int | None:
  """Those of the named size with these dimensions."""
  for dims in variants.VARIANTS.values():
    if (dims.width, dims.depth) == (width, depth):
      return dims.heads
  return None


def known_decoder_heads(width: int) -> int | None:
  """Those of the reference's decoder, if it is as wide."""
  return _DECODER_HEADS.get(width)


def with_hints(facts: Facts, hints: Hints) -> Facts:
  """What the file leaves open, filled in by the hints.

  Only what it cannot say may be said of it, but for the class names and the
  LayerNorm's eps, which files are known to say wrongly.

  Raises:
    ConfigError: if a hint contradicts it.
  """
  if (hints.encoder_only and facts.kind != ENCODER) or (
    hints.no_decoder and facts.kind == MAE
  ):
    facts = _encoder_of(facts)
  changes: dict[str, Any] = {}
  for name in ("heads", "image_size", "mean", "std"):
    changes[name] = getattr(facts, name)
    if changes[name] is None:
      changes[name] = getattr(hints, name)
  if hints.norm_eps is not None:
    changes["norm_eps"] = hints.norm_eps
  if facts.decoder is not None:
    heads = facts.decoder.heads or hints.decoder_heads or 0
    changes["decoder"] = dataclasses.replace(facts.decoder, heads=heads)
    if facts.norm_pix is None and hints.target is not None:
      changes["norm_pix"] = TARGETS[hints.target]
  if hints.class_names is not None:
    _check_names(hints.class_names, facts.classes)
    changes["class_names"] = tuple(hints.class_names)
  return dataclasses.replace(facts, **changes)


def _encoder_of(facts: Facts) -> Facts:
  if facts.kind == CLASSIFIER and facts.pooling == "mean":
    raise config_lib.ConfigError(
      "--encoder_only: an encoder that was fine-tuned with mean pooling has no "
      "final norm, without which it is no encoder of its own: leave the flag "
      "out to convert the classifier whole"
    )
  return dataclasses.replace(
    facts, kind=ENCODER, decoder=None, norm_pix=None, classes=0, class_names=()
  )


def _check_names(names: Sequence[str], classes: int) -> None:
  if len(names) != classes:
    raise config_lib.ConfigError(
      f"--class_names has {len(names)} lines, and the head {classes} classes: "
      "write the name of each on a line, in the order of labels"
      if classes
      else "--class_names is given, and the weights have no head: leave it out"
    )


def open_questions(facts: Facts) -> list[str]:
  """What must be known and is not, each with the flag that says it."""
  sized = f"{facts.width} wide with {facts.depth} blocks"
  decoder = facts.decoder
  questions = (
    (
      facts.heads is None,
      "the number of attention heads, which no tensor shows: none of the named "
      f"sizes is {sized}. Give --heads",
    ),
    (
      decoder is not None and not decoder.heads,
      "the number of the decoder's attention heads, which no tensor shows; the "
      "reference's is 512 wide. Give --decoder_heads",
    ),
    (
      facts.image_size is None,
      "the height and width of its images, which are not square. Give "
      "--image_size=HEIGHT,WIDTH",
    ),
    (
      decoder is not None and facts.norm_pix is None,
      "what its decoder predicts. Give --target=norm_pix (as "
      "mae_pretrain_vit_*_full.pth) or --target=raw (as mae_visualize_*.pth)",
    ),
    (
      facts.mean is None or facts.std is None,
      "how pixels were normalised. Give --mean and --std, a number for each of "
      f"{facts.channels} channels or one for all (ImageNet's are "
      "0.485,0.456,0.406 and 0.229,0.224,0.225)",
    ),
  )
  return [text for asked, text in questions if asked]


def to_run(
  facts: Facts, what: str, base: checkpoints.Run | None = None
) -> checkpoints.Run:
  """The run of a checkpoint with such a network.

  Args:
    facts: with nothing open.
    what: the file, for messages.
    base: what the file says of the run that trained it. Without, settings of
      training are those of no training.

  Raises:
    ConfigError: if something is open, or the sizes do not fit together.
  """
  if questions := open_questions(facts):
    raise config_lib.ConfigError(f"{what} does not say {questions[0]}")
  assert facts.image_size is not None
  assert facts.mean is not None
  assert facts.std is not None
  task = TASKS[facts.kind]
  if base and base.config.task == task and from_run(base, facts.kind) == facts:
    return base
  config = base.config if base else _untrained(facts)
  config = dataclasses.replace(
    config,
    task=task,
    data=dataclasses.replace(
      config.data,
      image_size=facts.image_size,
      channels=facts.channels,
      mean=facts.mean,
      std=facts.std,
      eval_crop=facts.eval_crop,
    ),
    model=_model(facts),
    objective=config_lib.Objective(
      mask_ratio=facts.mask_ratio,
      norm_pix_loss=config.objective.norm_pix_loss
      if facts.norm_pix is None
      else facts.norm_pix,
    ),
    classify=dataclasses.replace(config.classify, pooling=facts.pooling),
  )
  # As any config: values and bounds are checked.
  config = config_lib.from_config_dict(config_lib.to_dict(config))
  names = facts.class_names or unnamed(facts.classes)
  return checkpoints.Run(config, base.data if base else {}, names)


def _untrained(facts: Facts) -> config_lib.Config:
  assert facts.image_size is not None
  assert facts.mean is not None
  assert facts.std is not None
  return config_lib.Config(
    task=TASKS[facts.kind],
    data=config_lib.Data(
      source="folder",
      batch_size=1,
      image_size=facts.image_size,
      crop_scale=(1.0, 1.0),
      flip=False,
      eval_crop=facts.eval_crop,
      mean=facts.mean,
      std=facts.std,
    ),
    model=_model(facts),
    objective=config_lib.Objective(),
    optim=config_lib.Optim(
      blr=0.0, warmup="0 steps", weight_decay=0.0, b1=0.9, b2=0.999
    ),
    train=config_lib.Train(length="0 steps"),
  )


def _model(facts: Facts) -> config_lib.Model:
  size, patch = facts.size, facts.patch_size
  dims = {name: getattr(facts, name) for name in _DIMS}
  return config_lib.Model(
    variant=f"{size or next(iter(variants.VARIANTS))}/{patch[0]}",
    patch_size=None if patch[0] == patch[1] else patch,
    dtype="float32",
    norm_eps=facts.norm_eps,
    activation=facts.activation,
    **({} if size else dims),
    **_decoder_settings(facts.decoder),
  )


def _decoder_settings(dims: variants.Dims | None) -> dict[str, Any]:
  if dims is None:
    return {}
  usual = dims.mlp_dim == 4 * dims.width
  return {
    "decoder_width": dims.width,
    "decoder_depth": dims.depth,
    "decoder_heads": dims.heads,
    "decoder_mlp_dim": None if usual else dims.mlp_dim,
  }


def from_run(run: checkpoints.Run, kind: str) -> Facts:
  """What is known of a network that was trained here."""
  config = run.config
  encoder = build.encoder(config)
  dims = None
  if kind == MAE:
    decoder = build.masked_autoencoder(config).decoder
    dims = variants.Dims(
      decoder.width, decoder.depth, decoder.heads, decoder.mlp_dim
    )
  return Facts(
    kind=kind,
    width=encoder.width,
    depth=encoder.depth,
    heads=encoder.heads,
    mlp_dim=encoder.mlp_dim,
    patch_size=encoder.patch_size,
    channels=config.data.channels,
    image_size=config.data.image_size,
    decoder=dims,
    norm_eps=encoder.norm_eps,
    activation=encoder.activation,
    norm_pix=config.objective.norm_pix_loss if kind == MAE else None,
    mask_ratio=config.objective.mask_ratio,
    mean=config.data.mean,
    std=config.data.std,
    eval_crop=config.data.eval_crop,
    pooling=config.classify.pooling,
    classes=len(run.class_names) if kind in (CLASSIFIER, PROBE) else 0,
    class_names=run.class_names,
  )


def shapes(run: checkpoints.Run, kind: str) -> dict[str, tuple[int, ...]]:
  """The arrays of such a network, by path; fixed positions are not among them.

  Raises:
    ConfigError: if sizes do not fit together.
  """
  config = run.config
  key = jax.random.key(0)
  images = jnp.zeros((1, *config.data.image_size, config.data.channels))
  network: Any
  if kind in (CLASSIFIER, PROBE):
    make = classifiers.CLASSIFIERS[TASKS[kind]]
    network = make(config, len(run.class_names), "cpu")
    tree = jax.eval_shape(network.init, key)
  elif kind == MAE:
    network = build.masked_autoencoder(config)
    keys = {"params": key, "mask": key}
    params = jax.eval_shape(network.init, keys, images)["params"]
    tree = {classifiers.MODEL: params}
  else:
    network = build.encoder(config).clone(learned_positions=False)
    params = jax.eval_shape(network.init, key, images)["params"]
    tree = {classifiers.MODEL: {"encoder": params}}
  return {path: leaf.shape for path, leaf in sums.flat(tree).items()}


def metadata(run: checkpoints.Run) -> dict[str, Any]:
  """What our own files say of a run besides, as JSON content."""
  return {
    "config": config_lib.to_dict(run.config),
    "data": dict(run.data),
    "class_names": list(run.class_names),
  }


def run_of_metadata(content: Mapping[str, Any]) -> checkpoints.Run:
  """The reverse.

  Raises:
    ConfigError: if it is not of this version.
  """
  return checkpoints.Run(
    config_lib.from_config_dict(content["config"]),
    content["data"],
    tuple(content["class_names"]),
  )
