"""The command: `python -m mae_jax report --workdir=a,b,c --out=report.html`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mae_jax.config import overrides
from mae_jax.tools import cli
from mae_jax.tools.report import data_summary, page, run_logs
from mae_jax.utils import atomic_write
from mae_jax.utils.errors import ConfigError


def write(
  workdir: Sequence[str],
  out: str,
  *,
  recipe: str | None = None,
  look_at: int = 300,
) -> None:
  """Writes a page of runs.

  Args:
    workdir: their directories.
    out: an .html file.
    recipe: what settings are compared with; None for what each run was started
      with.
    look_at: images of the data to look at; 0 for none.

  Raises:
    ConfigError: if there is no such run. `out` is as it was.
  """
  atomic_write.check_suffix(out, ".html")
  cli.at_least("look_at", look_at, 0)
  if recipe is not None:
    overrides.recipe(recipe)  # whether there is one
  if not all(each.strip() for each in workdir):
    raise ConfigError(
      f"--workdir={','.join(workdir)} has an empty name"
      + (" in its list" if len(workdir) > 1 else "")
      + ": name the directory of a run, or of several as a,b,c"
    )
  if len(set(map(os.path.realpath, workdir))) < len(workdir):
    raise ConfigError(f"--workdir={','.join(workdir)} names a run twice")
  with atomic_write.atomic_file(out) as file:
    found = [run_logs.read(each, recipe) for each in workdir]
    names = page.short_names([run.name for run in found])
    known = [
      data_summary.of(run, name, look_at)
      for run, name in zip(found, names, strict=True)
    ]
    file.write(page.render(found, known).encode())
  cli.info(f"{out}: {', '.join(names)}; open it in a browser")


def parser() -> cli.Parser:
  """The flags."""
  flags = cli.Parser(
    "report",
    "One page, without need of a network, of what became of one or more runs: "
    "curves, pictures over training, data, settings, environment.",
  )
  flags.add_argument(
    "--workdir",
    required=True,
    type=lambda text: [os.path.expanduser(each) for each in text.split(",")],
    help="the directory of a run, or of several as a,b,c, which are drawn over "
    "each other",
  )
  flags.add_argument(
    "--out",
    type=os.path.expanduser,
    default="report.html",
    help="the .html file, which is replaced (default: report.html)",
  )
  flags.add_argument(
    "--recipe",
    type=os.path.expanduser,
    help="what the settings are compared with, as configs/vit_b.py (default: "
    "what each run was started with)",
  )
  flags.add_argument(
    "--look_at",
    type=int,
    default=300,
    help="training images to look at, for mean and std beside those that are "
    "configured; 0 for none (default: 300)",
  )
  return flags


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command."""
  cli.main(parser(), write, argv)
