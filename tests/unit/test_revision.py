# SPDX-License-Identifier: BSD-2-Clause
"""Results say which commit they are of, and say so where that is unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vpt import revision

pytestmark = [pytest.mark.native, pytest.mark.needs("git")]

UNKNOWN = {"commit": "unknown", "modified": None}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "tree" / "vpt"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
    command = ["git", "-C", str(tree), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_checkout_is_of_its_commit_and_says_if_it_was_changed(package: Path) -> None:
    tree = package.parent
    git(tree, "init", "-q")
    (tree / "other").touch()
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "first")
    head = git(tree, "rev-parse", "HEAD")
    (tree / "left over").touch()
    assert revision.of_checkout(package) == {"commit": head, "modified": False}
    (tree / "other").write_text("changed")
    assert revision.of_checkout(package) == {"commit": head, "modified": True}


def test_a_package_is_not_of_a_repository_that_merely_lies_around_it(package: Path) -> None:
    git(package.parent, "init", "-q")
    git(package.parent, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert revision.of_checkout(package) == UNKNOWN


def test_without_history_or_without_git_the_commit_is_unknown(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert revision.of_checkout(package) == UNKNOWN
    monkeypatch.setenv("PATH", "/nonexistent")
    assert revision.of_checkout(Path(revision.__file__).parent) == UNKNOWN


def test_the_build_asks_without_importing_the_package() -> None:
    """An editable install would build it again then, in the middle of its build."""
    asked = Path(__file__).parents[2] / "packaging/revision.py"
    program = f"import runpy, sys; sys.modules['vpt'] = None; runpy.run_path({str(asked)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == revision.of_checkout(asked.parents[1] / "vpt")


def test_an_installed_package_is_of_the_commit_that_it_was_built_from(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = package / "revision.json"
    written.write_text(json.dumps({"commit": "1" * 40, "modified": False}))
    monkeypatch.setattr(revision, "_WRITTEN", written)
    assert revision.revision() == {"commit": "1" * 40, "modified": False}
