"""Give an explorer its scripts, on the pages that hold one and on no other.

An explorer is a figure of a code cell that the browser makes movable. The cell's `mystnb`
metadata name it: `classes: explorer explorer-shrinkage`. What it starts from is computed by the
page, which hands it over as `<script type="application/json" data-explorer="shrinkage">`. Where no
script runs, and in the notebook, the figure is what the cell drew.
"""

from docutils import nodes
from sphinx.application import Sphinx

FOLDERS = ("vendor/", "explorers/")
PREFIX = "explorer-"


def keep_off_other_pages(app: Sphinx, config) -> None:
    """Take out what Jupyter Book adds to every page: all scripts and styles of `_static`."""
    for files in (config.html_js_files, config.html_css_files):
        files[:] = [file for file in files if not str(file).startswith(FOLDERS)]


def add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Add the library, the common layer and the page's own explorers, in this order."""
    figures = doctree.findall(nodes.figure) if doctree else []
    classes = [name for figure in figures for name in figure["classes"]]
    explorers = [name.removeprefix(PREFIX) for name in classes if name.startswith(PREFIX)]
    if explorers:
        app.add_css_file("explorers/explorer.css")
        own = [f"explorers/{name}.js" for name in explorers]
        for script in ("vendor/d3.min.js", "explorers/explorer.js", *own):
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict:
    """Connect the two steps above."""
    # Before Sphinx makes pairs of the names, with priority 800.
    app.connect("config-inited", keep_off_other_pages, priority=400)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
