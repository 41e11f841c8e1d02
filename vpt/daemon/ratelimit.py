# SPDX-License-Identifier: BSD-2-Clause
"""Log lines that a guest or a front-end can cause, bounded per port."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["PortLog", "RateLimit"]


class RateLimit:
    """A token bucket: `burst` at once, then one per `interval_s`."""

    def __init__(
        self, burst: int = 10, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._interval_s = interval_s
        self._clock = clock
        self._tokens = float(burst)
        self._then = clock()
        self._suppressed = 0

    def admit(self) -> int | None:
        """None: say nothing. Otherwise how many were left out since the last one that was said."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) / self._interval_s)
        self._then = now
        if self._tokens < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class PortLog(logging.LoggerAdapter[logging.Logger]):
    """Logger of one port: names it in front of each line, and lets only so many of each level through.

    Each level has a limit of its own, so that a peer that comes and goes without end does not hide its faults
    behind that, nor with those an error of ours.
    """

    def __init__(self, logger: logging.Logger, name: str) -> None:
        super().__init__(logger, {"port": name})
        self._name = name
        self._limits: defaultdict[int, RateLimit] = defaultdict(RateLimit)
        self._note = ""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        suppressed = self._limits[level].admit()
        if suppressed is None:
            return
        self._note = f" ({suppressed} like it left out)" if suppressed else ""
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"port={self._name} {msg}{self._note}", kwargs
