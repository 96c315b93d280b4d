"""Sphinx: `pip install -e ".[train,docs]"`, then `make docs`, which writes `docs/_build/html`.

The build needs no network, and neither do the pages: formulas become MathML while they are built.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from hebm_sample import __version__  # noqa: E402

project = "hebm_sample"
author = "The hebm_sample authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "built_math",
    "plain_text",
]
exclude_patterns = ["_build", "cards"]
source_suffix = {".md": "markdown"}

# $ and $$ are LaTeX, as on the pages of a Git host; headings get anchors down to this depth.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
# `name` in a docstring is code. Two hyphens are a dash; quotes stay as they are typed in code.
default_role = "literal"
smartquotes_action = "D"
# Docstrings say "Arguments:"; they become a parameter list.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
viewcode_line_numbers = True

# Prompts and what a command answers are not copied.
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"hebm_sample {__version__}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
