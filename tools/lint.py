"""Check the style of the code and of the chapters, their numbers, and what git must not hold.

`python tools/lint.py --fix` puts right what can be put right by itself.
"""

import re
import subprocess
import sys
from pathlib import Path

import prose

ROOT = Path(__file__).parents[1]
RUFF = Path(sys.executable).with_name("ruff")
CELL = re.compile(
    r"(?P<open>^```\{code-cell\}[^\n]*\n(?:---\n.*?^---\n|(?::\w[^\n]*\n)*)\n?)(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
WIDTH = "--line-length=80"  # what fits a page without scrolling
# A cell may end with an expression, and import where it is needed.
CHAPTER_RULES = ["--select=B,E,F,I,UP,W", "--ignore=B018,E402,E501,E703"]


def main() -> int:
    """Run the checks and return the exit status."""
    fix = "--fix" in sys.argv[1:]
    failed = ruff("check", *(["--fix"] if fix else []), ".")
    failed |= ruff("format", *([] if fix else ["--check"]), ".")
    for chapter in sorted((ROOT / "chapters").glob("*.md")):
        failed |= check_chapter(chapter, fix)
    for problem in prose.check(ROOT / "chapters", ROOT / "tools" / "allowed_numbers.toml"):
        print(f"error: {problem}", file=sys.stderr)
        failed = True
    command = ["git", "ls-files", "*.ipynb", "_build", "notebooks"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for path in tracked.splitlines():
        print(f"error: {path} is generated; git should not hold it", file=sys.stderr)
    return int(failed or bool(tracked))


def check_chapter(chapter: Path, fix: bool) -> bool:
    """Format and check the code cells of a chapter; return whether something is wrong."""
    text = chapter.read_text(encoding="utf-8")
    formatted = CELL.sub(lambda cell: cell["open"] + format_code(cell["code"]), text)
    if fix:
        chapter.write_text(formatted, encoding="utf-8")
    elif formatted != text:
        print(f"error: {chapter.name}: code is not formatted; run tools/lint.py --fix")
    code = "\n\n".join(cell["code"] for cell in CELL.finditer(formatted))
    wrong = ruff("check", "--isolated", *CHAPTER_RULES, f"--stdin-filename={chapter.stem}.py", "-",
                 stdin=code)  # fmt: skip
    return wrong or (formatted != text and not fix)


def format_code(code: str) -> str:
    """Return a cell's code as ruff formats it, with the closing fence."""
    command = [RUFF, "format", "--isolated", WIDTH, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True)
    return done.stdout + "```"


def ruff(*arguments: str, stdin: str | None = None) -> bool:
    """Run ruff in the root of the project; return whether it found something wrong."""
    return (
        subprocess.run([RUFF, *arguments], cwd=ROOT, input=stdin, text=True, check=False).returncode
        != 0
    )


if __name__ == "__main__":
    sys.exit(main())
