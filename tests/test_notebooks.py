"""The written notebooks hold nothing that is MyST's own, and run with nothing but the wheel."""

import importlib
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

from address import Address  # noqa: E402

notebooks = importlib.import_module("notebooks")  # a folder of this name may be there

HOME = Address("someone", "book")
BOOK, HOMELESS = notebooks.Book(ROOT, HOME), notebooks.Book(ROOT, None)
EXECUTED = [
    name for name, page in BOOK.pages.items() if any(c.cell_type == "code" for c in page.cells)
]
EQUATION = BOOK.labels["eq-po-family"][0].strip("()")
MORE = {"who_is_the_group": ["statsmodels"], "scaling": ["ibis"]}  # modules beside the wheel's
QUICK = ["cheese"]  # the only one without a long fit
MYST = re.compile(
    r"\{[a-z]+(:[a-z]+)?\}`"  # a role
    r"|^\s*(`{3,}|:{3,})\s*\{"  # a directive
    r"|^:{3,}|^:[a-z-]+:|^\([\w-]+\)=|^% |^: "  # its end, an option, a target, a comment, a term
    r"|\]\(#",  # a link to a label
    re.MULTILINE,
)
SPANS = re.compile(r"^```.*?^```$|`[^`]+`", re.DOTALL | re.MULTILINE)


def page(text, *, book=HOMELESS, name="pooling", values=()):
    """Return MyST text as a page of the book has it converted."""
    converted = notebooks.Page(book, name)
    converted.values = {key: {"data": {"text/plain": value}} for key, value in dict(values).items()}
    return converted.whole(text)


def prose(notebook):
    """Return the Markdown of a notebook."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module", params=[BOOK, HOMELESS], ids=["published", "homeless"])
def written(request):
    """Every notebook, of a book with and without an address."""
    return {name: notebooks.Page(request.param, name).notebook("w.whl") for name in EXECUTED}


# What becomes of MyST


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (
            ":::{admonition} A *title*\n:class: tip\n\nOne.\n\nTwo.\n:::",
            "> **A *title***\n> \n> One.",
        ),
        (":::{note}\nOne.\n:::", "> **Note**\n> \n> One."),
        ("```{math}\n:label: eq-po-family\n\na = b\n```", f"$$\na = b\\tag{{{EQUATION}}}\n$$"),
        ("```{math}\na = b\n```", "$$\na = b\n$$"),
        ("(po-x)=\n## Title", "## Title"),
        ("% a comment", ""),
        ("```{index} ! word\n```", ""),
        (
            "::::{grid} 1\n:::{grid-item-card} New\n:link: cheese\n\nRead.\n:::\n::::",
            "**New**\n\nRead.",
        ),
        ("`a`\n: One\n  more.\n\n`b`\n: Two.", "- **`a`**: One\n  more.\n\n- **`b`**: Two."),
        (
            "::::{tab-set}\n:::{tab-item} Stan\n:sync: stan\n\n```stan\nx;\n```\n:::\n::::",
            "<details><summary>Stan</summary>\n\n```stan\nx;\n```\n\n</details>",
        ),
        ("A {doc}`way <cheese>` and {term}`word <other>`.", "A way and word."),
        ("{doc}`cheese`", "Cheese"),
        ("{eq}`eq-po-family`", f"({EQUATION})"),
        ("{math}`x^2`", "$x^2$"),
        ("[below](#po-in-practice)", "below"),
        ("`{doc}` and ``{doc}`cheese` ``", "`{doc}` and ``{doc}`cheese` ``"),
        ("Seen {footcite:p}`rubin1981estimation`.", "Seen (Rubin, 1981)."),
        ("{footcite:t}`gelman2013bda` say", "Gelman et al. (2013) say"),
        ("```python\n{doc}`cheese`\n```", "```python\n{doc}`cheese`\n```"),
    ],
)
def test_myst_becomes_markdown(text, becomes):
    assert becomes in page(text)
    assert bool(becomes) == bool(page(text))


def test_an_inserted_figure_is_that_of_the_build_or_its_name():
    text = "{glue:text}`tau mean:.1f` and {glue:text}`who`"
    assert page(text, values={"tau mean": "2.345", "who": "'rural'"}) == "2.3 and rural"
    assert page(text) == "`tau mean` and `who`"


def test_a_reference_leads_to_the_site_where_it_is_known():
    text = "{doc}`here <pooling>`, {ref}`there <ri-settings>`, {numref}`fig-ri-data`"
    there = "https://someone.github.io/book/chapters/random_intercept.html"
    figure = BOOK.labels["fig-ri-data"][0]
    assert re.fullmatch(r"Fig\. \d+", figure)
    assert (
        page(text, book=BOOK)
        == f"here, [there]({there}#ri-settings), [{figure}]({there}#fig-ri-data)"
    )
    assert page(text) == f"here, there, {figure}"


def test_what_is_new_is_refused_with_a_remedy(refuses):
    for text in ("```{mermaid}\na\n```", "{abbr}`a`"):
        with refuses(ValueError, "pooling", "is new", "tools/notebooks.py"):
            page(text)


def test_an_exercise_and_its_solution_begin_cells_and_the_solution_is_folded():
    exercise = "```{exercise-start} One\n:label: ex-po-x\n```\nDo it.\n```{exercise-end}\n```\n"
    text = (
        f"{exercise}\n```{{solution-start}} ex-po-x\n```\nDone.\n```{{solution-end}}\n```\n## Next"
    )
    book = notebooks.Book(ROOT, None)
    book.count("exercise", "Exercise {}", "pooling", "ex-po-x")
    number = book.labels["ex-po-x"][0]
    parts = notebooks.Page(book, "pooling").convert(text)
    assert [part.strip() for part in parts] == [
        f"### {number}: One\n\nDo it.", "#### Solution", "Done.", "## Next"
    ]  # fmt: skip
    folded = [bool(notebooks.text_cell(part).metadata) for part in parts]
    assert folded == [False, True, False, False]


# Every notebook


@pytest.mark.parametrize("name", EXECUTED)
def test_no_myst_is_left(written, name):
    assert MYST.findall(SPANS.sub("code", prose(written[name]))) == []


@pytest.mark.parametrize("name", EXECUTED)
def test_the_code_is_that_of_the_chapter(written, name):
    nbformat.validate(written[name])
    install, *code = [c for c in written[name].cells if c.cell_type == "code"]
    assert "find_spec" in install.source
    theirs = [c for c in BOOK.pages[name].cells if c.cell_type == "code"]
    for cell, original in zip(code, theirs, strict=True):
        hidden = {"remove-cell", "hide-input"} & set(original.metadata.get("tags", []))
        source = cell.source.removeprefix("# @title ").partition("\n")[2] if hidden else cell.source
        assert source == original.source.strip("\n")
        assert bool(hidden) == cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert bool(hidden) == (cell.metadata.get("cellView") == "form")


@pytest.mark.parametrize("name", EXECUTED)
def test_a_notebook_asks_only_for_what_the_project_names(written, name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = needs(written[name])
    assert next(iter(needed.values())) in ("w.whl", HOME.raw("w.whl"))
    assert set(list(needed.values())[1:]) <= set(project["optional-dependencies"]["book"])
    assert list(needed) == ["mlm_utils", *MORE.get(name, [])]


def needs(notebook):
    """Return what the first cell of a notebook needs."""
    return json.loads(re.search(r"needed = (\{.*?\})", notebook.cells[0].source, re.DOTALL)[1])


# A clean environment


def closure(*names):
    """Return the installed packages that some need, themselves included."""
    found, seen, waiting = {}, set(), [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (key := (name, frozenset(wanted.extras))) in seen:
            continue
        seen.add(key)
        found[name] = metadata.distribution(name)
        for line in found[name].requires or []:
            more = Requirement(line)
            if more.marker is None or any(
                more.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                waiting.append(more)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `make notebooks` writes for a book without an address."""
    folder = tmp_path_factory.mktemp("written") / "notebooks"
    assert notebooks.write(folder, None) == EXECUTED
    return folder


