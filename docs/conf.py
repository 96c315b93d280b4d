"""Sphinx: `pip install -e ".[docs]"`, then `sphinx-build -b html docs docs/_build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hebm_sample import __version__

project = "hebm_sample"
author = "The hebm_sample authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

# Headings get anchors down to this depth, as on the pages of a Git host.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
# Docstrings say "Arguments:"; they become a parameter list.
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"hebm_sample {__version__}"
