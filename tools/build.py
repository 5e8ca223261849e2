"""Build the book, strictly: what is wrong with a page fails the build.

`jupyter-book build` alone can exit 0 with a traceback on a page, reuse pages after the
package or the data changed, and knows nothing of convergence. This driver

- forgets executed pages when `mlm_utils/`, `data/`, the lock or Python changed (the cache
  itself sees a change of a page's own code);
- executes pages two at a time, the longest first, into the cache that Sphinx then reads;
- lets Sphinx keep what it read of a page only where a build without fault read the same;
- turns every Sphinx, MyST and cell error or warning into a failure;
- refuses a page that shows a warning, a log line or a progress bar;
- refuses a fit of the ledger that missed the gate, or an exhibit of failure that passed it;
- prints where the time went, and a table: chapter, seconds, fits, worst R-hat, least ESS,
  divergences.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from jupyter_book.config import get_final_config
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml

# A page samples four chains at a time but compiles on one core, so two pages fill the cores.
WORKERS = min(2, os.cpu_count() or 1)

# What Sphinx makes every page with.
SETTINGS = (
    "_config.yml",
    "_toc.yml",
    "references.bib",
    "_static/**/*",
    "_ext/*",
    "_templates/**/*",
)

# What must never stand in an output of a page.
LOG_LINES = {
    "a warning": re.compile(r"\bWARN(ING)?\b|\b\w*Warning:"),
    "a log line": re.compile(r"^\W*(DEBUG|INFO|ERROR|CRITICAL)\b[:\s\]]", re.MULTILINE),
    "a progress bar": re.compile(r"\d+%\|.*\||\bit/s\b"),
}


@dataclass
class Page:
    """A page of the table of contents, as Sphinx will read it."""

    name: str  # without ending, from the book's folder
    path: Path
    text: str
    notebook: NotebookNode | None  # None where there is no code

    @property
    def chapter(self) -> str:
        """The name under which its fits stand in the ledger."""
        return self.path.stem


def main() -> int:
    """Build the book and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the HTML book, strictly.")
    parser.add_argument("source", nargs="?", type=Path, default=Path(__file__).parents[1])
    source = parser.parse_args().source.resolve()
    build = source / "_build"
    os.environ |= {
        "MLM_LEDGER": str(build / "fits"),
        "PYTHONPATH": str(source),
        "IPYTHONDIR": str(own_ipython(build)),
    }
    clock = [time.perf_counter()]
    config, _ = get_final_config(
        user_yaml=source / "_config.yml",
        sourcedir=source,
        cli_config={"latex_individualpages": False},
        validate=False,  # Sphinx's own run does
    )
    pages = read_pages(source, config)
    forget_stale_pages(source, build)
    cache = get_cache(build / ".jupyter_cache")
    waiting = forget_executions(cache, pages)
    stamp = forget_doctrees(source, build, pages, waiting)
    clock.append(time.perf_counter())
    execute(waiting, cache, config["nb_execution_timeout"])
    clock.append(time.perf_counter())
    problems = [] if run_sphinx(source) else ["Sphinx reported the errors or warnings above"]
    clock.append(time.perf_counter())
    executed = {page.chapter: examine(page, cache) for page in pages if page.notebook}
    fits = read_fits(build)
    problems += [problem for page in executed.values() for problem in page["problems"]]
    problems += [problem for fit in fits for problem in judge(fit, executed)]
    print(f"\n{times(executed, build / 'fits')}")
    clock.append(time.perf_counter())
    checks, executing, sphinx = clock[1] - clock[0], clock[2] - clock[1], clock[3] - clock[2]
    checks += clock[4] - clock[3]
    print(
        f"This build: executing {executing:.1f} s ({len(waiting)} of {len(executed)} pages), "
        f"Sphinx {sphinx:.1f} s, checks {checks:.1f} s; in all {clock[4] - clock[0]:.1f} s."
    )
    print(f"\n{table(executed, fits)}\n")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print("The book was NOT built.", file=sys.stderr)
        return 1
    (build / "stamp.json").write_text(json.dumps(stamp))
    print(f"The book is built: {build / 'html' / 'index.html'}")
    return 0


def own_ipython(build: Path) -> Path:
    """Make the kernels' own settings: none of a reader's start-up files, and errors logged only.

    A kernel ends once what a page left to do is done: putting its objects away takes a second.
    """
    profile = build / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(
        'c.IPKernelApp.log_level = "ERROR"\n'
        'end = \'__import__("atexit").register(__import__("os")._exit, 0)\'\n'
        "c.IPKernelApp.exec_lines = [end]\n"
    )
    return profile.parent


