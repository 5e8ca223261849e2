"""The build refuses what is wrong with a page, and executes a page when it must."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent

HEADER = """\
---
description: A page.
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""


def page(title, code, prose=""):
    """Return the text of a page with one code cell."""
    return f"{HEADER}# {title}\n\n{prose}\n\n```{{code-cell}} ipython3\n{dedent(code)}\n```\n"


def write_book(folder, pages, *, package=True):
    """Write a tiny book with the real settings; its first page is the root."""
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / name, folder)
    for name in ("_static", "_ext", "_templates"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("chapters", "data", *(["mlm_utils"] if package else [])):
        (folder / name).mkdir()
    if len(pages) == 1:  # the theme's page for wrong addresses wants a list of pages
        pages = pages | {"notes": "---\ndescription: No code.\n---\n\n# Notes\n"}
    root, *others = pages
    files = "".join(f"  - file: chapters/{name}\n" for name in others)
    chapters = f"chapters:\n{files}" if others else ""
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: chapters/{root}\n{chapters}")
    for name, text in pages.items():
        (folder / "chapters" / f"{name}.md").write_text(text, encoding="utf-8")
    if package:
        (folder / "mlm_utils" / "__init__.py").write_text("ANSWER = 41\n")
    (folder / "data" / "t.csv").write_text("a\n1\n")
    (folder / "requirements.lock").write_text("a==1\n")
    # jsonschema can do without this module, which takes a second and a half to import.
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    return folder


def build(book, repository=""):
    """Build a book as `make book` does; return the exit status and all that was printed."""
    known = {"GITHUB_REPOSITORY": repository}
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build.py", book],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | known | {"PYTHONPATH": str(book), "PYTHONUNBUFFERED": "1"},
        check=False,
    )
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def row(printed, chapter):
    """Return a chapter's row of the closing table."""
    rows = printed[printed.rindex("\nchapter ") :].splitlines()
    return next(line.split() for line in rows if line.startswith(f"{chapter} "))


def record(chapter, name="fitted", **figures):
    """Return a record of the ledger, with the keys of a real one."""
    converged = {
        "model": "model",
        "name": name,
        "data": {"shapes": {"y": [4]}, "sha256": "0" * 64},
        "chains": 4,
        "warmup": 1000,
        "draws": 1000,
        "exhibit": False,
        "seconds_compile": 1.0,
        "seconds_sample": 2.0,
        "max_rhat": 1.001,
        "min_ess_bulk": 1000.0,
        "min_ess_tail": 900.0,
        "divergences": 0,
        "misses": [],
        "parameters": {"mu": {"mean": 0.0, "sd": 1.0, "mcse": 0.02}},
    }
    return {"chapter": chapter} | converged | figures


def recording(*records):
    """Return code that writes records to the ledger, as `mlm_utils.sampling.fit` does."""
    return dedent(
        f"""
        import json, os, pathlib
        for record in json.loads({json.dumps(records)!r}):
            name = f"{{record['chapter']}}.{{record['name']}}.json"
            pathlib.Path(os.environ["MLM_LEDGER"], name).write_text(json.dumps(record))
        """
    )


MISS = "r_hat of mu is 1.5 (> 1.01)"

