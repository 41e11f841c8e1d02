# SPDX-License-Identifier: BSD-2-Clause
"""Numbers in words: as short as they can be read, and never so short that they say something else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

__all__ = ["apart", "beside", "change", "engineering"]


def engineering(value: float) -> str:
    """A number as short as it can be read: 1.5M, 20k, 0.25, 2e-05."""
    if 999.5 <= abs(value) < 9999.5:
        return f"{value:.0f}"
    rounded = float(f"{value:.3g}")
    if rounded and math.isfinite(rounded):
        for limit, power, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
            if abs(rounded) >= limit:
                return f"{rounded / power:.3g}{unit}"
    return f"{rounded:.3g}" if rounded else "0"


def beside(value: float, bound: float) -> str:
    """A number that is held against a bound: with so many digits that it is on the bound's right side.

    19.996 beside 20 is 19.996, and not the 20 that was missed.
    """
    for text in _ever_longer(value):
        if value == bound or (float(text) != bound and (float(text) < bound) == (value < bound)):
            break
    return text


def apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers that are held against each other: they look the same only where they are."""
    short = engineering(one), engineering(other)
    for texts in chain([short], zip(_ever_longer(one), _ever_longer(other), strict=True)):
        if one == other or texts[0] != texts[1]:
            break
    return texts


def change(share: float) -> str:
    """A change in percent, which is none only where there is none."""
    text = f"{share:+.1%}"
    return text if float(text[:-1]) or not share else f"{100 * share:+.2g}%"


def _ever_longer(value: float) -> Iterator[str]:
    """From three digits on, and all that stand before the point."""
    whole = len(f"{abs(value):.0f}")
    for digits in range(3, 18):
        yield f"{value:.{max(digits, whole)}g}"
