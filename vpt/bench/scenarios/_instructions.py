# SPDX-License-Identifier: BSD-2-Clause
"""Instructions that threads have retired in user space, by the processor's own counters."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

from vpt.perf_event import HARDWARE_INSTRUCTIONS, EventType, open_counter, read_counter

__all__ = ["Instructions"]


class Instructions:
    """Of these threads, until the stack is closed. MissingError: this processor counts none for us."""

    def __init__(self, stack: ExitStack, threads: Iterable[int]) -> None:
        self._fds = []
        for tid in threads:
            self._fds.append(open_counter(EventType.HARDWARE, HARDWARE_INSTRUCTIONS, tid, user_only=True))
            stack.callback(os.close, self._fds[-1])

    def read(self) -> int:
        return sum(map(read_counter, self._fds))
