# SPDX-License-Identifier: BSD-2-Clause
"""What a callback or a task of the loop ran into and nobody caught: said, but not without end.

Memory or descriptors that are short fail the same callback again and again, with a traceback each time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from vpt.daemon.ratelimit import RateLimit

__all__ = ["Faults"]


class Faults:
    """The exception handler of the running loop, between start() and stop()."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._limit = RateLimit()

    def start(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._say)

    def stop(self) -> None:
        asyncio.get_running_loop().set_exception_handler(None)

    def _say(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        suppressed = self._limit.admit()
        if suppressed is None:
            return
        left_out = f" ({suppressed} like it left out)" if suppressed else ""
        self._log.error(
            "fault of its own: %s%s", context["message"], left_out, exc_info=context.get("exception")
        )
