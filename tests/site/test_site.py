"""The built site as its readers meet it: no network, any screen, any theme, keyboard and print."""

import itertools
import re
from pathlib import Path

import pytest
from conftest import CHAPTERS, HTML, PAGES

ROOT = Path(__file__).parents[2]
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
SMALL = 320  # pixels: a telephone, or a page at four times its size
LIMIT = 1_000_000  # bytes that a page may move
# Query -> the page that must come first.
SEARCHES = {
    "partial pooling": "chapters/pooling.html",
    "exchangeability": "chapters/when_to_use.html",
    "LKJ": "chapters/correlated_effects.html",
    "ICC": "chapters/who_is_the_group.html",
}


def fetch_figures(page):
    """Have the figures that wait until a reader comes near."""
    page.evaluate("document.querySelectorAll('img').forEach(each => { each.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(each => each.complete)")


@pytest.mark.parametrize("where", ["served", "from disk"])
@pytest.mark.parametrize("place", PAGES)
def test_a_page_asks_nobody_else_and_complains_of_nothing(visit, place, where):
    if where == "from disk" and place == "404.html":
        pytest.skip("the page for wrong addresses is only ever served")
    options = {} if where == "served" else {"address": HTML.as_uri()}
    page, told = visit(place, **options)
    fetch_figures(page)
    page.wait_for_timeout(200)
    assert told.outside == []
    assert told.errors == []
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == []
    assert page.locator("mjx-merror").count() == 0
    formulas = page.locator(".math").count()
    assert page.locator("mjx-container").count() >= formulas


def test_a_page_names_no_address_but_in_links():
    """What a browser fetches by itself, it must find in the folder."""
    tags = r"<(?:script|link|img|iframe|source)\b"
    fetched = re.compile(tags + r"""[^>]*?(?:src|href)=["'](//|https?:)""")
    for place in PAGES:
        text = (HTML / place).read_text(encoding="utf-8")
        found = [match[0] for match in fetched.finditer(text) if 'rel="canonical"' not in match[0]]
        assert found == [], place


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("place", PAGES)
def test_axe_finds_nothing_serious(visit, place, theme):
    page, _ = visit(place, theme=theme)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    told = [
        f"{violation['id']} ({violation['impact']}): {node['html'][:160]} | {node['any'][:1]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:4]
    ]
    assert told == []


