"""Build the documentation's site: `make docs`."""

import inspect
from importlib import metadata

import conescope

project = "conescope"
author = copyright = "The conescope developers"  # noqa: A001
release = version = metadata.version("conescope")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"conescope {release}"
html_show_sphinx = False
templates_path: list[str] = []

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True

default_role = "code"
python_maximum_signature_line_length = 90

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False


def _is_not_the_classes_own(app, what, name, member, skip, options):  # noqa: ARG001
    """Skip members without a docstring of their own, such as those a class inherits."""
    return True if skip or not inspect.getdoc(member) else None


def setup(app) -> None:
    """Register the choice of members."""
    assert conescope.__all__
    app.connect("autodoc-skip-member", _is_not_the_classes_own)