def read_pages(source: Path, config: dict) -> list[Page]:
    """Return the pages of `_toc.yml`, their code split into cells as MyST-NB will split it."""
    markdown = MdParserConfig(enable_extensions=config["myst_enable_extensions"])
    pages = []
    for name in parse_toc_yaml(source / "_toc.yml"):
        path = source / f"{name}.md"
        if not path.exists():
            raise SystemExit(f"error: _toc.yml names {name}, but there is no {path}")
        text, notebook = path.read_text(encoding="utf-8"), None
        if is_myst_markdown_notebook(text):
            notebook = read_myst_markdown_notebook(text, markdown, add_source_map=True, path=path)
            if not any(cell["cell_type"] == "code" for cell in notebook.cells):
                notebook = None
        pages.append(Page(name, path, text, notebook))
    return pages


def digest(source: Path, *patterns: str) -> str:
    """Return a digest of Python's version and of the names and contents of files."""
    total = hashlib.sha256(sys.version.encode())
    for path in sorted(path for pattern in patterns for path in source.glob(pattern)):
        if path.is_file():
            total.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def forget_stale_pages(source: Path, build: Path) -> None:
    """Remove all executions if what pages use has changed since."""
    tables = [f"data/**/*.{ending}" for ending in ("csv", "json", "toml")]
    uses = digest(source, "mlm_utils/**/*.py", *tables, "requirements.lock")
    key = build / "execution-key"
    # Records of a chapter without a page: the page that wrote them must do so again to be caught.
    chapters = {path.name.split(".")[0] for path in (build / "fits").glob("*.json")}
    misnamed = any(not (source / "chapters" / f"{chapter}.md").exists() for chapter in chapters)
    changed = not key.exists() or key.read_text() != uses
    if changed or misnamed or not (build / "fits").is_dir():
        for folder in (".jupyter_cache", "fits"):
            shutil.rmtree(build / folder, ignore_errors=True)
    (build / "fits").mkdir(parents=True, exist_ok=True)
    key.write_text(uses)


def forget_executions(cache, pages: list[Page]) -> list[Page]:
    """Remove executions of code that no page has now, or that failed; return the pages without one.

    The ledger holds a page's last execution, so the cache must not bring back an earlier one.
    """
    good, waiting = set(), []
    for page in pages:
        if page.notebook:
            record = match(cache, page)
            if record is None or record.data.get("failure"):
                waiting.append(page)
            else:
                good.add(record.pk)
    for record in cache.list_cache_records():
        if record.pk not in good:
            cache.remove_cache(record.pk)
    return waiting


def match(cache, page: Page):
    """Return the cache's record of a page's code, or None."""
    try:
        return cache.match_cache_notebook(page.notebook)
    except KeyError:
        return None


def forget_doctrees(source: Path, build: Path, pages: list[Page], waiting: list[Page]) -> dict:
    """Remove what Sphinx would otherwise not read or write again; return the new stamp.

    Sphinx warns of a page only as it reads and writes it, so pages stay read only after a build
    without a warning, and all are written again: each may refer to a page that has changed.
    """
    stamp = build / "stamp.json"
    old = json.loads(stamp.read_text()) if stamp.exists() else {"settings": None, "pages": {}}
    stamp.unlink(missing_ok=True)
    settings = digest(source, *SETTINGS)
    settings += (build / "execution-key").read_text() + digest(Path(__file__).parent, "build.py")
    new = {
        "settings": settings,
        "pages": {page.name: hashlib.sha256(page.text.encode()).hexdigest() for page in pages},
    }
    kept = old["settings"] == settings
    for folder in ("html", *([] if kept else [".doctrees", "jupyter_execute"])):
        shutil.rmtree(build / folder, ignore_errors=True)
    for page in pages:
        if page in waiting or old["pages"].get(page.name) != new["pages"][page.name]:
            (build / ".doctrees" / f"{page.name}.doctree").unlink(missing_ok=True)
            # MyST-NB would leave this file as it is if the page glues nothing now.
            (build / "jupyter_execute" / f"{page.name}.glue.json").unlink(missing_ok=True)
    return new