# A page a fault: what the page is, and what the build must say of it in one line.
FAULTS = {
    "raises": (
        page("A cell that raises", "raise ValueError('the milk is sour')"),
        ["CellExecutionError"],
    ),
    "crossref": (
        page("A broken reference", "1 + 1", prose="See {ref}`no-such-section`."),
        ["undefined label", "no-such-section"],
    ),
    "document": (
        page("A missing page", "1 + 1", prose="See {doc}`no_such_page`."),
        ["no_such_page"],
    ),
    "link": (
        page("A broken link", "1 + 1", prose="See [there](#no-such-heading)."),
        ["no-such-heading"],
    ),
    "numbers": (
        page("A figure without number", "1 + 1", prose="See {numref}`no-such-figure`."),
        ["no-such-figure"],
    ),
    "cites": (
        page("A missing source", "1 + 1", prose="As {footcite:p}`nobody1900nothing` says."),
        ["nobody1900nothing"],
    ),
    "warns": (
        page("A warning", "import warnings\nwarnings.warn('the milk is old')"),
        ["shows a warning", "UserWarning: the milk is old"],
    ),
    "logs": (
        page("A log line", "import logging\nlogging.warning('the milk is warm')"),
        ["shows a warning", "WARNING:root:the milk is warm"],
    ),
    "murmurs": (
        page("Standard error", "import sys\nprint('the milk is thin', file=sys.stderr)"),
        ["stderr was found"],
    ),
    "prints_warning": (
        page("A printed warning", "print('fine')\nprint('WARNING: the milk is off')"),
        ["shows a warning", "WARNING: the milk is off"],
    ),
    "prints_info": (
        page("A printed log line", "print('fine')\nprint('INFO: milking')"),
        ["shows a log line", "INFO: milking"],
    ),
    "bar": (
        page("A progress bar", "from tqdm import tqdm\nfor _ in tqdm(range(3)): pass"),
        ["shows a progress bar", "3/3"],
    ),
    "prints_bar": (
        page(
            "A printed progress bar",
            "import sys\nfrom tqdm import tqdm\nfor _ in tqdm(range(3), file=sys.stdout): pass",
        ),
        ["shows a progress bar", "3/3"],
    ),
    "widget": (
        page(
            "A progress bar as a widget",
            "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3)): pass",
        ),
        ["shows a progress bar", "0/3"],
    ),
    "swallows": (
        page("A miss swallowed", recording(record("swallows", misses=[MISS]))),
        ["the fit 'fitted' of swallows missed the gate", MISS],
    ),
    "exhibits": (
        page("An exhibit that converged", recording(record("exhibits", "shown", exhibit=True))),
        ["the fit 'shown' of exhibits", "exhibit of failure", "converged"],
    ),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """What two builds of a book with every fault printed, and their exit status."""
    texts = {name: text for name, (text, _) in FAULTS.items()}
    book = write_book(tmp_path_factory.mktemp("faulty"), texts)
    return [build(book), build(book)]


@pytest.mark.parametrize("again", [False, True], ids=["first build", "second build"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_its_page_and_cause(faulty, fault, again):
    status, printed = faulty[again]
    assert status == 1
    assert printed.endswith("The book was NOT built.\n")
    texts = [fault, *FAULTS[fault][1]]
    assert any(all(text in line for text in texts) for line in printed.splitlines()), printed


def test_traceback_of_a_raising_cell_is_printed(faulty):
    for _, printed in faulty:
        _, failure = printed.split("error: raises: CellExecutionError", 1)
        assert "ValueError: the milk is sour" in failure


def test_errors_name_only_pages_with_such_faults(faulty):
    _, printed = faulty[0]
    named = re.findall(
        r"^error: (?:the fit '\w+' of )?(\w+)(?: shows|:| missed| is)", printed, re.M
    )
    assert set(named) == {
        *("warns", "logs", "prints_warning", "prints_info", "bar", "prints_bar", "widget"),
        *("raises", "swallows", "exhibits"),
    }


def test_table_of_a_failed_build_shows_what_was_measured(faulty):
    for _, printed in faulty:
        assert row(printed, "raises") == ["raises", "-", "0", "0", "-", "-", "-"]
        assert row(printed, "swallows")[2:] == ["1", "0", "1.0010", "900", "0"]
        assert row(printed, "exhibits")[2:] == ["0", "1", "-", "-", "-"]


class Good:
    """A book without fault, whose page counts its executions in a file outside the book."""

    def __init__(self, folder):
        self.counter = folder / "executions"
        self.code = f"open({str(self.counter)!r}, 'a').write('x')\n" + recording(
            record("page", "first", max_rhat=1.004, min_ess_bulk=800.0, divergences=1),
            record("page", "second", min_ess_bulk=450.4, min_ess_tail=700.0, divergences=2),
            record(
                *("page", "shown"),
                exhibit=True,
                max_rhat=2.0,
                min_ess_bulk=5.0,
                divergences=99,
                misses=[MISS],
            ),
        )
        self.code += (
            'pathlib.Path(os.environ["MLM_LEDGER"], "page.seconds").write_text("3.5 6.0")\n'
        )
        (folder / "book").mkdir()
        self.book = write_book(folder / "book", {"page": page("Page", self.code)})
        self.page = self.book / "chapters" / "page.md"
        self.status, self.printed = build(self.book)

    def build(self):
        """Return the exit status, what was printed and how often the page was executed."""
        before = self.counter.stat().st_size
        return *build(self.book), self.counter.stat().st_size - before


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return Good(tmp_path_factory.mktemp("good"))


def test_good_book_is_built(good):
    assert good.status == 0, good.printed
    html = good.book / "_build" / "html"
    assert good.printed.endswith(f"The book is built: {html / 'index.html'}\n")
    assert "<h1>Page" in (html / "chapters" / "page.html").read_text(encoding="utf-8")
    assert (html / "index.html").exists()


def test_table_has_the_worst_figure_of_the_fits_and_only_counts_exhibits(good):
    chapter, seconds, *figures = row(good.printed, "page")
    assert chapter == "page"
    assert 0 < float(seconds) < 60
    assert figures == ["2", "1", "1.0040", "450", "3"]


def test_where_the_time_went_is_printed(good):
    times, _ = good.printed.rsplit("\n\nchapter ", 1)
    header, page_row, all_row, share, build_line = times.splitlines()[-5:]
    assert header.split() == ["page", "seconds", "start-up", "compiling", "sampling", "other"]
    _, *figures = page_row.split()
    seconds, startup, compiling, sampling, other = map(float, figures)
    assert 0 < startup <= seconds
    assert (compiling, sampling) == (3.5, 6.0)  # the page's own figures
    assert startup + compiling + sampling + other == pytest.approx(seconds, abs=0.25)  # rounded
    assert all_row.split() == ["all", "pages", *figures]
    said = float(re.search(r"(\d+)% of it", share)[1])
    assert 9.5 / (seconds + 0.05) - 0.005 <= said / 100 <= 9.5 / (seconds - 0.05) + 0.005
    assert "(1 of 1 pages)" in build_line


def test_unchanged_code_is_not_executed_again(good):
    (good.book / "README.md").write_text("Read me\n")
    (good.book / "mlm_utils" / "notes.txt").write_text("no code\n")
    good.page.write_text(page("Page", good.code, prose="Other words."))
    status, printed, executions = good.build()
    assert (status, executions) == (0, 0), printed
    assert row(printed, "page") == row(good.printed, "page")
    assert "(0 of 1 pages)" in printed
    assert "Other words." in (good.book / "_build" / "html" / "chapters" / "page.html").read_text()


def test_page_is_executed_again_when_the_package_changed(good):
    (good.book / "mlm_utils" / "__init__.py").write_text("ANSWER = 42\n")
    status, printed, executions = good.build()
    assert (status, executions) == (0, 1), printed
    assert row(printed, "page")[2:] == row(good.printed, "page")[2:]


def test_changed_code_is_executed_and_judged_and_so_is_the_code_put_back(good):
    text = good.page.read_text()
    miss = recording(record("page", "first", misses=[MISS]))
    good.page.write_text(page("Page", f"{good.code}\n{miss}"))
    status, printed, executions = good.build()
    assert (status, executions) == (1, 1)
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert error == f"error: the fit 'first' of page missed the gate: {MISS}"
    assert printed.endswith("The book was NOT built.\n")
    good.page.write_text(text)
    status, printed, executions = good.build()
    assert (status, executions) == (0, 1), printed


def test_fits_under_the_name_of_no_page_are_refused_as_often_as_one_builds(good):
    text = good.page.read_text()
    good.page.write_text(page("Page", good.code + recording(record("pgae", "first"))))
    for _ in range(2):
        status, printed, executions = good.build()
        assert (status, executions) == (1, 1)
        (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert error.startswith("error: the fit 'first' of pgae: no page has this name")
    good.page.write_text(text)


@pytest.mark.parametrize("repository", ["someone/book", ""], ids=["known", "unknown"])
def test_only_a_book_that_knows_its_address_leads_to_it(repository, tmp_path):
    status, printed = build(write_book(tmp_path, {"first": page("First", "1 + 1")}), repository)
    assert status == 0, printed
    html = tmp_path / "_build" / "html"
    with_code, without = (
        (html / "chapters" / f"{name}.html").read_text(encoding="utf-8")
        for name in ("first", "notes")
    )
    known = bool(repository)
    for place in ("https://mybinder.org/v2/gh/someone/book/", "https://colab.research.google.com/"):
        assert (place in with_code) == known
        assert place not in without
    for text in (with_code, without):
        assert ('href="https://github.com/someone/book"' in text) == known
        assert ('content="https://someone.github.io/book/_images/social_previews/' in text) == known
        assert 'property="og:site_name" content="Multilevel Models in Python"' in text
    assert (html / "sitemap.xml").exists() == known
    assert len(list(html.glob("_images/social_previews/*.png"))) == 2 * known
    lost = (html / "404.html").read_text(encoding="utf-8")
    assert f'src="{"/book" * known}/_static/logo.svg"' in lost


class Linked:
    """A book whose first page refers to a label, a number and a glued figure of its second."""

    FIRST = page(
        "First",
        "1 + 1",
        prose="See {ref}`place`, {numref}`drawn`.\n\n```{glue} answer\n:doc: second.md\n```",
    )
    TABLE = ":::{table} Caption\n:name: drawn\n\n| a |\n|---|\n| 1 |\n:::"

    def __init__(self, folder):
        self.counter = folder / "executions"
        self.counter.touch()
        self.code = f"""
            from myst_nb import glue
            open({str(self.counter)!r}, "a").write("x")
            glue("answer", 41, display=False)
        """
        (folder / "book").mkdir()
        texts = {"first": self.FIRST, "second": self.second(), "third": page("Third", "3")}
        self.book = write_book(folder / "book", texts)
        self.status, self.printed = build(self.book)

    def second(self, *, code="", label="(place)=\n## Place", above=""):
        """Return the text of the second page, or of a variant of it."""
        return page("Second", dedent(self.code) + code, prose=f"{above}\n\n{self.TABLE}\n\n{label}")

    def build(self, second):
        """Build with this second page, dated before the last build; count its executions."""
        path = self.book / "chapters" / "second.md"
        path.write_text(second)
        os.utime(path, (0, 0))
        before = self.counter.stat().st_size
        return *build(self.book), self.counter.stat().st_size - before

    def html(self, name):
        """Return the main part of a page that was built."""
        path = self.book / "_build" / "html" / "chapters" / f"{name}.html"
        return path.read_text(encoding="utf-8").split("<main", 1)[1].split("</main", 1)[0]


@pytest.fixture(scope="module")
def linked_book(tmp_path_factory):
    return Linked(tmp_path_factory.mktemp("linked"))


@pytest.fixture
def linked(linked_book):
    """The book as it was first built, and built without fault."""
    if (linked_book.book / "chapters" / "second.md").read_text() != linked_book.second():
        linked_book.status, linked_book.printed, _ = linked_book.build(linked_book.second())
    assert linked_book.status == 0, linked_book.printed
    return linked_book


def test_unchanged_book_is_written_but_not_read_again(linked):
    first = linked.html("first")
    assert "Table\N{NO-BREAK SPACE}1" in first
    assert "41" in first
    status, printed, executions = linked.build(linked.second())
    assert (status, executions) == (0, 0), printed
    assert "0 added, 0 changed, 0 removed" in printed
    assert linked.html("first") == first


def test_changed_page_reaches_the_unchanged_page_that_refers_to_it(linked):
    above = ":::{table} Another\n:name: another\n\n| b |\n|---|\n| 2 |\n:::"
    second = linked.second(above=above).replace('"answer", 41', '"answer", 43')
    status, printed, executions = linked.build(second)
    assert (status, executions) == (0, 1), printed
    assert "0 added, 1 changed, 0 removed" in printed
    first = linked.html("first")
    assert "Table\N{NO-BREAK SPACE}2" in first
    assert "43" in first
    assert "41" not in first


def test_unchanged_page_does_not_show_what_another_glues_no_more(linked):
    status, printed, executions = linked.build(page("Second", "1 + 1", prose=linked.TABLE))
    assert (status, executions) == (1, 0), printed
    assert re.search(r"first\.md.*Glue reference 'answer' not found", printed)


def test_page_edited_into_failing_fails_every_build_until_it_is_repaired(linked):
    lost = r"first\.md.*undefined label: 'place'"  # the page that refers to it is unchanged
    for _ in range(2):
        failing = linked.second(code="raise ValueError('the milk is sour')")
        status, printed, executions = linked.build(failing)
        assert (status, executions) == (1, 1), printed
        assert "error: second: CellExecutionError" in printed
        assert "ValueError: the milk is sour" in printed
    for expected in (1, 0):
        status, printed, executions = linked.build(linked.second(label=""))
        assert (status, executions) == (1, expected), printed
        assert re.search(lost, printed)
    status, printed, executions = linked.build(linked.second())
    assert (status, executions) == (0, 0), printed


def test_page_taken_from_the_contents_loses_its_html(linked):
    html = linked.book / "_build" / "html" / "chapters"
    contents = linked.book / "_toc.yml"
    assert (html / "third.html").exists()
    text = contents.read_text()
    contents.write_text(text.replace("  - file: chapters/third\n", ""))
    status, printed, executions = linked.build(linked.second())
    contents.write_text(text)
    assert (status, executions) == (0, 0), printed
    assert sorted(path.name for path in html.iterdir()) == ["first.html", "second.html"]
    assert "third" not in printed[printed.rindex("\npage ") :]


@pytest.mark.skipif(os.cpu_count() == 1, reason="on one core pages are executed one by one")
def test_pages_are_executed_side_by_side_in_their_folder_and_the_longest_first(tmp_path):
    (tmp_path / "book").mkdir()
    started = tmp_path / "started"

    def waits(me, other, words=""):
        code = f"""
            import os, pathlib, time
            chapters = pathlib.Path({str(tmp_path / "book" / "chapters")!r})
            assert pathlib.Path.cwd() == chapters
            assert os.environ["PYTHONPATH"] == str(chapters.parent)
            assert os.environ["MLM_LEDGER"] == str(chapters.parent / "_build" / "fits")
            started = pathlib.Path({str(started)!r})
            with started.open("a") as file:
                file.write("{me}\\n")
            while "{other}" not in started.read_text().split():
                time.sleep(0.05)
        """
        return page(me, code, prose=words)

    texts = {
        "short": waits("short", "short"),
        "left": waits("left", "right", "Many words. " * 50),
        "right": waits("right", "left", "Many words. " * 60),
    }
    book = write_book(tmp_path / "book", texts)
    (book / "chapters" / "stray.md").write_text(waits("stray", "stray"))
    config = book / "_config.yml"
    config.write_text(config.read_text().replace("timeout: 600", "timeout: 20"))
    status, printed = build(book)
    assert status == 0, printed
    *pair, last = started.read_text().split()
    assert sorted(pair) == ["left", "right"]
    assert last == "short"


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """A book, and a function that says whether its next build would reuse the last one."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    driver = importlib.import_module("build")
    monkeypatch.setattr(driver, "get_cache", lambda _: SimpleNamespace(list_cache_records=list))
    book = write_book(tmp_path, {"page": page("Page", "1 + 1")})
    (book / "mlm_utils" / "deep").mkdir()
    (book / "mlm_utils" / "deep" / "module.py").write_text("ANSWER = 41\n")
    driver.forget_stale_pages(book, book / "_build")
    fitted = book / "_build" / "fits" / "page.fitted.json"
    executed = book / "_build" / ".jupyter_cache" / "executed"
    fitted.write_text("{}")
    executed.parent.mkdir()
    executed.write_text("")

    def ask():
        driver.forget_stale_pages(book, book / "_build")
        return executed.exists() and fitted.exists()

    return book, ask


@pytest.mark.parametrize(
    "changed",
    ["mlm_utils/__init__.py", "mlm_utils/deep/module.py", "data/t.csv", "requirements.lock"],
)
def test_change_of_what_pages_use_makes_them_execute(remembered, changed):
    book, reused = remembered
    assert reused()
    with (book / changed).open("a") as file:
        file.write("\n")
    assert not reused()


@pytest.mark.parametrize("added", ["mlm_utils/new.py", "data/new.csv", "data/new.toml"])
def test_new_module_or_table_makes_pages_execute(remembered, added):
    book, reused = remembered
    (book / added).write_text("")
    assert not reused()


def test_other_python_makes_pages_execute(remembered, monkeypatch):
    _, reused = remembered
    monkeypatch.setattr(sys, "version", "3.99.0")
    assert not reused()


@pytest.mark.parametrize("changed", ["_toc.yml", "references.bib", "README.md", "data/README.md"])
def test_change_of_what_pages_do_not_use_executes_nothing(remembered, changed):
    book, reused = remembered
    with (book / changed).open("a") as file:
        file.write("\n")
    assert reused()


def test_lost_ledger_makes_pages_execute(remembered):
    book, reused = remembered
    shutil.rmtree(book / "_build" / "fits")
    assert not reused()


def test_renamed_chapter_makes_pages_execute(remembered):
    book, reused = remembered
    (book / "chapters" / "page.md").rename(book / "chapters" / "other.md")
    assert not reused()


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A book built without fault, and a function that says if Sphinx need not read its page."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    driver = importlib.import_module("build")
    book = write_book(tmp_path, {"page": page("Page", "1 + 1")})
    doctree = book / "_build" / ".doctrees" / "chapters" / "page.doctree"
    doctree.parent.mkdir(parents=True)

    def ask(*, executed=False):
        doctree.write_text("")
        pages = driver.read_pages(book, {"myst_enable_extensions": []})
        driver.forget_stale_pages(book, book / "_build")
        stamp = driver.forget_doctrees(book, book / "_build", pages, pages if executed else [])
        kept = doctree.exists()
        doctree.parent.mkdir(parents=True, exist_ok=True)
        (book / "_build" / "stamp.json").write_text(json.dumps(stamp))
        return kept

    ask()
    return book, ask


@pytest.mark.parametrize(
    "changed",
    [
        *("_config.yml", "_toc.yml", "references.bib", "_static/new.css", "data/t.csv"),
        *("mlm_utils/__init__.py", "requirements.lock", "chapters/page.md"),
    ],
)
def test_change_of_what_sphinx_uses_makes_it_read(read, changed):
    book, kept = read
    assert kept()
    with (book / changed).open("a") as file:
        file.write("\n")
    assert not kept()
    assert kept()


def test_page_that_is_executed_is_read(read):
    _, kept = read
    assert not kept(executed=True)


def test_build_that_did_not_end_well_makes_sphinx_read(read):
    book, kept = read
    (book / "_build" / "stamp.json").unlink()
    assert not kept()


def test_fit_that_did_not_converge_stops_the_build(tmp_path):
    code = """
        import jax
        import numpyro
        import numpyro.distributions as dist

        import mlm_utils
        from mlm_utils.sampling import fit

        mlm_utils.setup(chapter="page")

        def short(y=None):
            mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        fit(short, {"y": 0.5}, key=jax.random.key(1), warmup=10, draws=10)
    """
    book = write_book(tmp_path, {"page": page("Too short", code)}, package=False)
    status, printed = build(book)
    assert status == 1
    assert printed.endswith("The book was NOT built.\n")
    assert "error: page: CellExecutionError" in printed
    figure = r"ess_bulk of mu is [\d.]+ \(< 400\)"
    assert re.search(rf"ConvergenceError: the fit 'short' did not converge: .*{figure}", printed)
    assert re.search(rf"error: the fit 'short' of page missed the gate: {figure}", printed)
    (written,) = (book / "_build" / "fits").glob("*.json")
    assert written.name == "page.short.json"
    assert json.loads(written.read_text()).keys() == record("page").keys()
