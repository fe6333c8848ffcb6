"""How the documentation is built: make docs."""

from __future__ import annotations

import shutil
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "daskgmm"
author = "the daskgmm developers"
copyright = "the daskgmm developers"
version = release = installed("daskgmm")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the tests run the notebooks; their outputs are stored
nb_mime_priority_overrides = [("html", "text/html", 10), ("html", "image/png", 20)]

toc_object_entries_show_parents = "hide"
autosummary_generate = True
# Where the case of names is not looked at, this would be the page of `Progress`.
autosummary_filename_map = {"daskgmm.progress": "daskgmm.progress-function"}
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_typehints = "none"  # docstrings have the types
autodoc_member_order = "groupwise"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "daskgmm"
html_static_path = ["_static"]
html_css_files = ["daskgmm.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {page.stem: [] for page in HERE.glob("*.md")}  # nothing is below them
html_sidebars["notebooks"] = ["sidebar-nav-bs"]

# scikit-learn's own methods for metadata routing, which refer to its documentation.
_LEFT_OUT = {"get_metadata_routing", "set_callbacks"}


def leave_out(app, what, name, value, skip, options):
    """Methods of scikit-learn's that are about scikit-learn."""
    is_request = name.startswith("set_") and name.endswith("_request")
    if name in _LEFT_OUT or is_request:
        return True
    return None


def copy_notebooks(app):
    """Show the examples as they are stored, outputs included."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for source in sorted((ROOT / "examples").glob("*.ipynb")):
        copy = target / source.name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
    for copy in target.glob("*.ipynb"):
        if not (ROOT / "examples" / copy.name).exists():
            copy.unlink()


def setup(app):
    """Connect the above."""
    app.connect("autodoc-skip-member", leave_out)
    app.connect("builder-inited", copy_notebooks)
