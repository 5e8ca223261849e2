"""Where the book lives: its repository and its site, told by the CI environment or the checkout.

A build that knows no address writes a book without buttons, cards or a list of pages that would
lead nowhere. ``python tools/address.py`` prints what is known.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1]
REMOTE = re.compile(r"(?<![\w.-])github\.com[:/](?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?$")


@dataclass(frozen=True)
class Address:
    """A repository on GitHub, and what follows from it."""

    owner: str
    name: str
    branch: str = "main"  # that is read and launched
    notebooks: str = "notebooks"  # branch to which every chapter is published as .ipynb

    @property
    def repository(self) -> str:
        """The repository's page."""
        return f"https://github.com/{self.owner}/{self.name}"

    @property
    def site(self) -> str:
        """The published book, with a closing slash."""
        owner = self.owner.lower()
        own = self.name.lower() == f"{owner}.github.io"
        return f"https://{owner}.github.io/" + ("" if own else f"{self.name}/")

    def binder(self, chapter: str) -> str:
        """Return the address that launches a chapter as a notebook on Binder."""
        place = f"{self.owner}/{self.name}/{self.branch}"
        return f"https://mybinder.org/v2/gh/{place}?urlpath=lab/tree/chapters/{chapter}.md"

    def colab(self, chapter: str) -> str:
        """Return the address that opens a chapter's notebook in Colab."""
        place = f"{self.owner}/{self.name}/blob/{self.notebooks}/{chapter}.ipynb"
        return f"https://colab.research.google.com/github/{place}"

    def raw(self, file: str) -> str:
        """Return the address of a file that is published beside the notebooks."""
        return f"{self.repository}/raw/{self.notebooks}/{file}"


def find(source: Path = SOURCE, environment: Mapping = os.environ) -> Address | None:
    """Return the book's address, or None where nothing tells it.

    Parameters
    ----------
    source : Path
        The checkout; its remote ``origin`` is asked second.
    environment : mapping
        ``GITHUB_REPOSITORY`` (``owner/name``, as GitHub's CI sets it) is asked first.
    """
    told = environment.get("GITHUB_REPOSITORY")
    if not told:
        git = ["git", "-C", str(source), "config", "--get", "remote.origin.url"]
        try:
            told = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:
            return None
    else:
        told = f"github.com/{told}"
    found = REMOTE.search(told)
    return Address(found["owner"], found["name"]) if found else None


if __name__ == "__main__":
    print(find() or "no address: neither GITHUB_REPOSITORY nor a remote origin on GitHub")
