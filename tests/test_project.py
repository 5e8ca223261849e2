"""The project's files agree with each other, set-up works from nothing, chapters keep the rules."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mlm_utils.data import SHA256

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
DIRECT = [*PROJECT["project"]["dependencies"], *EXTRAS["book"], *EXTRAS["dev"]]
PYTHONS = ["3.12", "3.13", "3.14"]
CHECKS = ["make lint", "make test", "make test-mutants", "make book", "make site-test"]
VERBS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


# What is installed


def read_lock():
    """Return the entries of the lock: a requirement and its hashes each."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0].strip()), re.findall(r"--hash=(\S+)", line))
        for line in lines
    ]


LOCK = read_lock()


def pins(name):
    """Return what the lock says of a package, an entry a marker."""
    name = canonicalize_name(name)
    return [pin for pin, _ in LOCK if canonicalize_name(pin.name) == name]


def version(name):
    """Return the version of a package that the lock pins once."""
    (pin,) = pins(name)
    (specifier,) = pin.specifier
    return Version(specifier.version)


def applies(requirement, python, platform):
    """Whether a requirement is meant for this Python and platform."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[platform],
        "os_name": "nt" if platform == "win32" else "posix",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("direct", [*DIRECT, *PROJECT["build-system"]["requires"]])
def test_direct_dependency_is_pinned_once_wherever_the_book_runs(direct):
    wanted = Requirement(direct)
    for python, platform in itertools.product(PYTHONS, ["linux", "darwin", "win32"]):
        (pin,) = [pin for pin in pins(wanted.name) if applies(pin, python, platform)]
        (specifier,) = pin.specifier
        assert wanted.specifier.contains(specifier.version, prereleases=True)


def test_lock_pins_exactly_and_once_a_marker():
    assert len(LOCK) > len(DIRECT)
    for pin, _ in LOCK:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
    entries = [(canonicalize_name(pin.name), str(pin.marker)) for pin, _ in LOCK]
    assert len(entries) == len(set(entries))


def test_every_pin_has_a_sha256():
    for pin, hashes in LOCK:
        assert hashes, pin
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), pin


def test_versions_the_book_is_written_for():
    assert version("jupyter-book").major == 1
    assert version("arviz") >= Version("1")
    assert version("numpyro") >= Version("0.22")
    assert version("sphinx-book-theme") == Version("1.1.4")
    assert version("pydata-sphinx-theme") == Version("0.15.4")


def test_every_dependency_has_its_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    body = text[text.index("dependencies = [") : text.index("[tool.")]
    reasons = dict(re.findall(r'^    "([^"]+)",?(?: *# *(.*))?$', body, re.MULTILINE))
    assert sorted(reasons) == sorted(DIRECT)
    assert [name for name, reason in reasons.items() if len(reason.split()) < 3] == []


def test_conda_and_binder_install_the_lock_and_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = (ROOT / ".python-version").read_text().strip()
    assert python in PYTHONS
    assert environment["dependencies"] == [
        f"python={python}",
        "pip",
        {"pip": ["-r requirements.lock"]},
    ]


def project_files():
    """Return the paths of what git holds, or will once it is added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "requirements.lock" in paths
    return [path for path in paths if path.exists()]


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(
            r"pypi\.org|pythonhosted\.org|anaconda\.(org|com)|prefix\.dev|npmjs\.(org|com)"
            r"|yarnpkg\.com|jsdelivr\.net|unpkg\.com",
            id="host of a package registry",
        ),
        pytest.param(
            r"(?<![\w.}/])/(home|Users|root|work)/|[A-Z]:\\+Users", id="path of a machine"
        ),
    ],
)
def test_no_file_names(forbidden):
    pattern = re.compile(forbidden)
    files = {path: path.read_text(encoding="utf-8", errors="replace") for path in project_files()}
    assert [path.name for path, text in files.items() if pattern.search(text)] == []


# The verbs


