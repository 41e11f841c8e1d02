# SPDX-License-Identifier: BSD-2-Clause
"""A listening socket whose file is looked after: whoever removes it cuts nobody off for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from vpt.daemon.ratelimit import PortLog
from vpt.daemon.sockets import Listener
from vpt.errors import VptError

__all__ = ["WatchedListener"]


class WatchedListener:
    """Listens, and looks every so many seconds whether its file is still the one at its path.

    A file that is gone is made anew; connections live on meanwhile. Where something else has taken its place,
    that stays: `problem` says so until it is gone, and the log once.

    listen: makes the listener; raises VptError if the path is taken. on_ready: a connection waits at this
    socket. hang_up: ends connections that wait there when listening ends. For the event loop's thread.
    """

    def __init__(
        self,
        listen: Callable[[], Listener],
        on_ready: Callable[[socket.socket], None],
        hang_up: Callable[[socket.socket], None],
        log: PortLog,
        *,
        every_s: float,
    ) -> None:
        self._listen = listen
        self._on_ready = on_ready
        self._hang_up = hang_up
        self._log = log
        self._every_s = every_s
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.problem: str | None = None
        self.renewed = 0

    def start(self) -> None:
        """Begin. Raises what `listen` raises."""
        self._take(self._listen())
        self._schedule()

    def stop(self) -> None:
        """Stop listening, and remove the file if it is ours."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._leave()

    def pause(self, seconds: float) -> None:
        """Leave those who connect waiting for that long."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.sock)
            asyncio.get_running_loop().call_later(seconds, self._watch, self._listener)

    def _take(self, listener: Listener) -> None:
        self._listener = listener
        self._watch(listener)

    def _watch(self, listener: Listener) -> None:
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener.sock, self._on_ready, listener.sock)

    def _leave(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.sock)
            self._listener.close(self._hang_up)
            self._listener = None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._look)

    def _look(self) -> None:
        self._schedule()
        if self._listener is not None and self._listener.in_place:
            self._note(None, None)
            return
        try:
            fresh = self._listen()
        except VptError as error:
            self._note(str(error), error.hint)
            return
        self._leave()
        self._take(fresh)
        self.renewed += 1
        self.problem = None
        self._log.warning("its socket file was removed; made anew: %s", fresh.path)

    def _note(self, problem: str | None, hint: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._log.error(
                "nobody can connect: %s (%s; vptd tries again every %g s)", problem, hint, self._every_s
            )
        self.problem = problem
