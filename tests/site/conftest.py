"""The built site in a browser; these tests need `make book` before them (`make site-test`)."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HTML = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parent)]

from browser import browser as start_browser  # noqa: E402
from serve import serve  # noqa: E402

# Every page a reader can come to, from the folder of the site; index.html leads to the first.
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.glob("**/*.html")
    if path != HTML / "index.html"
    and not {"_static", "reports"} & set(path.relative_to(HTML).parts)
)
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]


@dataclass
class Told:
    """What a page asked for and complained of."""

    outside: list[str] = field(default_factory=list)  # requests to other places
    errors: list[str] = field(default_factory=list)  # of scripts and requests, and warnings


@pytest.fixture(scope="session")
def site():
    """The address at which the built site is served."""
    if not (HTML / "index.html").exists():
        pytest.exit(f"{HTML} holds no site: run `make book` first", returncode=2)
    with serve(HTML) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    """A browser without a window."""
    with start_browser() as found:
        yield found


@pytest.fixture
def visit(browser, site):
    """Open a page, with nothing beyond the site in reach; returns it, and what it told."""
    contexts = []

    def go(place, *, theme="light", width=1280, height=900, scripts=True, address=site, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            java_script_enabled=scripts,
            **options,
        )
        contexts.append(context)
        told, page = Told(), context.new_page()

        def route(request):
            if request.request.url.startswith((address, "data:", "blob:")):
                request.continue_()
            else:
                told.outside.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        page.on("pageerror", lambda error: told.errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                told.errors.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.goto(f"{address}/{place}", wait_until="load")
        if scripts:  # what scrolls has been found (scroll.js)
            page.wait_for_function("document.documentElement.dataset.scroll")
        return page, told

    yield go
    for context in contexts:
        context.close()
