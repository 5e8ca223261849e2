"""JupyterLab opens every chapter as a notebook and runs one from top to bottom (`make lab`)."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from conftest import ROOT
from sphinx_external_toc.parsing import parse_toc_yaml

COPIED = ["chapters", "data", "mlm_utils", "tools"]
CHAPTERS = list(parse_toc_yaml(ROOT / "_toc.yml"))
# All chapters are run when the book is built; in JupyterLab one stands for all, unless
# MLM_RUN_ALL is set (half an hour).
WITH_CODE = [
    chapter
    for chapter in CHAPTERS
    if "{code-cell}" in (ROOT / f"{chapter}.md").read_text(encoding="utf-8")
]
RUN = WITH_CODE if "MLM_RUN_ALL" in os.environ else ["chapters/cheese"]
CELLS = "jupyterapp.shell.currentWidget.content.widgets"
STATE = f"""() => {{
    const code = {CELLS}.filter(cell => cell.model.type === "code");
    return {{
        waiting: code.filter(cell => cell.model.executionCount === null).length,
        errors: code.flatMap(cell => cell.model.outputs.toJSON())
            .filter(output => output.output_type === "error").map(output => output.evalue),
        kernel: jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status,
    }};
}}"""


@contextmanager
def start_lab(folder):
    """Start what `make lab` starts, in a copy of the book; yields its address and token."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), folder / ".home"
    jupyter = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with (folder / "log").open("w") as log:
        lab = subprocess.Popen(
            [sys.executable, "tools/lab.py", *options],
            cwd=folder,
            env=os.environ | jupyter | {"IPYTHONDIR": str(home), "PYTHONPATH": str(folder)},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert lab.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield address, token
    finally:
        lab.terminate()
        try:
            lab.wait(30)
        except subprocess.TimeoutExpired:
            lab.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """JupyterLab in the browser, opened as the server says, and the requests to other places."""
    with start_lab(tmp_path_factory.mktemp("book")) as (address, token):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        outside, page = [], context.new_page()

        def note(request):
            if not request.url.startswith(
                (address, address.replace("http", "ws"), "data:", "blob:")
            ):
                outside.append(request.url)

        context.on("request", note)
        page.goto(f"{address}/?token={token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
        page.evaluate("jupyterapp.restored")
        yield page, outside
        context.close()


def open_chapter(page, chapter):
    """Open a chapter as a double click on its file does."""
    page.evaluate(
        """async path => {
            const opened = await jupyterapp.commands.execute("docmanager:open", {path});
            await opened.context.ready;
            jupyterapp.shell.activateById(opened.id);
        }""",
        f"{chapter}.md",
    )
    page.wait_for_function(
        "path => jupyterapp.shell.currentWidget?.context?.path === path", arg=f"{chapter}.md"
    )


def test_lab_starts_with_the_first_page_as_a_notebook(lab):
    page, _ = lab
    assert page.url.endswith(f"/lab/tree/{WITH_CODE[0]}.md")
    page.wait_for_selector(".jp-NotebookPanel h1", timeout=60_000)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_opens_as_a_notebook(lab, chapter):
    page, outside = lab
    open_chapter(page, chapter)
    assert "jp-NotebookPanel" in page.evaluate("jupyterapp.shell.currentWidget.node.className")
    assert page.evaluate(f"{CELLS}.length") > 0
    if chapter not in WITH_CODE:  # it names no kernel, and JupyterLab asks
        page.locator(".jp-Dialog .jp-mod-reject").click(timeout=60_000)
    assert page.locator(".jp-Dialog").count() == 0
    page.evaluate(  # closing it by hand would ask whether to save
        """async () => {
            const opened = jupyterapp.shell.currentWidget;
            await opened.sessionContext.shutdown();
            opened.dispose();
        }"""
    )
    assert outside == []


@pytest.mark.parametrize("chapter", RUN)
def test_chapter_runs_from_top_to_bottom(lab, chapter):
    page, outside = lab
    open_chapter(page, chapter)
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    deadline = time.monotonic() + 900
    while True:
        state = page.evaluate(STATE)
        assert state["errors"] == []
        if state["waiting"] == 0 and state["kernel"] == "idle":
            break
        assert time.monotonic() < deadline, state
        page.wait_for_timeout(500)
    assert outside == []


def test_boxes_and_formulas_are_drawn(lab):
    page, _ = lab
    open_chapter(page, "chapters/random_intercept")
    assert page.locator("aside:visible", has_text="Before you start").count() == 1
    assert page.locator(".katex:visible, mjx-container:visible").count() > 0
