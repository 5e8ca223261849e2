"""The book as one PDF: every page, bookmarks, fonts and figures (`make pdf`)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "_build" / "multilevel-models-in-python.pdf"


@pytest.mark.full
def test_the_whole_book_is_printed_with_bookmarks():
    if not (ROOT / "_build" / "html" / "index.html").exists():
        pytest.skip("there is no book to print: run `make book` first")
    TARGET.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "tools/pdf.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    content = TARGET.read_bytes()
    chapters = list((ROOT / "chapters").glob("*.md"))
    assert len(re.findall(rb"/Type /Page\b", content)) > 10 * len(chapters)
    assert len(re.findall(rb"/Title ", content)) > 5 * len(chapters)  # of sections
    assert all(part in content for part in (b"/Outlines", b"/StructTreeRoot", b"/FontFile"))