def clean_environment(**variables):
    """Return the environment without what a `make` above these tests has put into it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return kept | {"MFLAGS": ""} | variables


def test_make_alone_lists_every_verb():
    done = subprocess.run(
        ["make"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [verb for _, verb, _ in lines] == VERBS
    assert all(make == "make" and says for make, _, says in lines)
    assert {"book", "test", "lint", "lab", "setup", "lock", "clean"} <= set(VERBS)


@pytest.mark.parametrize(("broken", "ran"), [("none", CHECKS), ("test", CHECKS[:2])])
def test_ci_runs_every_check_and_stops_at_the_first_that_fails(tmp_path, broken, ran):
    fake = tmp_path / "make"
    fake.write_text(f'#!/bin/sh\necho "make $*" >>"{tmp_path}/log"\n[ "$*" != {broken} ]\n')
    for tool in (fake, shutil.copy(fake, tmp_path / "chromium")):
        tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([ROOT / ".ci" / "run"], env=clean_environment(PATH=path), check=False)
    assert (tmp_path / "log").read_text().splitlines() == ran
    assert (done.returncode == 0) == (broken == "none")


def test_workflow_runs_the_same_checks_on_every_python_and_the_full_tier_each_week():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    check, full = workflow["jobs"]["check"], workflow["jobs"]["full"]
    assert [step["run"] for step in check["steps"] if "run" in step] == [*CHECKS, "make notebooks"]
    assert check["strategy"]["matrix"]["python"] == PYTHONS
    ran = [step["run"] for step in full["steps"] if "run" in step]
    assert ran == ["make test-full", "make test-engines"]
    assert full["if"] == "github.event_name == 'schedule'"
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true


def test_only_what_passed_the_checks_is_published_with_no_more_rights_than_needed():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    rights = {"site": {"pages": "write", "id-token": "write"}, "notebooks": {"contents": "write"}}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == rights.get(name)
    for name in rights:
        job = workflow["jobs"][name]
        assert job["needs"] == "check"
        assert job["if"] == "github.ref == 'refs/heads/main' && github.event_name == 'push'"


def test_conda_and_binder_open_chapters_as_notebooks():
    assert (ROOT / "postBuild").read_text().endswith("\npython tools/lab.py --settings-only\n")
    assert os.access(ROOT / "postBuild", os.X_OK)


# Set-up, with programs that stand in for Python

STAND_IN = """\
import shutil, sys
from pathlib import Path

log, version, me, option, *rest = sys.argv[1:]
with open(log, "a") as file:
    print(version, option, *rest, file=file)
if option == "-c":
    sys.version_info = (*map(int, version.split(".")), 0, "final", 0)
    exec(rest[0])
elif option == "--version":
    print(f"Python {version}.0")
