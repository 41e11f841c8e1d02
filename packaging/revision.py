# SPDX-License-Identifier: BSD-2-Clause
"""The commit that a package is built from, for vpt/revision.py to find. Run by the build."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "vpt"

# By its path: to import the package, where it is installed editable, is to build it amid its build.
of_checkout = runpy.run_path(str(PACKAGE / "revision.py"))["of_checkout"]

print(json.dumps(of_checkout(PACKAGE)))
