# SPDX-License-Identifier: BSD-2-Clause
"""Pages of docs/ that are printed by a program are as it prints them now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_control_protocol_is_described_as_vptd_speaks_it() -> None:
    argv = [sys.executable, str(DOCS / "control_protocol.py")]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert (DOCS / "control-protocol.md").read_text() == printed, (
        "print it again: python docs/control_protocol.py > docs/control-protocol.md"
    )
