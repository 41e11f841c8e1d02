# SPDX-License-Identifier: BSD-2-Clause
"""How many samples a percentile takes."""

from __future__ import annotations

__all__ = ["tells"]


def tells(percent: float, samples: int) -> bool:
    """Do so many samples have that percentile: does one of them, or more, lie beyond it on either side?

    Of fewer it is their smallest or largest by another name: 99 takes 100 samples, 10 and 90 take 10.
    0 and 100 are the smallest and the largest, of one as well.
    """
    outside = min(percent, 100 - percent)
    return samples > 0 and (outside <= 0 or samples * outside >= 100)
