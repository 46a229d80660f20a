"""Sphinx configuration. Build with: sphinx-build -W --keep-going -b html docs docs/_build/html."""

import os
import sys
from pathlib import Path

import longtail

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# The notebooks are small. More threads make them slower on a busy machine, and their output less reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, without the widgets of Jupyter

project = "longtail"
author = "the longtail authors"
project_copyright = "the longtail authors, MIT licence"
version = release = longtail.__version__

extensions = [
    "generate",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated"]
suppress_warnings = ["mystnb.unknown_mime_type"]
smartquotes = False  # keeps --option in plain text

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

default_role = "py:obj"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"longtail {release}"
html_static_path = ["_static"]
html_css_files = ["longtail.css"]


def setup(app):
    """Registers the repair of attribute docstrings, after napoleon."""
    app.connect("autodoc-process-docstring", _restore_first_words, priority=600)


def _restore_first_words(app, what, name, obj, options, lines):
    """Napoleon takes the words before a colon in the docstring of an attribute for its type. Puts them back."""
    for position, line in enumerate(lines):
        if what in ("attribute", "data", "property") and line.startswith(":type: "):
            lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"
            del lines[position]
