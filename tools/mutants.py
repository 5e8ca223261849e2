"""Plant known bugs in `mlm_utils`, one at a time, and see that a test catches each.

The registry, `data/planted_bugs.toml`, names mistakes of analysis and, for each, the test that is
to notice it. First the named tests must pass on a copy of the checkout. Then each bug is written
into a copy of its own, in which its test must run and fail; a copy whose test cannot run, say for
an import error, has caught nothing. The exit status is 1 if a bug is not caught.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

REGISTRY = Path("data", "planted_bugs.toml")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "_build", "dist", "node_modules", "notebooks"
)
CAUGHT = "caught"
MINUTES = 5  # that a test may take with a bug in it

# How a test fails whose program cannot run, where a bug computes something else.
BROKEN = re.compile(
    r"(failed on setup with \")?"
    r"(\w+\.)*(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError)\b"
)


def main() -> int:
    """Plant the bugs and return the exit status."""
    parser = argparse.ArgumentParser(description="Plant known bugs and see that a test fails.")
    parser.add_argument("names", nargs="*", help="names of bugs (default: every bug)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    options = parser.parse_args()
    bugs = tomllib.loads((options.root / REGISTRY).read_text(encoding="utf-8"))["bug"]
    if unknown := set(options.names) - {bug["name"] for bug in bugs}:
        parser.error(f"{REGISTRY} has no bug named {', '.join(map(repr, sorted(unknown)))}")
    if options.names:
        bugs = [bug for bug in bugs if bug["name"] in options.names]
    with tempfile.TemporaryDirectory(prefix="planted-bugs-") as folder:
        sound = Path(folder, "sound")
        shutil.copytree(options.root, sound, ignore=NOT_COPIED)
        tests = list(dict.fromkeys(bug["caught_by"] for bug in bugs))
        tell(f"{len(tests)} tests without a bug")
        status, _, output = run_tests(sound, tests)
        if status:
            print(f"{output}\nerror: these tests must pass without a bug", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            bugs = list(pool.map(lambda bug: try_bug(bug, sound), bugs))
    missed = [bug for bug in bugs if bug["verdict"] != CAUGHT]
    print(table(bugs))
    for bug in missed:
        print(
            f"error: {bug['name']!r} in {bug['file']} is not caught: {bug['verdict']}",
            file=sys.stderr,
        )
    print(f"\n{len(bugs)} planted bugs, {len(bugs) - len(missed)} caught")
    return int(bool(missed))


def tell(progress: str) -> None:
    """Print a line about progress, where a person watches."""
    if sys.stderr.isatty():
        print(progress, file=sys.stderr)


def plant(source: str, bug: dict) -> str:
    """Return a source with a bug written into it.

    Raises
    ------
    ValueError
        If the right text does not occur exactly once, or the wrong one is no different.
    SyntaxError
        If the changed source is no Python.
    """
    start, end, where = 0, len(source), bug["file"]
    if "inside" in bug:
        start, end = extent(source, bug["inside"])
        where = f"{bug['inside']} of {where}"
    found = source.count(bug["right"], start, end)
    if found != 1 or bug["right"] == bug["wrong"]:
        raise ValueError(
            f"{bug['right']!r} occurs {found} times in {where}, to become {bug['wrong']!r}: give a "
            "text that occurs once, and another"
        )
    changed = source[:start] + source[start:end].replace(bug["right"], bug["wrong"]) + source[end:]
    compile(changed, bug["file"], "exec")
    return changed


def extent(source: str, function: str) -> tuple[int, int]:
    """Return where the text of a function starts and ends."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} functions are named {function!r}: give one")
    text = ast.get_source_segment(source, found[0])
    start = source.index(text)
    return start, start + len(text)


def try_bug(bug: dict, sound: Path) -> dict:
    """Plant a bug in a copy of its own; return it with its verdict and the seconds it took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=sound.parent) as folder:
        copy = Path(folder, "copy")
        shutil.copytree(sound, copy, ignore=NOT_COPIED)
        path = copy / bug["file"]
        try:
            changed = plant(path.read_text(encoding="utf-8"), bug)
            path.write_text(changed, encoding="utf-8")
            verdict = judge(bug["caught_by"], *run_tests(copy, [bug["caught_by"]], 60 * MINUTES))
        except (ValueError, SyntaxError) as error:
            verdict = f"it cannot be planted: {error}"
        except subprocess.TimeoutExpired:
            verdict = f"its test did not end within {MINUTES} minutes"
    seconds = time.perf_counter() - start
    tell(f"{bug['name']}: {verdict}, {seconds:.1f} s")
    return bug | {"verdict": verdict, "seconds": seconds}


def run_tests(copy: Path, tests: list[str], seconds: float | None = None) -> tuple:
    """Run tests in a copy; return pytest's exit status, its report and what it printed."""
    report = copy.with_suffix(".xml")
    # The copy's mlm_utils comes before the installed one, for the tests and for what they start.
    # No test needs a plugin, and loading them takes longer than most tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    settings = ["addopts=", "junit_family=xunit1"]  # this one holds whatever a test records
    command = [sys.executable, "-m", "pytest", *(f"--override-ini={s}" for s in settings)]
    done = subprocess.run(
        [*command, "--quiet", f"--junit-xml={report}", *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    return done.returncode, cases, done.stdout


def judge(test: str, status: int, cases: list, output: str) -> str:
    """Return whether a test ran and failed: "caught", or what happened instead."""
    if status == 0:
        return f"{test} passes"
    name = test.partition("::")[2]
    messages = [
        outcome.get("message", "")
        for case in cases
        if name in (case.get("name"), case.get("name").partition("[")[0])
        for outcome in case
        if outcome.tag in ("failure", "error")
    ]
    if status == 1 and any(
        not BROKEN.match(message) and not message.startswith("failed on teardown")
        for message in messages
    ):
        return CAUGHT
    return f"{test} cannot run: {'; '.join(messages) or output[-1000:]}"


def table(bugs: list[dict]) -> str:
    """Return a table, a line a bug: its name, where it is, what caught it, seconds."""
    rows = [("planted bug", "file", "caught by", "seconds")]
    for bug in bugs:
        test = bug["caught_by"] if bug["verdict"] == CAUGHT else "NOT CAUGHT"
        rows.append((bug["name"], bug["file"], test, f"{bug['seconds']:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
