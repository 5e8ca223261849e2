"""The registry of planted bugs fits the package, and its runner lets no bug pass for caught.

`make test-mutants` plants the bugs; here only the registry and the runner are looked at.
"""

import ast
import inspect
import os
import runpy
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from mlm_utils import data, models
from mlm_utils.data import load_planted_bugs

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "mutants.py"
plant = runpy.run_path(str(TOOL))["plant"]
BUGS = {
    bug["name"]: bug
    for bug in tomllib.loads((ROOT / "data" / "planted_bugs.toml").read_text("utf-8"))["bug"]
}
# --- The registry


@pytest.fixture
def other_registry(tmp_path, monkeypatch):
    """Return a function that makes the package read another registry."""

    def write(text):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "planted_bugs.toml").write_text(text, "utf-8")
        monkeypatch.setattr(data, "__file__", str(tmp_path / "mlm_utils" / "data.py"))

    return write


def test_every_room_and_every_model_has_a_bug_of_its_own():
    registered = (ROOT / "data" / "planted_bugs.toml").read_text("utf-8").count("[[bug]]")
    assert len(BUGS) == registered >= 25  # so no two have one name
    rooms = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mlm_utils").glob("*.py")}
    assert rooms == {bug["file"] for bug in BUGS.values()}
    functions = inspect.getmembers(models, inspect.isfunction)
    written = {name for name, function in functions if function.__module__ == models.__name__}
    inside = {bug.get("inside") for bug in BUGS.values() if bug["file"] == "mlm_utils/models.py"}
    assert written == inside


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_fits_the_package_and_says_what_it_does(name):
    bug = BUGS[name]
    fields = {"name", "file", "inside", "right", "wrong", "caught_by", "shows"}
    assert fields - {"inside"} <= set(bug) <= fields
    source = (ROOT / bug["file"]).read_text("utf-8")
    assert ast.dump(ast.parse(plant(source, bug))) != ast.dump(ast.parse(source))
    assert bug["shows"].endswith(".")
    assert len(bug["shows"].split()) > 5


@pytest.mark.parametrize("name", BUGS)
def test_the_test_that_catches_a_bug_exists(name):
    file, _, test = BUGS[name]["caught_by"].partition("::")
    function, bracket, case = test.partition("[")
    definitions = Counter(
        node.name
        for node in ast.parse((ROOT / file).read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    )
    assert function.startswith("test_")
    assert definitions[function] == 1
    assert bool(bracket) == case.endswith("]")


def test_a_page_reads_the_registry_as_the_runner_does(other_registry, refuses):
    table = load_planted_bugs()
    assert table.to_dict("records") == [{"inside": ""} | bug for bug in BUGS.values()]
    other_registry('[[bug]]\nname = "a bug"\ninside = "fit"\n')
    with refuses(ValueError, "column 'file' has no value in row 0"):
        load_planted_bugs()


SOURCE = "def double(x):\n    return 2 * x\n\n\ndef halve(x):\n    return x / 2\n"
BUG = {"name": "a bug", "file": "numbers.py", "right": "2 * x", "wrong": "3 * x"}


def test_a_bug_is_planted_where_it_belongs_and_nowhere_else():
    assert plant(SOURCE, BUG) == SOURCE.replace("2 * x", "3 * x")
    bug = BUG | {"right": "return", "wrong": "return 1 +", "inside": "halve"}
    assert plant(SOURCE, bug) == SOURCE.replace("x / 2", "1 + x / 2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"right": "return"}, "occurs 2 times in numbers.py"),
        ({"right": "4 * x"}, "occurs 0 times in numbers.py"),
        ({"inside": "halve"}, "occurs 0 times in halve of numbers.py"),
        ({"inside": "third"}, "0 functions are named 'third'"),
        ({"wrong": "2 * x"}, "a text that occurs once, and another"),
    ],
    ids=["twice", "not at all", "in another function", "in no function", "no change"],
)
def test_a_bug_that_does_not_fit_is_refused(change, says, refuses):
    with refuses(ValueError, says):
        plant(SOURCE, BUG | change)


