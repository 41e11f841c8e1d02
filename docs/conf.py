# SPDX-License-Identifier: BSD-2-Clause
"""Sphinx: `sphinx-build -W docs build/docs`."""

from __future__ import annotations

import vpt

project = "vpt"
copyright = "the vpt authors"  # noqa: A001 - Sphinx's name for it
version = release = vpt.__version__

extensions = ["myst_parser", "sphinx_click"]
exclude_patterns = ["control_protocol.py"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Options begin with two hyphens, not with a dash.
smartquotes = False

html_theme = "furo"
html_title = f"vpt {version}"
html_show_copyright = False
# Sources outside of docs/ that pages point to; `pip install` does not bring them along.
suppress_warnings = ["myst.xref_missing"]
