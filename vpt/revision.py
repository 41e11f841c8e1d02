# SPDX-License-Identifier: BSD-2-Clause
"""Which commit this vpt is of: the checkout's, as git says now, or what the build of a package wrote down."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

__all__ = ["of_checkout", "revision"]

_PACKAGE = Path(__file__).resolve().parent
_WRITTEN = _PACKAGE / "_data" / "revision.json"

Revision = dict[str, str | bool | None]


def _git(folder: Path, *args: str) -> str | None:
    # Whoever builds in a container does not own the files; git would not say a word.
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def of_checkout(package: Path) -> Revision:
    """The commit of the checkout that holds the package, and whether it was changed since.

    "unknown" where there is none: of sources without their history, or without git. A repository that the
    package lies in and is no part of, as one around a virtual environment, does not count.
    """
    inside = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(package, "rev-parse", "HEAD") if inside else None
    if commit is None:
        return {"commit": "unknown", "modified": None}
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")  # of the whole checkout
    return {"commit": commit, "modified": bool(changes)}


def revision() -> Revision:
    """Of this vpt."""
    try:
        written: Revision = json.loads(_WRITTEN.read_text())
    except FileNotFoundError:
        return of_checkout(_PACKAGE)
    return written
