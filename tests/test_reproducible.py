"""The same again: two runs give the same figures, to the last digit that is printed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))
SOURCES = [*ROOT.glob("mlm_utils/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("tests/*.py")]

# What a generator of NumPy may be made of, and nothing that keeps its state out of sight.
EXPLICIT = {"default_rng", "Generator", "SeedSequence"}


def clean_copy(folder):
    """Copy what a build needs into a folder, and return it."""
    for name in ("chapters", "mlm_utils", "data", "_static", "_ext", "_templates", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "_toc.yml", "references.bib", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


def figures_of_fits(folder):
    """Return every figure of a ledger but the seconds."""
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for record in records.values():
        del record["seconds_compile"], record["seconds_sample"]
    return records


def inserted_figures(notebooks):
    """Return the figures that executed pages hand to their text, by page and name.

    Of those that a clock measured, the name is all that two builds have in common.
    """
    return {
        (path.parent.name, name): None if name.startswith("timed_") else output.data
        for path in notebooks
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
        if (name := output.get("metadata", {}).get("scrapbook", {}).get("name"))
    }


def run_chapter(folder, slug):
    """Execute a chapter as the build does; return its ledger and its inserted figures."""
    folder.mkdir()
    notebook = folder / f"{slug}.ipynb"
    jupytext.write(jupytext.read(ROOT / "chapters" / f"{slug}.md"), notebook)
    subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", notebook],
        env=os.environ | {"MLM_LEDGER": str(folder / "fits")},
        capture_output=True,
        check=True,
    )
    figures = inserted_figures([notebook])
    return figures_of_fits(folder / "fits"), {name: data for (_, name), data in figures.items()}


def test_a_chapter_run_twice_gives_the_same_figures(tmp_path):
    slug = "what_is_a_multilevel_model"
    (fits, inserted), (again, inserted_again) = (
        run_chapter(tmp_path / name, slug) for name in ("first", "second")
    )
    assert len(fits) >= 1
    assert len(inserted) >= 5
    assert again == fits
    assert inserted_again == inserted


@pytest.mark.full
def test_the_book_built_twice_gives_the_same_figures(tmp_path):
    built = []
    for name in ("first", "second"):
        book = clean_copy(tmp_path / name)
        done = subprocess.run(
            [sys.executable, book / "tools" / "build.py"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        # The cache keeps a page in a folder named for its code.
        pages = (book / "_build" / ".jupyter_cache").glob("executed/*/base.ipynb")
        built.append((figures_of_fits(book / "_build" / "fits"), inserted_figures(pages)))
    (fits, inserted), (again, inserted_again) = built
    assert len(fits) >= 12
    assert len(inserted) >= 100
    assert again == fits
    assert inserted_again == inserted
    assert sum(data is None for data in inserted.values()) <= 0.01 * len(inserted)


# --- No state out of sight


def hidden_state(code):
    """Return what a program draws from without a seed of its own."""
    found = []
    for node in ast.walk(ast.parse(code)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        match = re.fullmatch(r"(?:np|numpy)\.random\.(\w+)", name)
        if match and match[1] not in EXPLICIT:
            found.append(name)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng"):
            found += [] if node.args or node.keywords else ["default_rng()"]
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            found += [module for module in modules if module in ("random", "numpy.random")]
    return found


@pytest.mark.parametrize("path", [*SOURCES, *CHAPTERS], ids=lambda path: path.name)
def test_every_draw_has_a_seed_that_can_be_seen(path):
    if path.suffix == ".md":
        cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
        code = "\n\n".join(re.sub(r"^%.*$", "", cell, flags=re.MULTILINE) for cell in cells)
    else:
        code = path.read_text(encoding="utf-8")
    assert hidden_state(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from random import gauss",
        "np.random.seed(1)",
        "y = numpy.random.normal(0, 1, 10)",
        "rng = np.random.default_rng()",
        "from numpy.random import default_rng\nrng = default_rng()",
    ],
)
def test_a_draw_without_a_seed_is_noticed(code):
    assert hidden_state(code)
    assert not hidden_state("rng = np.random.default_rng(1)\nkey = jax.random.key(2)\n")