# --- The runner

# Its package has the name of the installed one: its tests pass only where the copy is imported.
PROJECT = {
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--no-such-option"\n',
    "mlm_utils/__init__.py": "",
    "mlm_utils/numbers.py": f'"""Numbers."""\n\nimport math\n\n\n{SOURCE}',
    "tests/test_numbers.py": (
        "import pytest\nfrom mlm_utils import numbers\n\n"
        "@pytest.fixture\ndef half():\n    assert numbers.halve(4) == 2\n    return 2\n\n"
        "@pytest.fixture\ndef cleared():\n    yield\n    assert numbers.double(2) == 4\n\n"
        "@pytest.mark.parametrize('x', [1, 2])\n"
        "def test_double(x):\n    assert numbers.double(x) == 2 * x\n\n"
        "def test_halve(half):\n    assert half == 2\n\n"
        "def test_afterwards(cleared):\n    assert numbers.halve(4) == 2\n"
    ),
}
# Name -> (right, wrong, the test, what is said of it or None where it is caught).
TRIALS = {
    "a failing test": ("2 * x", "3 * x", "test_double[2]", None),
    "a failing test of two": ("2 * x", "x + 1", "test_double", None),
    "a failing fixture": ("x / 2", "x / 3", "test_halve", None),
    "harmless": ('"""Numbers."""', '"""More numbers."""', "test_double[1]", "passes"),
    "seen by another test": ("2 * x", "x + 1", "test_double[1]", "passes"),
    "after the test": ("2 * x", "3 * x", "test_afterwards", "failed on teardown"),
    "broken syntax": ("2 * x", "2 * (x", "test_double[1]", "cannot be planted"),
    "broken import": ("import math", "import maths", "test_double[1]", "cannot run"),
    "unknown name": ("2 * x", "2 * y", "test_double[1]", "NameError"),
    "does not fit": ("return", "return -", "test_double[1]", "occurs 2 times"),
}


def run_tool(root, *names):
    """Run the tool on a project, in an environment that would mislead it."""
    environment = os.environ | {"PYTEST_ADDOPTS": "--no-such-option", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, TOOL, "--root", root, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    registry = "".join(
        f"[[bug]]\nname = '{name}'\nfile = 'mlm_utils/numbers.py'\nright = '{right}'\n"
        f"wrong = '{wrong}'\ncaught_by = 'tests/test_numbers.py::{test}'\n"
        for name, (right, wrong, test, _) in TRIALS.items()
    )
    for name, text in PROJECT.items() | {"data/planted_bugs.toml": registry}.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def test_a_bug_counts_as_caught_only_where_its_test_ran_and_failed(project):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = run_tool(project)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "10 planted bugs, 3 caught"
    errors = {line.split("'")[1]: line for line in done.stderr.splitlines() if "error: " in line}
    for name, (*_, says) in TRIALS.items():
        (row,) = [row for row in done.stdout.splitlines() if row.startswith(f"{name}  ")]
        assert ("NOT CAUGHT" in row) == (name in errors) == (says is not None)
        if says:
            assert says in errors[name]
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_where_every_bug_is_caught_the_run_succeeds(project):
    done = run_tool(project, "a failing test", "a failing fixture")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "2 planted bugs, 2 caught"


def test_a_bug_that_is_not_registered_is_refused(project):
    done = run_tool(project, "a failing test", "unheard of")
    assert done.returncode == 2
    assert "no bug named 'unheard of'" in done.stderr


def test_tests_that_fail_without_a_bug_prove_nothing(project, tmp_path):
    root = tmp_path / "project"
    for name in ("mlm_utils", "tests", "data"):
        for path in (project / name).iterdir():
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / path.name).write_bytes(path.read_bytes())
    numbers = root / "mlm_utils" / "numbers.py"
    numbers.write_text(numbers.read_text("utf-8").replace("2 * x", "3 * x"), "utf-8")
    done = run_tool(root, "a failing test")
    assert (done.returncode, done.stdout) == (1, "")
    assert "these tests must pass without a bug" in done.stderr
    assert "test_double[2]" in done.stderr
