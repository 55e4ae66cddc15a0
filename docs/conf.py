"""Settings of the documentation: `make docs` builds it with Sphinx."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent / "_ext")]
# Notebooks run in processes of their own, which find the checkout this way.
os.environ["PYTHONPATH"] = os.pathsep.join(
  filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)
# An accelerator is not needed here, and may belong to another program.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mae_jax.utils.version import __version__  # noqa: E402

project = "mae_jax"
author = "The mae_jax authors"
project_copyright = "the mae_jax authors"
release = version = __version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "mae_pages",
]
exclude_patterns = ["_build", "_ext", ".jupyter_cache"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(
  pathlib.Path(__file__).parent / "_build" / ".jupyter_cache"
)
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
# The first choice of a figure's type is the one that all browsers show.
nb_mime_priority_overrides = [("html", "image/png", 0)]

default_role = "py:obj"  # `name` in a docstring: code, and a link if it can be
autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # properties have entries of their own
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "sphinx_book_theme"
html_title = "mae_jax"
html_static_path = ["_static"]
html_css_files = ["mae_jax.css"]
html_copy_source = False
html_theme_options = {
  "show_navbar_depth": 1,
  "show_toc_level": 2,
  "use_download_button": False,
  "use_fullscreen_button": False,
  "home_page_in_toc": False,
}
