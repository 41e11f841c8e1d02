# SPDX-License-Identifier: BSD-2-Clause
"""The documentation builds, and pages that are printed by a program are as it prints them now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_control_protocol_is_described_as_vptd_speaks_it() -> None:
    argv = [sys.executable, str(DOCS / "control_protocol.py")]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert (DOCS / "control-protocol.md").read_text() == printed, (
        "print it again: python docs/control_protocol.py > docs/control-protocol.md"
    )


@pytest.mark.native
@pytest.mark.needs("py:sphinx", "py:myst_parser", "py:sphinx_click", "py:furo")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links that lead nowhere, pages that no table of contents has, headings out of order."""
    argv = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
    ]
    done = subprocess.run(
        [*argv, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        assert (tmp_path / "html" / f"{page.stem}.html").exists()
