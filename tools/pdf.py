"""Print the whole book as one PDF, with bookmarks and page numbers, in a browser and without LaTeX.

python tools/pdf.py

Sphinx writes the book on one page, so that its links stay inside it; folded parts are unfolded
before it is printed. Run it after `make book`: pages are not executed for it.
"""

import shutil
import sys
from pathlib import Path

from browser import browser

SOURCE = Path(__file__).parents[1]
BUILD = SOURCE / "_build"
FOOTER = """<div style="width: 100%; font-size: 8px; text-align: center; color: #555">
Multilevel Models in Python &middot; <span class="pageNumber"></span></div>"""
PREPARE = """async () => {
    document.documentElement.dataset.theme = document.documentElement.dataset.mode = "light";
    document.querySelectorAll("details").forEach(each => { each.open = true; });
    document.querySelectorAll(".admonition.dropdown").forEach(
        each => each.classList.remove("toggle-hidden"));
    document.querySelectorAll("img").forEach(each => { each.loading = "eager"; });
    await document.fonts.ready;
    await Promise.all([...document.images].map(each => each.decode().catch(() => null)));
    return [document.querySelectorAll("mjx-container").length,
        [...document.images].filter(each => !each.naturalWidth).length];
}"""


def main() -> None:
    """Write the page of all pages, and print it."""
    from jupyter_book.cli.main import main as jupyter_book

    shutil.rmtree(BUILD / "singlehtml", ignore_errors=True)
    try:
        jupyter_book(["build", str(SOURCE), "--builder", "singlehtml"], standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise
    # The page belongs where what it refers to is, and its links to itself stay on it.
    (written,) = BUILD.glob("singlehtml/chapters/*.html")
    whole = BUILD / "singlehtml" / "book.html"
    text = written.read_text(encoding="utf-8")
    whole.write_text(text.replace(f'href="chapters/{written.name}#', 'href="#'), encoding="utf-8")
    target = BUILD / "multilevel-models-in-python.pdf"
    with browser() as chromium:
        page = chromium.new_page()
        page.set_default_timeout(600_000)
        page.goto(whole.as_uri(), wait_until="load")
        formulas, lost = page.evaluate(PREPARE)
        if lost or not formulas:
            sys.exit(f"error: {lost} figures are missing, {formulas} formulas are drawn")
        page.pdf(
            path=target,
            format="A4",
            margin={"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            print_background=True,
            outline=True,
            tagged=True,
        )
    print(f"The book is printed: {target}")


if __name__ == "__main__":
    main()
