"""What the website needs beyond its theme: an address, launch buttons, icons, descriptions.

The address of the book (`tools/address.py`) decides what can be said of it elsewhere. A build that
knows none has no launch buttons, no cards and no list of pages; everything else is the same.
"""

import re
from html import escape
from pathlib import Path

from address import find  # tools/, where the build is started from
from docutils import nodes
from fonts import embed
from pydata_sphinx_theme import __file__ as theme
from sphinx.errors import ExtensionError

FONTS = Path(theme).parent / "theme/pydata_sphinx_theme/static/vendor/fontawesome"
ICON = re.compile(r"\bfa-([a-z0-9-]+)")
CODE = (nodes.raw, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block)
PERCENT = re.compile(r"(?<=\d) %|^ %")  # at the start, after a number that was inserted
HYPHEN = re.compile(r"^-(?:(?P<zero>0(?:\.0+)?)|(?P<number>\d[\d.,]*))$")
RULE = re.compile(r"((?:\.fa-[\w-]+:before,?)+)\{content:\"\\([0-9a-f]+)\"")
FACES = {  # kind -> file of the font, weight, classes
    "solid": ("fa-solid-900.ttf", 900, ".fa,.fas,.far,.fa-solid,.fa-regular"),
    "brands": ("fa-brands-400.ttf", 400, ".fab,.fa-brands"),
}


