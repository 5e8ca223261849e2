"""Open the chapters in JupyterLab, as notebooks and not as text.

With ``--settings-only``, which Binder and conda use (`postBuild`), only make it so that the
JupyterLab of this environment does; other options are JupyterLab's own.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {
        "defaultViewers": {"markdown": "Jupytext Notebook", "myst": "Jupytext Notebook"},
        # Saving writes a chapter's captions and kernel in another form: a reader decides that.
        "autosave": False,
    },
    # Neither ask for news nor look for a newer version: reading needs no network.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def main() -> None:
    """Write the settings of this environment's JupyterLab, and start it unless told not to."""
    settings = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS))
    if sys.argv[1:] == ["--settings-only"]:
        return
    lab = Path(sys.executable).with_name("jupyter-lab")
    # An address, since JupyterLab would take the folder of a file it is given for its root. The
    # extensions are those of the lock; the manager would look for others in the registry.
    options = [
        "--LabApp.default_url=/lab/tree/chapters/intro.md",
        "--LabApp.extension_manager=readonly",
    ]
    os.chdir(ROOT)
    os.execv(lab, [str(lab), *options, *sys.argv[1:]])


if __name__ == "__main__":
    main()
