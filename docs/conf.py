"""The documentation site: ``python -m sphinx -W --keep-going docs build/docs`` builds it.

The pages of this folder are Markdown, read on a forge as well as on the site.  ``extensions`` has
what is our own: plain docstrings become reST, a formula's tests stand beside it, and links to files
of the repository lead to their pages.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]
os.environ["PYTHONPATH"] = str(HERE.parent)  # the notebooks import what the reference documents

import jaxbp

project = "jaxbp"
author = "the authors of jaxbp"
project_copyright = "the authors of jaxbp, Apache-2.0"
release = version = jaxbp.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks that are executed
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",  # what can be opened and closed
    "sphinx-mathjax-offline",
    "docstrings",
    "proofs",
    "repository",
]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

templates_path = []
exclude_patterns = ["extensions"]
html_theme = "sphinx_book_theme"
html_title = "jaxbp"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],  # one field to search by, that of the side
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
}
