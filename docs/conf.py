"""Configuration of Sphinx for `make docs`.

The source folder is the repository, so that a link from a page to a file, or back, is the same on the site and in the
repository.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `scripts` and `benchmarks` are no installed packages

from scripts.documentation.results import substitutions

project = "openfl-audio"
author = copyright = "the openfl-audio authors"
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "shard_descriptors/README.md"]
exclude_patterns = [".*", "build", "runs", "data", "**/node_modules", "**/.ipynb_checkpoints"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "scripts.documentation"]
myst_enable_extensions = ["substitution", "colon_fence"]
myst_heading_anchors = 4
myst_substitutions = {"result": substitutions()}
suppress_warnings = ["myst.header"]  # the README of a folder may begin a list of pages at any level

# Docstrings are Google's, with single backticks around code.
default_role = "code"
add_module_names = False
napoleon_use_ivar = True  # else an attribute of a docstring appears twice
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = "openfl-audio"
html_show_copyright = False
html_show_sourcelink = False
