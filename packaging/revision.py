# SPDX-License-Identifier: BSD-2-Clause
"""The commit that a package is built from, for vpt/revision.py to find. Run by the build."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
sys.dont_write_bytecode = True

from vpt.revision import of_checkout  # noqa: E402

print(json.dumps(of_checkout(TOP / "vpt")))
