"""Build the book, strictly: what is wrong with a page fails the build.

`jupyter-book build` alone can exit 0 with a traceback on a page, reuse pages after the
package or the data changed, and knows nothing of convergence. This driver

- forgets executed pages when `mlm_utils/`, `data/`, the lock or Python changed (the cache
  itself sees a change of a page's own code);
- turns every Sphinx, MyST and cell error or warning into a failure;
- refuses a page that shows a warning, a log line or a progress bar;
- refuses a fit of the ledger that missed the gate, or an exhibit of failure that passed it;
- prints a table: chapter, seconds, fits, worst R-hat, least ESS, divergences.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from jupyter_cache import get_cache

# What must never stand in an output of a page.
LOG_LINES = {
    "a warning": re.compile(r"\bWARN(ING)?\b|\b\w*Warning:"),
    "a log line": re.compile(r"^\W*(DEBUG|INFO|ERROR|CRITICAL)\b[:\s\]]", re.MULTILINE),
    "a progress bar": re.compile(r"\d+%\|.*\||\bit/s\b"),
}


def main() -> int:
    """Build the book and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the HTML book, strictly.")
    parser.add_argument("source", nargs="?", type=Path, default=Path(__file__).parents[1])
    source = parser.parse_args().source.resolve()
    build = source / "_build"
    forget_stale_pages(source, build)
    environment = os.environ | {
        "MLM_LEDGER": str(build / "fits"),
        "PYTHONPATH": str(source),
        "IPYTHONDIR": str(own_ipython(build)),
    }
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", source, "--warningiserror", "--nitpick", "--keep-going"]
    finished = subprocess.run(command, env=environment, check=False)
    pages = read_pages(build)
    fits = read_fits(build)
    problems = ["Sphinx reported the errors or warnings above"] if finished.returncode else []
    problems += [problem for page in pages.values() for problem in page["problems"]]
    problems += [problem for fit in fits for problem in judge(fit, pages)]
    print(f"\n{table(pages, fits)}\n")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print("The book was NOT built.", file=sys.stderr)
        return 1
    print(f"The book is built: {build / 'html' / 'index.html'}")
    return 0


def own_ipython(build: Path) -> Path:
    """Make the kernels' own settings: none of a reader's start-up files, and errors logged only."""
    profile = build / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n')
    return profile.parent


def forget_stale_pages(source: Path, build: Path) -> None:
    """Remove what an earlier build left that this one could mistake for its own."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(
        [
            *source.glob("mlm_utils/**/*.py"),
            *source.glob("data/*.csv"),
            *source.glob("data/*.toml"),
            source / "requirements.lock",
        ]
    ):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    key = build / "execution-key"
    # Records of a chapter without a page: the page that wrote them must do so again to be caught.
    chapters = {path.name.split(".")[0] for path in (build / "fits").glob("*.json")}
    misnamed = any(not (source / "chapters" / f"{chapter}.md").exists() for chapter in chapters)
    changed = not key.exists() or key.read_text() != digest.hexdigest()
    if changed or misnamed or not (build / "fits").is_dir():
        for folder in (".jupyter_cache", "fits"):
            shutil.rmtree(build / folder, ignore_errors=True)
    # The ledger holds a page's last execution, so the cache must not bring back an earlier one.
    cache = get_cache(build / ".jupyter_cache")
    last = {cached(cache, path)[0] for path in (build / "jupyter_execute").glob("**/*.ipynb")}
    for record in cache.list_cache_records():
        if record.pk not in last:
            cache.remove_cache(record.pk)
    # With old doctrees kept, a page that failed is not read again and the build looks clean.
    for folder in (".doctrees", "html", "jupyter_execute"):
        shutil.rmtree(build / folder, ignore_errors=True)
    (build / "fits").mkdir(parents=True, exist_ok=True)
    key.write_text(digest.hexdigest())


def read_pages(build: Path) -> dict:
    """Return, for each executed page, its seconds and what its outputs must not show."""
    pages = {}
    cache = get_cache(build / ".jupyter_cache")
    for path in sorted((build / "jupyter_execute").glob("**/*.ipynb")):
        _, seconds, cells = cached(cache, path)
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        if not any(cell["cell_type"] == "code" for cell in cells):
            continue
        pages[path.stem] = {
            "seconds": seconds,
            "problems": [
                f"{path.stem} shows {what}: {line!r}"
                for text in map(shown_text, outputs)
                for what, pattern in LOG_LINES.items()
                for line in text.splitlines()
                if pattern.search(line)
            ],
        }
    return pages


def cached(cache, path: Path) -> tuple:
    """Return a page's number in the cache, its seconds and its cells with their outputs.

    A page that comes from the cache is written without its outputs; one that failed is not
    in the cache.
    """
    notebook = nbformat.read(path, as_version=4)
    try:
        record = cache.match_cache_notebook(notebook)
    except KeyError:
        return None, None, notebook.cells
    _, notebook = cache.merge_match_into_notebook(notebook)
    return record.pk, record.data["execution_seconds"], notebook.cells


def shown_text(output: dict) -> str:
    """Return the plain text of a cell's output, whatever its kind."""
    if output["output_type"] == "error":
        return ""  # Sphinx reports it
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