def execute(waiting: list[Page], cache, timeout: int) -> None:
    """Execute pages into the cache that Sphinx reads; one that fails, as far as it came."""
    waiting = sorted(waiting, key=lambda page: len(page.text), reverse=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            running = {pool.submit(run, page, timeout): page for page in waiting}
            for future in as_completed(running):
                page, data = running[future], future.result()
                bundle = CacheBundleIn(page.notebook, str(page.path), data=data)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                how = "failed after" if data["failure"] else "executed in"
                print(f"{page.chapter}: {how} {data['execution_seconds']:.1f} s", flush=True)
        except KeyboardInterrupt:
            os._exit(130)  # at once: kernels end with the process that started them


def run(page: Page, timeout: int) -> dict:
    """Execute a page; return its seconds, those until its first cell was done, and its failure."""
    done, start = [], time.perf_counter()
    try:
        failure = single_nb_execution(
            page.notebook,
            cwd=str(page.path.parent),
            timeout=timeout,
            allow_errors=False,
            on_cell_executed=lambda **_: done.append(time.perf_counter()),
        ).err
    except Exception as error:  # a kernel that died or never came
        failure = error
    end = time.perf_counter()
    return {
        "execution_seconds": end - start,
        "startup_seconds": (done or [end])[0] - start,
        "failure": failure and f"{type(failure).__name__}: {failure}",
    }


def run_sphinx(source: Path) -> bool:
    """Write the HTML; return whether Sphinx had nothing to say against it."""
    from jupyter_book.cli.main import main as jupyter_book  # two seconds, spent as Sphinx's

    strictly = ["--warningiserror", "--nitpick", "--keep-going"]
    try:
        jupyter_book(["build", str(source), *strictly], standalone_mode=False)
    except SystemExit as end:
        return not end.code
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return False
    return True


def examine(page: Page, cache) -> dict:
    """Return a page's seconds and what is wrong with it: a failure, or what it must not show."""
    data = match(cache, page).data
    _, notebook = cache.merge_match_into_notebook(page.notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    failure = data.get("failure")
    return {
        "seconds": None if failure else data["execution_seconds"],
        "startup": data.get("startup_seconds", 0.0),
        "problems": [f"{page.chapter}: {failure}"] * bool(failure)
        + [
            f"{page.chapter} shows {what}: {line!r}"
            for text in map(shown_text, outputs)
            for what, pattern in LOG_LINES.items()
            for line in text.splitlines()
            if pattern.search(line)
        ],
    }


def shown_text(output: dict) -> str:
    """Return the plain text of a cell's output, whatever its kind."""
    if output["output_type"] == "error":
        return ""  # the page failed, and is refused for that
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return text if isinstance(text, str) else "".join(text)


def read_fits(build: Path) -> list[dict]:
    """Return the ledger's records, by chapter and name."""
    return [json.loads(path.read_text()) for path in sorted((build / "fits").glob("*.json"))]


def judge(fit: dict, pages: dict) -> list[str]:
    """Return what is wrong with a fit of the ledger."""
    name = f"the fit {fit['name']!r} of {fit['chapter']}"
    if fit["chapter"] not in pages:
        return [f"{name}: no page has this name; setup(chapter=...) must name the page's file"]
    if fit["exhibit"]:
        return [] if fit["misses"] else [f"{name} is marked an exhibit of failure but converged"]
    return [f"{name} missed the gate: {miss}" for miss in fit["misses"]]


def table(pages: dict, fits: list[dict]) -> str:
    """Return the closing table, a line a chapter; exhibits are counted, not judged."""
    rows = [("chapter", "seconds", "fits", "exhibits", "max R-hat", "min ESS", "divergences")]
    for chapter, page in pages.items():
        own = [fit for fit in fits if fit["chapter"] == chapter]
        shown = [fit for fit in own if not fit["exhibit"]]
        rows.append(
            (
                chapter,
                "-" if page["seconds"] is None else f"{page['seconds']:.1f}",
                str(len(shown)),
                str(len(own) - len(shown)),
                f"{max(fit['max_rhat'] for fit in shown):.4f}" if shown else "-",
                f"{min(min(f['min_ess_bulk'], f['min_ess_tail']) for f in shown):.0f}"
                if shown
                else "-",
                str(sum(fit["divergences"] for fit in shown)) if shown else "-",
            )
        )
    return columns(rows)


def times(pages: dict, ledger: Path) -> str:
    """Return where the time of each page's last execution went, and the share of JAX and fits."""
    rows = [("page", "seconds", "start-up", "compiling", "sampling", "other")]
    figures = []
    for chapter, page in pages.items():
        if page["seconds"] is not None:
            said = ledger / f"{chapter}.seconds"  # not of a page without mlm_utils
            spent = said.read_text().split() if said.exists() else (0, 0)
            parts = [page["startup"], *map(float, spent)]
            figures.append([page["seconds"], *parts, page["seconds"] - sum(parts)])
            rows.append((chapter, *(f"{figure:.1f}" for figure in figures[-1])))
    if not figures:
        return "No page was executed to its end."
    total = [sum(figure) for figure in zip(*figures, strict=True)]
    rows.append(("all pages", *(f"{figure:.1f}" for figure in total)))
    share = (total[2] + total[3]) / total[0]
    return f"{columns(rows)}\nJAX compiles, or a fit samples, during {share:.0%} of it."


def columns(rows: list[tuple]) -> str:
    """Return rows of text in columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
