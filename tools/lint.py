"""Check the style of the code and of the chapters, and what git must not hold."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the checks and return the exit status."""
    ruff = Path(sys.executable).with_name("ruff")
    failed = run(ruff, "check", ".") | run(ruff, "format", "--check", ".")
    with tempfile.TemporaryDirectory() as folder:
        for chapter in sorted((ROOT / "chapters").glob("*.md")):
            cells = jupytext.read(chapter, fmt="md:myst").cells
            code = [cell.source for cell in cells if cell.cell_type == "code"]
            Path(folder, f"{chapter.stem}.py").write_text("\n\n# %%\n".join(code) + "\n")
        # A page's first cell imports for all of it, and a line must fit the page.
        failed |= run(
            ruff, "check", "--no-cache", "--isolated", "--line-length=88",
            "--select=B,E,F,I,UP,W", "--ignore=E402,B018,I001", folder,
        )  # fmt: skip
    tracked = subprocess.run(
        ["git", "ls-files", "*.ipynb", "_build", "notebooks"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    for path in tracked.splitlines():
        print(f"error: {path} is generated; git should not hold it", file=sys.stderr)
    return int(failed or bool(tracked))


def run(*command) -> bool:
    """Run a command in the root of the project; return whether it failed."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
