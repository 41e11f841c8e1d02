# SPDX-License-Identifier: BSD-2-Clause
"""What came out of a guest's console, fit to be shown to a person."""

from __future__ import annotations

import re

__all__ = ["console_text"]

# Firmware clears the screen and positions the cursor; a guest could do worse to the terminal that shows it.
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_c])")


def console_text(raw: bytes) -> str:
    """The console's text without escape sequences and other control characters, lines kept."""
    text = _ESCAPE.sub("", raw.decode(errors="replace").replace("\r", ""))
    return "".join(char for char in text if char in "\n\t" or char.isprintable())