@pytest.mark.parametrize("place", PAGES)
def test_no_page_goes_sideways_on_a_small_screen(visit, place):
    page, _ = visit(place, width=SMALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= SMALL
    wide = """[...document.querySelectorAll('.bd-article *')].filter(e => {
        const box = e.getBoundingClientRect();
        if (box.width === 0 || box.right <= innerWidth + 1) return false;
        for (let p = e; p && !p.matches('.bd-article'); p = p.parentElement) {
            if (/auto|scroll|hidden|clip/.test(getComputedStyle(p).overflowX)) return false;
            if (getComputedStyle(p).position === 'fixed') return false;
        }
        return true;
    }).slice(0, 3).map(e => e.outerHTML.slice(0, 160))"""
    assert page.evaluate(wide) == []


@pytest.mark.parametrize("place", CHAPTERS)
def test_headings_descend_one_step_at_a_time(visit, place):
    page, _ = visit(place)
    steps = "[...document.querySelectorAll('article :is(h1, h2, h3, h4, h5, h6)')]"
    levels = [int(tag[1]) for tag in page.evaluate(f"{steps}.map(h => h.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    for one, following in itertools.pairwise(levels):
        assert following <= one + 1


@pytest.mark.parametrize("place", CHAPTERS)
def test_every_figure_has_caption_number_and_words_for_what_it_shows(visit, place):
    page, _ = visit(place)
    bare = """[...document.querySelectorAll('article img')].filter(i =>
        !i.closest('figure')?.querySelector('figcaption .caption-number, figcaption .caption-text')
        || (i.alt || '').split(/\\s+/).length < 6).map(i => i.outerHTML.slice(0, 200))"""
    assert page.evaluate(bare) == []


@pytest.mark.parametrize("place", CHAPTERS)
def test_figures_keep_their_shape_on_a_small_screen(visit, place):
    page, _ = visit(place, width=SMALL)
    fetch_figures(page)
    stretched = """[...document.querySelectorAll('article figure img')].filter(each => Math.abs(
        each.clientHeight / each.clientWidth - each.naturalHeight / each.naturalWidth) > 0.02
        ).map(each => each.src)"""
    assert page.evaluate(stretched) == []


@pytest.mark.parametrize("place", CHAPTERS)
def test_the_keyboard_reaches_everything(visit, place):
    """Links, buttons and folded parts take the focus, and what has it can be seen."""
    page, _ = visit(place)
    unreachable = """[...document.querySelectorAll('main :is(a[href], button, summary, input)')]
        .filter(e => e.tabIndex < 0 && e.offsetParent && !e.closest('[aria-hidden=true]'))
        .map(e => e.outerHTML.slice(0, 160))"""
    assert page.evaluate(unreachable) == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    scrolls = """[...document.querySelectorAll('article div, article pre, article table')]
        .filter(e => e.scrollWidth > e.clientWidth + 1
            && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.clientWidth > 0
            && e.tabIndex < 0 && !e.querySelector('a,button,[tabindex]'))
        .map(e => e.outerHTML.slice(0, 160))"""
    narrow, _ = visit(place, width=SMALL)
    assert narrow.evaluate(scrolls) == []


@pytest.mark.parametrize("place", CHAPTERS)
def test_a_page_moves_less_than_a_megabyte(browser, site, place):
    context = browser.new_context()
    page, moved = context.new_page(), {}
    page.on("requestfinished", lambda request: moved.update({request.url: request.sizes()}))
    page.goto(f"{site}/{place}", wait_until="load")
    fetch_figures(page)
    page.wait_for_load_state("networkidle")
    sizes = {url: sizes["responseBodySize"] for url, sizes in moved.items()}
    context.close()
    assert len(sizes) > 5
    assert sum(sizes.values()) < LIMIT, sorted(sizes.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize(("query", "first"), SEARCHES.items())
def test_search_finds_the_page_that_teaches_it_first(visit, query, first):
    page, told = visit(f"search.html?q={query.replace(' ', '+')}")
    page.wait_for_selector("#search-results .search li a")
    page.wait_for_timeout(500)
    href = page.locator("#search-results .search li a").first.get_attribute("href")
    assert href.split("#")[0].split("?")[0] == first
    assert told.outside == told.errors == []


@pytest.mark.parametrize("place", CHAPTERS)
def test_every_page_says_what_it_is(place):
    text = (HTML / place).read_text(encoding="utf-8")
    titles = re.findall(r"<title>(.*?)</title>", text, flags=re.DOTALL)
    descriptions = re.findall(r'<meta name="description" content="(.*?)"', text)
    assert len(titles) == len(descriptions) == 1
    assert 20 <= len(titles[0].strip()) <= 120
    assert 20 <= len(descriptions[0]) <= 200
    assert f'property="og:description" content="{descriptions[0]}"' in text
    assert re.search(r'<link rel="(shortcut )?icon"', text)


def test_no_two_pages_describe_themselves_alike():
    found = [
        re.search(r'<meta name="description" content="(.*?)"', (HTML / place).read_text())[1]
        for place in CHAPTERS
    ]
    assert len(set(found)) == len(found)


def test_a_wrong_address_gets_a_page_that_leads_on(visit):
    page, _ = visit("chapters/no_such_page.html")
    assert "not found" in page.locator("article h1").first.inner_text().lower()
    assert page.locator("nav a[href]").count() > 10


@pytest.mark.parametrize("width", [SMALL, 1280])
def test_a_link_into_a_page_leads_to_its_place(visit, width):
    """Also where figures above it are not there yet."""
    place = "chapters/coding_and_identifiability.html"
    page, _ = visit(f"{place}#exercises", width=width)
    top = "document.getElementById('exercises').getBoundingClientRect().top"
    page.wait_for_function(f"{top} > 0 && {top} < 200")


def test_a_page_has_the_readers_colours_before_a_script_has_run(visit):
    for theme in ("light", "dark"):
        page, _ = visit("chapters/intro.html", theme=theme)
        page.route("**/*.js", lambda request: request.abort())
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == theme


def test_printing_shows_formulas_figures_and_no_furniture(visit):
    page, _ = visit("chapters/pooling.html")
    page.emulate_media(media="print")
    for furniture in (".bd-sidebar-primary", ".article-header-buttons", ".prev-next-footer"):
        assert not page.locator(furniture).first.is_visible(), furniture
    assert page.locator("article mjx-container").first.is_visible()
    assert page.locator("article figure img").first.is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    unseen = """[...document.querySelectorAll('article details > :not(summary)')].filter(
        each => +getComputedStyle(each).opacity < 1).length"""
    assert page.evaluate(unseen) == 0  # what unfolds slowly is not there yet when it is printed
