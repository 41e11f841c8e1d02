# SPDX-License-Identifier: BSD-2-Clause
"""The command line. One file per command group, no logic; `_table` says where each is.

Nothing is imported before it is needed: `vpt --help` loads click and this package, and nothing else.
"""

from vpt.cli._main import main

__all__ = ["main"]
