"""The columns of images and labels, by their names."""

from collections.abc import Sequence

from mae_jax.utils.errors import ConfigError, abbreviate

IMAGES = (
  "image", "img", "path", "file", "file_name", "filename", "filepath",
  "image_path", "image_file",
)  # fmt: skip
LABELS = ("label", "labels", "class", "target", "category")
NONE = "none"  # value of data.label_column


def find(
  names: Sequence[str],
  wanted: str,
  known: Sequence[str],
  setting: str,
  where: str,
) -> str | None:
  """Finds a column by its name.

  Args:
    names: of all columns.
    wanted: the name that is set; "" to look for known names.
    known: these names, in lower case.
    setting: "image_column" or "label_column".
    where: the place of the columns, for messages.

  Returns:
    The name; None if no known one is there, or `wanted` is NONE.

  Raises:
    ConfigError: if `wanted` is missing, or more than one column may be meant.
  """
  if wanted and wanted not in names:
    if wanted == NONE:
      return None
    raise ConfigError(
      f"data.{setting}={wanted!r} is no column of {where}, which has "
      f"{describe(names)}: set --config.data.{setting} to one of them"
    )
  found = [wanted] if wanted else [x for x in names if _plain(x) in known]
  if len(found) > 1 or any(names.count(name) > 1 for name in found):
    raise ConfigError(
      f"{where} has more than one column that may be meant: "
      f"{describe(found)}; set --config.data.{setting} to one of them, or "
      "rename the others"
    )
  return found[0] if found else None


def describe(names: Sequence[str]) -> str:
  """Lists names of columns, shortened, for a message."""
  more = f" and {len(names) - 12} more" * (len(names) > 12)
  return ", ".join(map(abbreviate, names[:12])) + more


def _plain(name: str) -> str:
  return name.strip().lower().replace(" ", "_").replace("-", "_")
