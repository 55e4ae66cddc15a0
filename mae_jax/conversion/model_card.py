"""Model cards: the README.md of a repository of weights, with its metadata.

A card is made from the network's settings alone, so that it says nothing that
the weights do not show. Its first lines are YAML that the Hub reads.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mae_jax import checkpoints
from mae_jax.conversion import model_info
from mae_jax.data import prepare
from mae_jax.utils.errors import ConfigError

FILE = "README.md"
UNKNOWN = "unknown"  # also the Hub's word for an unknown license
SCRATCH = "scratch"
LIBRARIES = {"timm": "timm", "transformers": "transformers"}
MEAN_POOLING = "BeitForImageClassification"
_HUB = "hf://"
_TASKS = {
  model_info.ENCODER: "image-feature-extraction",
  model_info.MAE: "image-feature-extraction",
  model_info.CLASSIFIER: "image-classification",
  model_info.PROBE: "image-classification",
}
_PAPER = (
  "[Masked Autoencoders Are Scalable Vision Learners]"
  "(https://arxiv.org/abs/2111.06377) (He et al. 2021)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """The content of a model card.

  Attributes:
    info: properties of the network.
    run: the run that trained it.
    weight_format: "timm" or "transformers".
    origin: source and license of the weights, of `provenance.trace`.
    repo_id: "ORG/NAME" on the Hub; "" for a local folder.
    license: the license, as the Hub names it; None for that of the source.
    results: results of evaluation by name.
    picture: name of a picture in the folder; "" for none.
    notes: notes of the conversion.
  """

  info: model_info.ModelInfo
  run: checkpoints.CheckpointMetadata
  weight_format: str
  origin: Mapping[str, str]
  repo_id: str = ""
  license: str | None = None
  results: Mapping[str, float] = dataclasses.field(default_factory=dict)
  picture: str = ""
  notes: tuple[str, ...] = ()


def read_license(text: str) -> str:
  """Returns the license that a card states; "" if it states none."""
  front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
  found = front and re.search(
    r"^license:[ \t]*[\"']?([^\"'\s#]*)", front[1], re.MULTILINE
  )
  return found[1] if found else ""


def is_plain(text: str) -> bool:
  """Checks whether a card can name a license or a picture by this text."""
  return bool(re.fullmatch(r"[\w.+-]+", text))


def check_license(origin: Mapping[str, str], license: str | None) -> None:
  """Demands a license for weights of others whose license is unknown.

  Raises:
    ConfigError: if none is given.
  """
  if license is None and origin.get("license") == UNKNOWN:
    source = origin.get("source") or "other weights, which cannot be found"
    raise ConfigError(
      f"the license is unknown: the network started from {source}. Find their "
      "license, and state it with license=, such as license='cc-by-nc-4.0'"
    )


def write(card: Card) -> str:
  """Returns the text of a model card.

  Raises:
    ConfigError: if the license or the picture cannot be named in it.
  """
  for name in ("license", "picture"):
    value = getattr(card, name) or ""
    if value and not is_plain(value):
      raise ConfigError(
        f"{name}={value!r} cannot be named in a model card: use "
        + (
          "an identifier of the Hub, such as apache-2.0 or cc-by-nc-4.0"
          if name == "license"
          else "the name of a file in the folder, such as picture.png"
        )
      )
  title = card.repo_id.rpartition("/")[2] or _name(card.info)
  parts = [
    _front_matter(card),
    f"# {title}",
    _description(card),
    f"![Example]({card.picture})" if card.picture else "",
    _table("Network", _network_rows(card.info)),
    _table("Training", _training_rows(card)),
    _preparation(card),
    _table("Evaluation", [(k, f"{v:.6g}") for k, v in card.results.items()]),
    _usage(card),
    _license_text(card),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def _license(card: Card) -> str | None:
  return card.license or card.origin.get("license")


def _base_model(card: Card) -> str:
  source = card.origin.get("source", "")
  if not source.startswith(_HUB):
    return ""
  repository = source.removeprefix(_HUB).partition("@")[0]
  return "/".join(repository.split("/")[:2])


def _front_matter(card: Card) -> str:
  license = _license(card)
  content: dict[str, Any] = {
    "library_name": LIBRARIES[card.weight_format],
    **({"license": license} if license else {}),
    "pipeline_tag": _TASKS[card.info.kind],
  }
  if base := _base_model(card):
    content["base_model"] = base
  content["tags"] = ["mae", "masked-autoencoder", "vit", "mae_jax"]
  lines = []
  for key, value in content.items():
    if isinstance(value, list):
      lines += [f"{key}:", *(f"- {each}" for each in value)]
    else:
      # Identifiers need no quotes, and JSON is YAML.
      plain = re.fullmatch(r"[A-Za-z][\w./-]*", value)
      lines.append(f"{key}: {value if plain else json.dumps(value)}")
  return "\n".join(("---", *lines, "---"))


def _name(info: model_info.ModelInfo) -> str:
  patch = info.patch_size[0]
  size = f"ViT-{info.size}" if info.size else f"ViT, {info.width} wide"
  return f"{size}/{patch}" if info.size else f"{size}, patches of {patch}"


def _description(card: Card) -> str:
  kinds = {
    model_info.ENCODER: "The encoder of a masked autoencoder",
    model_info.MAE: "A masked autoencoder, with its decoder",
    model_info.CLASSIFIER: "An image classifier on the encoder of a masked "
    "autoencoder",
    model_info.PROBE: "A linear probe on the encoder of a masked autoencoder",
  }
  return f"{kinds[card.info.kind]}: {_PAPER}. Written by `mae_jax`."


def _network_rows(info: model_info.ModelInfo) -> list[tuple[str, str]]:
  height, width = info.image_size or ("?", "?")
  rows = [
    ("architecture", _name(info)),
    (
      "encoder",
      f"{info.depth} blocks, width {info.width}, {info.heads} heads, MLP "
      f"{info.mlp_dim}",
    ),
  ]
  if info.decoder is not None:
    decoder = info.decoder
    target = "normalized patches" if info.norm_pix else "raw pixels"
    rows += [
      (
        "decoder",
        f"{decoder.depth} blocks, width {decoder.width}, {decoder.heads} heads",
      ),
      ("mask ratio", f"{info.mask_ratio:g}"),
      ("target", target),
    ]
  rows += [
    ("images", f"{height} x {width} pixels, {info.channels} channels"),
    ("patches", "{} x {} pixels".format(*info.patch_size)),
    ("pixel mean, std", f"{info.mean}, {info.std}"),
  ]
  if info.classes:
    pooled = {"mean": "mean of the patch tokens", "cls": "class token"}
    head = pooled.get(info.pooling, info.pooling)
    rows.append(("head", f"{info.classes} classes, on the {head}"))
  return rows


def _training_rows(card: Card) -> list[tuple[str, str]]:
  run = card.run
  started = {SCRATCH: "random weights", "": "weights of unknown origin"}
  if run.config.init_from:
    started[SCRATCH] = "an earlier run, which started from random weights"
  source = card.origin.get("source", "")
  rows = [("started from", started.get(source, source))]
  if run.data:  # otherwise the training settings are placeholders
    config = run.config
    rows += [
      ("task", config.task),
      ("data", str(run.data.get("name") or config.data.source)),
      ("length", config.train.length),
      ("batch size", str(config.data.batch_size)),
    ]
    if config.task == "pretrain" and card.info.decoder is None:
      rows.append(("mask ratio", f"{config.objective.mask_ratio:g}"))
  return rows


def _preparation(card: Card) -> str:
  data = card.run.config.data
  about = {
    "crop": f"resize images to cover the size / {data.eval_crop:.6g}, and take "
    "the middle",
    "squash": "resize all of an image, which changes its aspect",
  }
  rows = [
    ("size", "{} x {}".format(*data.image_size)),
    ("fit", about[data.eval_fit]),
    ("interpolation", f"{data.eval_resample}, with antialiasing"),
    ("EXIF rotation", "yes" if data.exif_rotate else "no"),
    ("background of transparent pixels", data.background),
  ]
  if data.value_range:
    rows.append(
      ("pixel values of 0 and 1", "{:g} and {:g}".format(*data.value_range))
    )
  text = _table("Preparation of images", rows)
  if code := prepare.as_code(data):
    text += f"\n\n```python\n{code}\n```"
  return text


def _table(title: str, rows: list[tuple[str, str]]) -> str:
  if not rows:
    return ""
  lines = [f"| {key} | {value.replace('|', '/')} |" for key, value in rows]
  return "\n".join((f"## {title}", "", "| | |", "|---|---|", *lines))


def transformers_class(info: model_info.ModelInfo) -> str:
  """Returns the name of the class of transformers that is a network."""
  if info.kind == model_info.CLASSIFIER and info.pooling == "mean":
    return MEAN_POOLING
  return {
    model_info.ENCODER: "ViTModel",
    model_info.MAE: "ViTMAEForPreTraining",
  }.get(info.kind, "ViTForImageClassification")


def _usage(card: Card) -> str:
  where = card.repo_id or "FOLDER"
  path = f"{_HUB}{card.repo_id}" if card.repo_id else where
  lines = ["# mae_jax", "import mae_jax", ""]
  lines.append(f'model = mae_jax.from_pretrained("{path}")')
  lines.append("")
  if card.weight_format == "timm":
    scheme = "hf-hub" if card.repo_id else "local-dir"
    lines += [
      "# timm",
      "import timm",
      "",
      f'model = timm.create_model("{scheme}:{where}", pretrained=True)',
    ]
  else:
    name = transformers_class(card.info)
    extra = ", add_pooling_layer=False" if name == "ViTModel" else ""
    lines += [
      "# transformers",
      "import transformers",
      "",
      f"model = transformers.{name}.from_pretrained(",
      f'  "{where}"{extra}',
      ")",
      "# With Pillow, pixels are those of the training's evaluation.",
      "processor = transformers.AutoImageProcessor.from_pretrained(",
      f'  "{where}", backend="pil"',
      ")",
    ]
  text = "\n".join(("## Use", "", "```python", *lines, "```"))
  if card.notes:
    text += "\n\n" + "\n".join(f"- {note}" for note in card.notes)
  return text


def _license_text(card: Card) -> str:
  source, inherited = (card.origin.get(x, "") for x in ("source", "license"))
  license = _license(card)
  lines = []
  if license == UNKNOWN:
    lines.append("The license of these weights is unknown.")
  elif license:
    lines.append(f"These weights are under the license `{license}`.")
  else:
    lines.append("The author states no license.")
  if source not in ("", SCRATCH):
    lines.append(f"They derive from {source}")
    known = inherited not in ("", UNKNOWN)
    lines[-1] += f", which is under `{inherited}`." if known else "."
  return "## License\n\n" + " ".join(lines)
