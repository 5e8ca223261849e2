"""Lighthouse's judgement of every page, one at a time: it measures speed (`make site-test`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import executable
from conftest import CHAPTERS

HERE = Path(__file__).parent
LEAST = 95  # on Lighthouse's slow telephone, which asks more of a page than a computer
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
FLAGS = "--headless=new --no-sandbox --disable-gpu"


def judge(url, report):
    """Run Lighthouse on a page; return what it says."""
    node = Path(sys.executable).with_name("node")
    script = HERE / "node_modules" / "lighthouse" / "cli" / "index.js"
    subprocess.run(
        [
            *(node, script, url, "--quiet", "--output=json", f"--output-path={report}"),
            *(f"--only-categories={','.join(CATEGORIES)}", f"--chrome-flags={FLAGS}"),
        ],
        env=os.environ | ({"CHROME_PATH": path} if (path := executable()) else {}),
        check=True,
        timeout=180,
    )
    return json.loads(Path(report).read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", CHAPTERS)
def test_lighthouse_is_content(site, place, tmp_path):
    told = []
    for _ in range(3):  # a busy moment is no fault of the page
        found = judge(f"{site}/{place}", tmp_path / "report.json")
        scores = {name: 100 * found["categories"][name]["score"] for name in CATEGORIES}
        told.append(scores)
        if min(scores.values()) >= LEAST:
            return
    poor = [
        f"{audit['id']}: {audit['title']} {audit.get('displayValue', '')}"
        for name in CATEGORIES
        for reference in found["categories"][name]["auditRefs"]
        if (audit := found["audits"][reference["id"]])["score"] not in (None, 1)
        and reference["weight"]
    ]
    pytest.fail(f"{told}: {poor}")
