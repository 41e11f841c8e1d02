# SPDX-License-Identifier: BSD-2-Clause
"""A Daemon in a thread of its own, for programs not written around asyncio: demo, benchmarks, tests."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from vpt.daemon.daemon import Daemon, Settings
from vpt.daemon.models import PortAdd, PortView
from vpt.dataplane import StatsReader
from vpt.errors import DaemonError, NotFoundError, TimeoutExpired
from vpt.processor import patience

__all__ = ["EmbeddedDaemon"]

R = TypeVar("R")

_CALL_S = patience(30.0)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EmbeddedDaemon:
    """Start with `with`; then call() runs a coroutine on the daemon, from any thread.

    with EmbeddedDaemon(Settings(locate(folder))) as daemon:
        daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw0")))
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="vptd")
        self._known = threading.Event()
        self._started = threading.Event()
        self._mask: set[int | signal.Signals] = set()
        self._failed: BaseException | None = None
        self._daemon: Daemon | None = None
        self._stats: StatsReader | None = None

    def __enter__(self) -> Self:
        # Thread.start() waits, too, and an interrupt in there would leave a thread that nobody knows to run:
        # signals wait until it is.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had
            self._loop.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._known.set()
            self._started.wait()
            if self._failed is not None:
                raise self._failed
            self._stats = StatsReader(self._settings.paths.stats)
        except BaseException:  # Ctrl-C, too: the interpreter would wait for the thread, and nobody end it
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """What is still coming up is waited for first: it can't be told to end before."""
        self._known.set()
        self._started.wait()
        if self._stats is not None:
            self._stats.close()
        if self._daemon is not None:
            self._loop.call_soon_threadsafe(self._daemon.stopping.set)
        self._thread.join()

    def _run(self) -> None:
        # A signal that waits would come here as soon as this thread takes it, and interrupt the other in
        # start().
        self._known.wait()
        # What this thread starts inherits the mask, the keeper for one, which SIGTERM has to reach.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._started.set()
            self._loop.close()

    async def _main(self) -> None:
        daemon = Daemon(self._settings)
        try:
            await daemon.start()
        except BaseException as error:
            self._failed = error
            return
        self._daemon = daemon
        self._started.set()
        await daemon.stopping.wait()
        await daemon.stop()

    def call(self, what: Callable[[Daemon], Awaitable[R]], timeout_s: float = _CALL_S) -> R:
        """Run `what` in the daemon's thread and return what it returns, or raise what it raises."""
        if self._daemon is None:
            raise DaemonError("the embedded vptd does not run", hint="use it in a with statement")
        daemon = self._daemon

        async def run() -> R:
            return await what(daemon)

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise TimeoutExpired(f"the embedded vptd did not answer within {timeout_s:.0f} s") from None

    def add_port(self, request: PortAdd) -> PortView:
        """call() for what is called most, also in loops."""
        return self.call(lambda d: d.ports.add(request))

    def counters(self, port: str) -> Counter[str]:
        """A port's counters, summed over its queues, read without asking the daemon."""
        assert self._stats is not None
        found = [queue.counters for queue in self._stats.read().queues if queue.port == port]
        if not found:
            raise NotFoundError(f"no port {port!r}")
        total: Counter[str] = Counter()
        for counters in found:
            total.update(counters)
        return total
