"""Formulas are drawn into the pages while the book is built, and what cannot be drawn stops it."""

import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from fontTools.ttLib import TTFont
from sphinx.errors import ExtensionError

sys.path.append(str(Path(__file__).parents[1] / "_ext"))

import formulas

INLINE = r'<p>Let <span class="math notranslate nohighlight">\(\tau &lt; 2\)</span> be.</p>'
NUMBERED = (
    '<div class="math notranslate nohighlight" id="equation-one">\n'
    '<span class="eqno">(1)<a class="headerlink" href="#equation-one">#</a></span>'
    r"\[y_j = \mu\]</div>"
)


@pytest.fixture
def draw(tmp_path):
    """Draw the formulas of a page, and return it."""
    (tmp_path / "_static").mkdir()
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))

    def drawn(text):
        page = tmp_path / "page.html"
        page.write_text(text, encoding="utf-8")
        formulas.draw(app, None)
        return page.read_text(encoding="utf-8")

    return drawn


def test_formulas_are_drawn_where_they_stood_with_their_numbers_and_words(draw, tmp_path):
    page = draw(f"{INLINE}\n{NUMBERED}\n{INLINE}")
    assert page.count("<mjx-container") == 3
    assert page.count('jax="CHTML" display="true"') == 1
    assert page.count("<mi>τ</mi><mo>&lt;</mo>") == 2  # for who listens
    assert '<span class="eqno">(1)<a' in page
    assert "\\" not in page
    styles = (tmp_path / "_static" / formulas.STYLES).read_text(encoding="utf-8")
    fonts = re.findall(r"url\(data:font/woff;base64,([^)]+)\)", styles)
    assert styles.count("@font-face") == len(fonts) == 3  # none, upright and italic
    glyphs = {code for font in fonts for code in TTFont(BytesIO(b64decode(font))).getBestCmap()}
    assert {ord(character) for character in "τ<2yjμ="} <= glyphs


def test_a_comma_stays_with_its_formula(draw):
    page = draw(INLINE.replace("</span> be.", "</span>, so."))
    assert 'Let <span class="formula"><span class="math' in page
    assert "</mjx-container></span>,</span> so." in page


def test_a_page_without_formulas_stays_as_it_is(draw):
    text = r"<pre>\(a\)</pre><p>A class named math: \[b\]</p>"
    assert draw(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (INLINE.replace(r"\tau", r"\tua"), r"does not understand .*tua"),
        (INLINE.replace("&lt; 2", r"\frac{1}"), r"does not understand .*frac"),
        (
            f"{INLINE}\n{INLINE}".replace(r"\)</span> be.", "</span> be.", 1),
            "page.html: 1 formulas",
        ),
    ],
    ids=["a name", "an argument", "a bracket"],
)
def test_what_cannot_be_drawn_is_refused(draw, text, says):
    with pytest.raises(ExtensionError, match=says):
        draw(text)


def test_no_page_loads_mathjax_and_pages_with_formulas_their_styles():
    scripts = ["a.js", "https://there/mathjax.js"]
    for body, expected in ((INLINE, [formulas.STYLES]), ("<p>None.</p>", [])):
        added = []
        app = SimpleNamespace(add_css_file=added.append)
        context = {"script_files": [SimpleNamespace(filename=s) for s in scripts], "body": body}
        formulas.prepare(app, "page", "page.html", context, None)
        assert [script.filename for script in context["script_files"]] == ["a.js"]
        assert added == expected
