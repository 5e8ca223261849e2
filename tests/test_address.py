"""The book's address is found where it is told, and only there."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from address import Address, find

BOOK = Address("someone", "book")


def checkout(folder, remote=None):
    """Make a repository with a remote, or without one."""
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    if remote:
        subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    return folder


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/someone/book",
        "https://github.com/someone/book.git",
        "https://github.com/someone/book/",
        "https://name:secret@github.com/someone/book.git",
        "git@github.com:someone/book",
        "git@github.com:someone/book.git",
        "ssh://git@github.com/someone/book.git",
    ],
)
def test_a_checkout_tells_its_remote(tmp_path, remote):
    assert find(checkout(tmp_path, remote), {}) == BOOK


@pytest.mark.parametrize(
    "remote",
    [
        "https://gitlab.example/someone/book.git",
        "https://github.com.example/someone/book",
        "https://notgithub.com/someone/book",
        "/srv/github.com/someone/book/more",
        None,
    ],
)
def test_another_host_or_no_remote_tells_nothing(tmp_path, remote):
    assert find(checkout(tmp_path, remote), {}) is None


def test_no_repository_and_no_git_tell_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    assert find(tmp_path, {}) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find(tmp_path, {}) is None


def test_the_ci_environment_comes_first(tmp_path):
    folder = checkout(tmp_path, "https://github.com/other/book")
    assert find(folder, {"GITHUB_REPOSITORY": "someone/book"}) == BOOK
    assert find(folder, {"GITHUB_REPOSITORY": ""}) == Address("other", "book")


def test_what_follows_from_an_address():
    assert BOOK.repository == "https://github.com/someone/book"
    assert BOOK.site == "https://someone.github.io/book/"
    assert BOOK.binder("pooling") == (
        "https://mybinder.org/v2/gh/someone/book/main?urlpath=lab/tree/chapters/pooling.md"
    )
    assert BOOK.colab("pooling") == (
        "https://colab.research.google.com/github/someone/book/blob/notebooks/pooling.ipynb"
    )
    assert BOOK.raw("a.txt") == "https://github.com/someone/book/raw/notebooks/a.txt"


def test_the_site_of_a_user_has_no_folder():
    assert Address("Someone", "someone.github.io").site == "https://someone.github.io/"
    assert Address("Someone", "Book").site == "https://someone.github.io/Book/"
