# SPDX-License-Identifier: BSD-2-Clause
"""Waiting for what threads, other processes and guests do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 30.0  # after which something that should have happened at once counts as lost
_LONGEST_PAUSE_S = 0.01


def until(done: Callable[[], T | None], what: str | Callable[[], str], timeout_s: float = PATIENCE_S) -> T:
    """The first true value of done(), however long that takes. what: shown if it does not come."""
    end, pause = time.monotonic() + timeout_s, 0.0005
    while not (value := done()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    return value
