# SPDX-License-Identifier: BSD-2-Clause
"""What arguments of vptd and the keeper may be. Standard library only: the keeper uses it."""

from __future__ import annotations

import argparse
import math

__all__ = ["seconds"]


def seconds(text: str) -> float:
    """0 or more, and finite: nan, which no comparison finds out of bounds, is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds, 0 or more, not {text!r}")
    return value
