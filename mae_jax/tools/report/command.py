"""The command `python -m mae_jax report --workdir=a,b,c --out=report.html`."""

import os

from mae_jax.config import overrides
from mae_jax.tools import cli
from mae_jax.tools.report import data_summary, page, run_logs
from mae_jax.utils import atomic_write, console
from mae_jax.utils.errors import ConfigError


def write(
  workdir: cli.Paths,
  out: cli.Path = "report.html",
  *,
  recipe: cli.Path | None = None,
  look_at: int = 300,
) -> None:
  """Writes one HTML page about one or more runs.

  The page has curves, pictures over training, data, settings and environment,
  and works offline.

  Args:
    workdir: the directory of a run, or of several as a,b,c, which share
      charts.
    out: the .html file, which is replaced.
    recipe: settings are compared with this recipe, for instance
      configs/vit_b.py; by default with the one that started each run.
    look_at: training images to read, for mean and std beside the configured
      ones; 0 for none.

  Raises:
    ConfigError: if there is no such run; `out` is unchanged.
  """
  atomic_write.check_suffix(out, ".html")
  cli.at_least("look_at", look_at, 0)
  if recipe is not None:
    overrides.recipe(recipe)  # raises if there is no such recipe
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
    summaries = [
      data_summary.summarize(run, name, look_at)
      for run, name in zip(found, names, strict=True)
    ]
    file.write(page.render(found, summaries).encode())
  console.info(f"{out}: {', '.join(names)}; open it in a browser")
