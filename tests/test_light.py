"""What a page loads before it shows anything: one style sheet, and no script or figure."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[1] / "_ext"))

import light

HEAD = """<html><head>
<script>document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";</script>
<link href="../_static/styles/theme.css" rel="stylesheet" />
  <link rel="stylesheet" type="text/css" href="../_static/own.css?v=12" />
<link rel="icon" href="../_static/logo.svg"/>
<script src="../_static/documentation_options.js?v=1"></script>
<script data-prefix="a" src="../_static/tabs.js?v=2"></script>
<script>let hint = 'here';</script>
<script defer src="../_static/drawing.js"></script>
<script src="../searchindex.js"></script>
</head><body>"""
BODY = """<pre><span class="n">tau</span><span class="w"> </span><span class="o">=</span></pre>
<img alt="Dots." src="../_images/dots.svg" />
<span class="n"><b>none</b></span></body></html>"""


@pytest.fixture
def finish(tmp_path):
    """Lighten a page in a folder of a site; return it."""
    files = {
        "_static/styles/theme.css": '@import "../basic.css";\na { src: url("fonts/a.woff") }',
        "_static/basic.css": "b { color: red }",
        "_static/own.css": '@charset "UTF-8";i { src: url(data:a), url(#b), url("c.svg") }',
        "_static/documentation_options.js": "const OPTIONS = {};",
        "_images/dots.svg": '<?xml?>\n<svg width="72pt" height="36pt" viewBox="0"/>',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(name="html"))

    def finished(text, name="chapters/page.html"):
        page = tmp_path / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
        light.finish(app, None)
        return page.read_text()

    return finished


def test_a_page_loads_one_style_sheet_with_all_rules_in_their_order(finish, tmp_path):
    head = finish(HEAD + BODY).partition("</head>")[0]
    (name,) = light.STYLES.findall(head)
    assert head.count("stylesheet") == 1
    styles = (tmp_path / "chapters" / name).read_text()
    rules = ("b { color: red }", "url(styles/fonts/a.woff)", "url(data:a), url(#b), url(c.svg)")
    assert sorted(rules, key=styles.index) == list(rules)
    assert "@" not in styles
    assert 'rel="icon"' in head


def test_scripts_wait_for_the_page_and_options_are_in_it(finish):
    head = finish(HEAD + BODY).partition("</head>")[0]
    assert '<script defer data-prefix="a" src="../_static/tabs.js?v=2">' in head
    assert "<script>const OPTIONS = {};</script>" in head
    assert "<script>let hint" in head
    assert '<script defer src="../searchindex.js">' in head  # needs those before it
    assert head.count("defer") == 3


def test_the_page_for_wrong_addresses_finds_its_files_from_the_top(finish, tmp_path):
    head = finish(HEAD.replace("../_", "/book/_") + "None.", "404.html").partition("</head>")[0]
    (name,) = light.STYLES.findall(head)
    assert name.startswith("/book/_static/")
    assert (tmp_path / name.removeprefix("/book/")).exists()


def test_a_figure_leaves_its_room_free_until_it_is_there(finish):
    body = finish(HEAD + BODY).partition("</head>")[2]
    assert '<img loading="lazy" width="96" height="48" alt="Dots."' in body


def test_only_words_of_code_without_a_colour_of_their_own_are_plain(finish):
    body = finish(HEAD + BODY).partition("</head>")[2]
    assert '<pre>tau <span class="o">=</span></pre>' in body
    assert '<span class="n"><b>none</b></span>' in body


def test_the_colours_are_chosen_before_the_page_is_drawn(finish):
    assert '"auto"' not in finish(HEAD + BODY)


def test_what_is_no_website_stays_as_it_is(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(HEAD + BODY)
    light.finish(SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(name="singlehtml")), None)
    assert page.read_text() == HEAD + BODY
