"""The browser that opens the built site, JupyterLab and the printed book."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """Return the path of a Chromium or Chrome, or None for the one that Playwright installed.

    Raises
    ------
    SystemExit
        If there is none; its message says how to get one.
    """
    told = os.environ.get("BROWSER_PATH")
    found = told or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    with sync_playwright() as playwright:
        if os.path.exists(playwright.chromium.executable_path):
            return None
    raise SystemExit(
        "error: no Chromium or Chrome here: install one (`apt-get install chromium`, or "
        "`.venv/bin/playwright install --with-deps chromium`), or name it in BROWSER_PATH"
    )


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser without a window, and end it."""
    path = executable()
    sandboxed = not (hasattr(os, "geteuid") and os.geteuid() == 0)  # Chromium's cannot, as root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, chromium_sandbox=sandboxed)
        try:
            yield chromium
        finally:
            chromium.close()
