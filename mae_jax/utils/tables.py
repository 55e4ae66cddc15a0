"""Tables of text."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
  """Formats a Markdown table with aligned columns."""
  columns = zip(headings, *rows, strict=True)
  widths = [max(map(len, column)) for column in columns]
  rule = ["-" * width for width in widths]
  padded = (map(str.ljust, line, widths) for line in (headings, rule, *rows))
  return "\n".join(f"| {' | '.join(line)} |" for line in padded)
