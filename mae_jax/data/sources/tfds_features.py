"""The image and the label among the features of a TFDS data set.

Features may be nested, and those of a Croissant data set have any name. Its
labels are texts or numbers without a list of classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from mae_jax.config import DataConfig
from mae_jax.data.sources import base, columns
from mae_jax.data.tf_setup import tf
from mae_jax.utils.errors import ConfigError

_Path = tuple[str, ...]


class Features:
  """The features that a data set is read for.

  Attributes:
    label: name of the feature of labels; "" for none.
    classes: names of classes; None if there are no labels, or if they are texts
      or numbers, which `parse` returns as strings.
  """

  def __init__(self, features: Any, data: DataConfig):
    """Finds the features; raises ConfigError if there is no image."""
    self._features = features
    self._known = _flatten(features)
    self._image = self._known[self._find_image(data)]
    self.label = self._find_label(data)
    self.classes: tuple[str, ...] | None = None
    if self.label and self._has_type(self.label, tfds.features.ClassLabel):
      feature = self._feature(self.label)
      self.classes = tuple(
        getattr(feature, "names", map(str, range(feature.num_classes)))
      )

  def parser(self) -> Callable[[tf.Tensor], base.Record]:
    """Returns `parse` of `base.Records`."""
    paths = [self._image, *([self._known[self.label]] if self.label else [])]
    wanted: dict[str, Any] = {}
    for path in paths:
      inside = wanted
      for part in path[:-1]:
        inside = inside.setdefault(part, {})
      inside[path[-1]] = True
    decoding = tfds.decode.PartialDecoding(wanted)
    features = decoding.extract_features(self._features)
    decoders: Any = tfds.decode.SkipDecoding()
    for part in reversed(self._image):
      decoders = {part: decoders}

    def parse(serialized: tf.Tensor) -> base.Record:
      example = features.deserialize_example(serialized, decoders=decoders)
      image, *labels = (_get(example, path) for path in paths)
      label = tf.constant(-1, tf.int64)
      if labels and self.classes:
        label = tf.cast(labels[0], tf.int64)
      elif labels:
        is_text = labels[0].dtype == tf.string
        label = labels[0] if is_text else tf.strings.as_string(labels[0])
      return {"image": image, "label": label}

    return parse

  def _find_image(self, data: DataConfig) -> str:
    images = [x for x in self._known if self._has_type(x, tfds.features.Image)]
    name = data.image_column
    if not name:
      only = len(images) == 1 and "image" not in self._known
      name = images[0] if only else "image"
    if name not in images:
      raise ConfigError(
        f"data.name={data.name!r} has no image feature {name!r} but "
        f"{', '.join(self._known)}: set --config.data.image_column to an image,"
        " or choose a data set of images"
      )
    return name

  def _find_label(self, data: DataConfig) -> str:
    name = data.label_column
    if not name:
      known = "label" in self._known
      is_class = known and self._has_type("label", tfds.features.ClassLabel)
      return "label" if is_class else ""
    names = list(self._known)
    if columns.find(names, name, (), "label_column", data.name) is None:
      return ""
    feature = self._feature(name)
    if feature.shape or isinstance(feature, tfds.features.Image):
      raise ConfigError(
        f"data.label_column={name!r} of {data.name} is not one label an image: "
        "set --config.data.label_column to another feature, or to "
        f"{columns.NONE}"
      )
    return name

  def _feature(self, name: str) -> Any:
    return _get(self._features, self._known[name])

  def _has_type(self, name: str, kind: type) -> bool:
    return isinstance(self._feature(name), kind)


def _get(nested: Any, path: _Path) -> Any:
  return functools.reduce(lambda inside, part: inside[part], path, nested)


def _flatten(features: Any, above: _Path = ()) -> dict[str, _Path]:
  """Returns the paths of all features, by their names joined by "/"."""
  found: dict[str, _Path] = {}
  for name, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      found |= _flatten(feature, (*above, name))
    else:
      found["/".join((*above, name))] = (*above, name)
  return found