def setup(app):
    """Connect to Sphinx."""
    app.connect("config-inited", settle, priority=1)
    app.connect("builder-inited", share_translators)
    app.connect("doctree-resolved", typeset)
    app.connect("html-page-context", describe, priority=1)
    app.connect("html-page-context", lighten, priority=800)
    app.connect("html-page-context", add_launch_buttons, priority=900)
    app.connect("build-finished", draw_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def settle(app, config):
    """Tell the extensions and the theme where the book lives, if that is known."""
    address = app.mlm_address = find(Path(app.srcdir))
    config.notfound_urls_prefix = "/"
    config.ogp_site_name = config.html_title
    config.ogp_description_length = 0  # every page says what it is
    if address is None:
        config.ogp_social_cards = {"enable": False}
        return
    drawn = dict.fromkeys(["image", "image_mini"], "_static/logo.png")
    config.ogp_social_cards = drawn | {"line_color": "#2a86c4"}
    config.html_baseurl = config.ogp_site_url = address.site
    config.notfound_urls_prefix = "/" + address.site.split("/", 3)[3]
    config.sitemap_url_scheme = "{link}"
    config.html_theme_options |= {
        "repository_url": address.repository,
        "use_repository_button": True,
        "use_issues_button": True,
    }
    app.setup_extension("sphinx_sitemap")


def share_translators(app):
    """Write the book on one page with what writes it on many, for nodes that name only these."""
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = handlers.get("html", {}) | handlers.get("singlehtml", {})


def typeset(app, doctree, docname):
    """Give inserted numbers a minus; let no line begin with a percent sign or a footnote."""
    for note in list(doctree.findall(nodes.footnote_reference)):
        before = note.parent[max(note.parent.index(note) - 1, 0)]
        if isinstance(before, nodes.Text) and before.endswith(" "):
            note.parent.replace(before, nodes.Text(before.rstrip() + "\N{NO-BREAK SPACE}"))
    for link in list(doctree.findall(nodes.reference)):
        if link.astext().startswith(" "):  # the title of a solution
            text = link.next_node(nodes.Text)
            text.parent.replace(text, nodes.Text(text.lstrip()))
            link.parent.insert(link.parent.index(link), nodes.Text(" "))
    for text in list(doctree.findall(nodes.Text)):
        parent, old = text.parent, text.astext()
        if parent is None or isinstance(parent, CODE):  # none: of a reference
            continue
        new = PERCENT.sub("\N{NO-BREAK SPACE}%", old)
        if "pasted-text" in parent.get("classes", ()):
            new = HYPHEN.sub(lambda found: found["zero"] or f"\N{MINUS SIGN}{found['number']}", new)
        if new != old:
            parent.replace(text, nodes.Text(new))


def describe(app, pagename, templatename, context, doctree):
    """Say in a page's head what its front matter says of it."""
    if doctree is None or app.builder.name != "html":
        return
    description = (context["meta"] or {}).get("description")
    if not description:
        raise ExtensionError(f"{pagename}: its front matter has no `description:`; give it one")
    context["metatags"] += f'<meta name="description" content="{escape(description)}">\n'
    context["meta"] |= {"og:description": description, "og:image:alt": context["title"]}


def lighten(app, pagename, templatename, context, doctree):
    """Let what unfolds a cell be called what it shows."""
    body = context.get("body", "")
    context["body"] = body.replace(' aria-label="Toggle hidden content"', "")


def add_launch_buttons(app, pagename, templatename, context, doctree):
    """Put buttons to Binder and Colab on a page with code."""
    cells = doctree.findall(nodes.container) if doctree else ()
    if app.mlm_address is None or all(cell.get("nb_element") != "cell_code" for cell in cells):
        return
    chapter = pagename.rpartition("/")[2]
    links = {"Binder": app.mlm_address.binder(chapter), "Colab": app.mlm_address.colab(chapter)}
    buttons = [
        {
            "type": "link",
            "text": name,
            "tooltip": f"Run this page on {name}",
            "icon": "fas fa-rocket",
            "url": url,
            "label": f"launch-{name.lower()}",
        }
        for name, url in links.items()
    ]
    context["header_buttons"].insert(
        0,
        {
            "type": "group",
            "tooltip": "Run this page elsewhere",
            "icon": "fas fa-rocket",
            "buttons": buttons,
            "label": "launch-buttons",
        },
    )


def draw_icons(app, exception):
    """Write the styles of the icons that pages show, with a font of these alone inside."""
    if exception or app.builder.format != "html":
        return
    static, theme = Path(app.outdir) / "_static", next(FONTS.iterdir())
    rules = (theme / "css" / "all.min.css").read_text(encoding="utf-8")
    codes = {
        name: int(code, 16) for names, code in RULE.findall(rules) for name in ICON.findall(names)
    }
    pages = (path.read_text(encoding="utf-8") for path in Path(app.outdir).glob("**/*.html"))
    shown = {name for text in pages for name in ICON.findall(text)} & codes.keys()
    # The theme's own rules draw some by their number, or as the character it stands for.
    rules = "".join(path.read_text(encoding="utf-8") for path in (static / "styles").glob("*.css"))
    own = {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", rules)}
    own |= {ord(character) for character in re.findall("[\ue000-\uf8ff]", rules)}
    written = [
        ".fa,.fas,.far,.fa-solid,.fa-regular,.fab,.fa-brands{display:inline-block;"
        "font-style:normal;font-variant:normal;line-height:1;text-rendering:auto;"
        "-webkit-font-smoothing:antialiased}",
        ".fa-fw{text-align:center;width:1.25em}.fa-lg{font-size:1.25em;line-height:.05em}",
    ]
    drawn = {codes[name] for name in shown} | own
    for kind, (file, weight, classes) in FACES.items():
        if not (font := embed(theme / "webfonts" / file, drawn)):
            continue
        written += [
            f'@font-face{{font-family:"Icons {kind}";font-weight:{weight};font-display:block;'
            f"src:{font}}}",
            f':root{{--fa-font-{kind}:normal {weight} 1em/1 "Icons {kind}"}}',
            f'{classes}{{font-family:"Icons {kind}";font-weight:{weight}}}',
        ]
    written += [f'.fa-{name}:before{{content:"\\{codes[name]:x}"}}' for name in sorted(shown)]
    (static / "icons.css").write_text("\n".join(written), encoding="utf-8")
