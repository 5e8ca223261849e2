"""The build refuses what is wrong with a page, and executes a page when it must."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent

HEADER = """\
---
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
    shutil.copytree(ROOT / "_static", folder / "_static")
    for name in ("chapters", "data", *(["mlm_utils"] if package else [])):
        (folder / name).mkdir()
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
    return folder


def build(book):
    """Build a book as `make book` does; return the exit status and all that was printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build.py", book],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        check=False,
    )
    return done.returncode, done.stdout


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
    "misnames": (
        page("A chapter without a page", recording(record("misnamed"))),
        ["the fit 'fitted' of misnamed", "no page has this name"],
    ),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A book with every fault, built twice."""
    texts = {name: text for name, (text, _) in FAULTS.items()}
    book = write_book(tmp_path_factory.mktemp("faulty"), texts)
    return [build(book), build(book)]


@pytest.mark.parametrize("again", [False, True], ids=["first build", "second build"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_its_page_and_cause(faulty, fault, again):
    status, printed = faulty[again]
    assert status == 1
    assert printed.endswith("The book was NOT built.\n")
    texts = [fault.removeprefix("misnames"), *FAULTS[fault][1]]
    assert any(all(text in line for text in texts) for line in printed.splitlines()), printed


def test_traceback_of_a_raising_cell_is_printed(faulty):
    for _, printed in faulty:
        _, failure = printed.split("raises.md: WARNING: Executing notebook failed", 1)
        assert "ValueError: the milk is sour" in failure


def test_only_faults_are_reported(faulty):
    _, printed = faulty[0]
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    print(printed)
    assert False


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return None
