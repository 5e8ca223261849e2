"""Pages that are there soon on a slow line and a slow machine.

Before it shows anything, a page loads one style sheet; scripts wait for the page, and figures until
a reader comes near. Words of code that have the colour of text are not marked as such, and a page
has the colours of its reader's choice from the start.
"""

import hashlib
import re
from pathlib import Path
from posixpath import normpath

STYLES = re.compile(r'[ \t]*<link\b[^>]*?href="([^"]*_static/[^"?]*\.css)[^>]*>\n?')
IMPORTED = re.compile(r'@import "([^"]+)";')
# Addresses of files; not of what is written out, is elsewhere, or is a part of the page.
ADDRESS = re.compile(r"""url\((["']?)(?!data:|https?:|[#%/])([^"')]+)\1\)""")
SCRIPT = re.compile(r'<script\b(?![^>]*\bdefer\b)[^>]*?src="(?P<file>[^"?]*)[^"]*"></script>')
OPTIONS = "documentation_options.js"  # a line, of which lines in the page make use
FIGURE = re.compile(r'<img(?P<with>[^>]*?src="(?P<file>[^"]*_images/[^"]*\.svg)")')
SIZE = re.compile(r'<svg\b[^>]*?\bwidth="([\d.]+)pt" height="([\d.]+)pt"')
# Of the theme's own line, which leaves "auto" to a script that comes late and paints all again.
CHOICE = 'localStorage.getItem("theme") || "auto"'
CHOSEN = CHOICE.replace(
    '"auto"', '(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")'
)
PLAIN = re.compile(r'<span class="(?:n|nn|p|w)">([^<]*)</span>')  # names, signs and spaces of code


def setup(app):
    """Connect to Sphinx, after all that writes into pages or styles."""
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def finish(app, exception):
    """Lighten the pages that were written."""
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir).resolve()
    for path in out.glob("**/*.html"):
        if path.parent == out / "_static":  # a theme's own
            continue
        head, end, body = path.read_text(encoding="utf-8").partition("</head>")
        # The page for wrong addresses names its files from the top of the site.
        folder = out if path.name == "404.html" else path.parent
        head = SCRIPT.sub(lambda found, folder=folder: wait(found, folder), head)
        head = join_styles(head, folder, out).replace(CHOICE, CHOSEN)
        body = FIGURE.sub(lambda found, folder=folder: measure(found, folder), body)
        path.write_text(head + end + PLAIN.sub(r"\1", body), encoding="utf-8")


def wait(found: re.Match, folder: Path) -> str:
    """Let a script run when the page is there; put the one with the options into the page."""
    if found["file"].endswith(OPTIONS):
        return f"<script>{locate(found['file'], folder).read_text(encoding='utf-8')}</script>"
    return found[0].replace("<script", "<script defer", 1)


def join_styles(head: str, folder: Path, out: Path) -> str:
    """Make one style sheet of those that a page loads, in their order."""
    names = STYLES.findall(head)
    if not names:
        return head
    styles = "\n".join(read(locate(name, folder), out / "_static") for name in names)
    file = f"book-{hashlib.sha256(styles.encode()).hexdigest()[:8]}.css"
    (out / "_static" / file).write_text(styles, encoding="utf-8")
    where = names[0].partition("_static/")[0] + "_static/" + file
    first = STYLES.search(head).start()
    return head[:first] + f'<link rel="stylesheet" href="{where}">\n' + STYLES.sub("", head[first:])


def read(file: Path, static: Path) -> str:
    """Return a style sheet, with those it imports, as it would be written in another folder."""
    text = file.read_text(encoding="utf-8").removeprefix('@charset "UTF-8";')
    text = IMPORTED.sub(lambda found: read((file.parent / found[1]).resolve(), static), text)
    here = file.parent.relative_to(static).as_posix()
    return ADDRESS.sub(lambda found: f"url({normpath(f'{here}/{found[2]}')})", text)


def locate(name: str, folder: Path) -> Path:
    """Return the file that a page in a folder calls by this name."""
    return (folder / name[name.index("_static/") if name.startswith("/") else 0 :]).resolve()


def measure(found: re.Match, folder: Path) -> str:
    """Let a figure wait, and leave its room free."""
    width, height = SIZE.search((folder / found["file"]).read_text(encoding="utf-8")).groups()
    pixels = f'width="{float(width) * 4 / 3:.0f}" height="{float(height) * 4 / 3:.0f}"'
    return f'<img loading="lazy" {pixels}{found["with"]}'