elif rest[0] == "venv":
    Path(".venv", "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(me, Path(".venv", "bin", "python"))
elif rest[0] == "pip":
    sys.exit(Path("offline").exists())
"""


class Machine:
    """A checkout of the project on a machine that has nothing but what a test puts there."""

    def __init__(self, folder):
        self.checkout, self.programs, self.home = (folder / n for n in ("book", "bin", "home"))
        self.log, self.stand_in = folder / "log", folder / "stand_in.py"
        self.stand_in.write_text(STAND_IN)
        for path in (self.checkout / "tools", self.programs, self.home):
            path.mkdir(parents=True)
        for name in ("requirements.lock", "pyproject.toml", ".python-version", "tools/setup.sh"):
            shutil.copy(ROOT / name, self.checkout / name)
        for name in ("cat", "cksum", "dirname", "mkdir", "rm", "sed"):
            (self.programs / name).symlink_to(shutil.which(name))

    def add_program(self, path, script):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def add_python(self, version, path=None):
        self.add_program(
            path or self.programs / f"python{version}",
            f'exec "{sys.executable}" -I "{self.stand_in}" "{self.log}" {version} "$0" "$@"',
        )

    def set_up(self):
        """Run the set-up; return it finished, and what it had pip do."""
        self.log.write_text("")
        done = subprocess.run(
            [shutil.which("sh"), "tools/setup.sh"],
            cwd=self.checkout,
            env={"PATH": str(self.programs), "HOME": str(self.home), "PYENV_ROOT": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [line for line in self.log.read_text().splitlines() if " pip " in line]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def ready(machine):
    """A machine on which the set-up has run."""
    machine.add_python("3.13")
    done, installed = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert len(installed) == 2
    return machine


def test_setup_installs_the_lock_by_hash_and_then_the_project(machine):
    machine.add_python("3.13")
    done, installed = machine.set_up()
    assert done.returncode == 0
    assert "Python 3.13" in done.stderr
    lock, project = (line.split() for line in installed)
    assert {"install", "--require-hashes", "-r", "requirements.lock"} <= set(lock)
    assert {"install", "--no-deps", "--no-build-isolation", "--editable", "."} <= set(project)


def test_setup_does_nothing_and_says_nothing_when_nothing_changed(ready):
    start = time.perf_counter()
    done, installed = ready.set_up()
    assert time.perf_counter() - start < 2
    assert (done.returncode, done.stdout, done.stderr, installed) == (0, "", "", [])


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml", "tools/setup.sh"])
def test_setup_installs_again_when_a_file_changed(ready, changed):
    with (ready.checkout / changed).open("a") as file:
        file.write("# changed\n")
    for expected in (2, 0):
        done, installed = ready.set_up()
        assert (done.returncode, len(installed)) == (0, expected)


def test_setup_installs_again_when_the_checkout_moved(ready):
    ready.checkout = ready.checkout.rename(ready.checkout.with_name("moved"))
    assert len(ready.set_up()[1]) == 2


def test_setup_installs_again_when_the_python_of_the_environment_is_gone(ready):
    (ready.checkout / ".venv" / "bin" / "python").unlink()
    assert len(ready.set_up()[1]) == 2


def test_setup_that_failed_is_not_taken_for_done(ready):
    with (ready.checkout / "requirements.lock").open("a") as file:
        file.write("# changed\n")
    (ready.checkout / "offline").touch()
    assert ready.set_up()[0].returncode != 0
    (ready.checkout / "offline").unlink()
    done, installed = ready.set_up()
    assert (done.returncode, len(installed)) == (0, 2)


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["3.11", "3.12", "3.13"], "3.13"),
        (["3.11", "3.12"], "3.12"),
        (["3.12", "3.14", "3.15"], "3.14"),
    ],
)
def test_setup_chooses_the_newest_supported_python(machine, present, chosen):
    for version in present:
        machine.add_python(version)
    done, installed = machine.set_up()
    assert done.returncode == 0
    assert f"Python {chosen}" in done.stderr
    assert all(line.startswith(f"{chosen} ") for line in installed)


def test_setup_finds_a_python_by_its_answer_and_not_by_its_name(machine):
    machine.add_python("3.11", machine.programs / "python3.13")
    machine.add_python("3.12", machine.programs / "python3")
    done, _ = machine.set_up()
    assert "Python 3.12" in done.stderr


def test_setup_finds_a_python_of_pyenv(machine):
    machine.add_python("3.13", machine.home / "versions" / "3.13.7" / "bin" / "python")
    machine.add_python("3.12")
    done, _ = machine.set_up()
    assert "Python 3.13" in done.stderr


def test_setup_has_uv_fetch_the_python_of_the_project_where_there_is_none(machine):
    python = machine.home / "fetched" / "python"
    machine.add_python("3.13", python)
    fetched = machine.home / "fetched" / "done"
    machine.add_program(
        machine.programs / "uv",
        f'case "$*" in "python install"*" 3.13") echo >"{fetched}" ;;\n'
        f'*) [ -f "{fetched}" ] && echo "{python}" ;; esac',
    )
    done, installed = machine.set_up()
    assert (done.returncode, len(installed)) == (0, 2), done.stderr
    assert "fetching one with uv" in done.stderr
    assert "Setting up .venv with Python 3.13" in done.stderr


@pytest.mark.parametrize("present", [[], ["3.11"]])
def test_setup_without_a_python_says_what_to_install(machine, present):
    for version in present:
        machine.add_python(version)
    done, installed = machine.set_up()
    assert (done.returncode, done.stdout, installed) == (1, "", [])
    *_, sentence = done.stderr.splitlines()
    assert sentence.startswith("Please install Python 3.13 ")
    assert "run the same command again" in sentence
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")
    assert not (machine.checkout / ".venv").exists()


# The chapters

CHAPTERS = {path.stem: path for path in sorted((ROOT / "chapters").glob("*.md"))}
NOTEBOOKS = {stem: jupytext.read(path, fmt="md:myst") for stem, path in CHAPTERS.items()}
CELLS = {
    stem: [cell for cell in notebook.cells if cell.cell_type == "code"]
    for stem, notebook in NOTEBOOKS.items()
}
EXECUTED = [stem for stem, cells in CELLS.items() if cells]
DRAWS = re.compile(r"\bplt\.(show|subplots|figure)\(|\baz\.plot_|\bsns\.\w+plot\(")
KEYS = re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "references.bib").read_text(), re.MULTILINE)


def prose(stem):
    """Return the text of a chapter outside its code cells."""
    return "\n".join(c.source for c in NOTEBOOKS[stem].cells if c.cell_type == "markdown")


def figures(stem):
    """Return the code cells of a chapter that draw, and are shown."""
    shown = [c for c in CELLS[stem] if "remove-cell" not in c.metadata.get("tags", [])]
    return [cell for cell in shown if DRAWS.search(cell.source)]


def test_table_of_contents_has_every_chapter_once():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [contents["root"]]
    listed += [page["file"] for part in contents["parts"] for page in part["chapters"]]
    assert sorted(listed) == sorted(f"chapters/{stem}" for stem in CHAPTERS)


def test_some_chapters_are_executed():
    assert "random_intercept" in EXECUTED
    assert figures("random_intercept")


@pytest.mark.parametrize("stem", EXECUTED)
def test_chapter_names_its_kernel_and_sets_up_under_its_own_name(stem):
    assert NOTEBOOKS[stem].metadata["kernelspec"]["name"] == "python3"
    assert f'mlm_utils.setup(chapter="{stem}")' in CELLS[stem][0].source.splitlines()
    assert all("mlm_utils.setup(" not in cell.source for cell in CELLS[stem][1:])


@pytest.mark.parametrize("stem", EXECUTED)
def test_figure_has_caption_name_and_alt_text(stem):
    for cell in figures(stem):
        says = cell.metadata.get("mystnb", {})
        figure, image = says.get("figure", {}), says.get("image", {})
        assert figure.get("caption", "").strip(), cell.source
        assert figure.get("name", "").startswith("fig-"), cell.source
        assert len(image.get("alt", "").split()) > 5, cell.source


def test_figure_names_are_unique():
    names = [cell.metadata["mystnb"]["figure"]["name"] for s in EXECUTED for cell in figures(s)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("stem", EXECUTED)
def test_code_fits_the_page(stem):
    lines = [line for cell in CELLS[stem] for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 88] == []


@pytest.mark.parametrize("stem", CHAPTERS)
def test_cited_sources_exist_and_are_printed(stem):
    roles = re.findall(r"\{(?:foot)?cite(?::\w+)?\}`([^`]+)`", prose(stem))
    cited = {key.strip() for role in roles for key in role.split(",")}
    assert cited <= set(KEYS)
    assert not cited or "```{footbibliography}" in prose(stem)


def test_sources_of_the_tables_exist():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    cited = set(re.findall(r"`([a-z]{3,}\d{4}[a-z]+)`", text))
    assert cited
    assert cited <= set(KEYS)


def test_sources_are_listed_once():
    assert len(KEYS) > 5
    assert len(KEYS) == len(set(KEYS))


@pytest.mark.parametrize("stem", CHAPTERS)
def test_chapter_has_no_markdown_footnote(stem):
    assert "[^" not in prose(stem)  # {footcite} numbers the footnotes of a page


# The tables


def test_data_holds_what_pages_read_and_its_description_only():
    names = {path.name for path in (ROOT / "data").iterdir()}
    tables = {f"{stem}.csv" for stem in SHA256}
    assert names == {"README.md", "benchmarks", "planted_bugs.toml", *tables}
    pages = "".join(path.read_text(encoding="utf-8") for path in CHAPTERS.values())
    for path in (ROOT / "data" / "benchmarks").iterdir():
        assert f'load_benchmark("{path.stem}")' in pages


@pytest.mark.parametrize("stem", SHA256)
def test_table_is_the_one_described(stem):
    content = (ROOT / "data" / f"{stem}.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256[stem]
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert f"`{stem}.csv`" in text or f"## {stem}.csv" in text
    assert SHA256[stem] in text
