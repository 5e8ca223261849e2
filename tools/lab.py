"""Open the chapters in JupyterLab, as notebooks and not as text."""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VIEWERS = {"defaultViewers": {"markdown": "Jupytext Notebook", "myst": "Jupytext Notebook"}}


def main() -> None:
    """Write the project's own JupyterLab setting and hand over to JupyterLab."""
    settings = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"@jupyterlab/docmanager-extension:plugin": VIEWERS}))
    lab = Path(sys.executable).with_name("jupyter-lab")
    os.chdir(ROOT)
    os.execv(lab, [str(lab), "chapters/intro.md", *sys.argv[1:]])


if __name__ == "__main__":
    main()