@pytest.fixture(scope="module")
def clean(folder, tmp_path_factory):
    """The Python of an environment that has the wheel, what it needs, and a kernel; no more."""
    return environment(folder, tmp_path_factory.mktemp("clean"))


def environment(folder, place, *more):
    """Make an environment with the wheel, what it needs, a kernel, and more packages if named."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--offline", "--python", sys.executable, place / "venv"],
                   check=True)  # fmt: skip
    python = place / "venv" / "bin" / "python"
    (site,) = place.glob("venv/lib/python*/site-packages")
    packages = closure("mlm-utils", "ipykernel", "nbclient", *more)
    del packages["mlm-utils"]
    for package in packages.values():
        for top in {path.parts[0] for path in package.files if path.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    (wheel,) = folder.glob("*.whl")
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([*install, wheel], check=True)
    return python


RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell("print(mlm_utils.__file__)"))
done = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(done.cells[-1].outputs[0]["text"])
"""


def run(python, notebook, place):
    """Run a notebook from an empty folder; return it finished."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [python, "-c", RUN, notebook],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.full)
        for name in EXECUTED
        if name not in MORE  # than the wheel: see below
    ],
)
def test_a_notebook_runs_from_any_folder_with_the_wheel_alone(folder, clean, tmp_path, name):
    done = run(clean, folder / f"{name}.ipynb", tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(clean.parents[1])


@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_a_notebook_runs_with_the_wheel_and_what_it_asks_for(folder, tmp_path, name):
    _, *more = needs(nbformat.read(folder / f"{name}.ipynb", as_version=4)).values()
    python = environment(folder, tmp_path, *more)
    done = run(python, folder / f"{name}.ipynb", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_notebook_says_what_is_missing(folder, clean, tmp_path):
    done = run(clean, folder / "who_is_the_group.ipynb", tmp_path)
    assert done.returncode == 1
    assert "run this beside the wheel first: pip install 'statsmodels>=0.14'" in done.stderr


def test_the_folder_is_whole(folder):
    assert {path.suffix for path in folder.iterdir()} == {".ipynb", ".md", ".whl"}
    (wheel,) = folder.glob("*.whl")
    assert f"`{wheel.name}`" in (folder / "README.md").read_text(encoding="utf-8")
