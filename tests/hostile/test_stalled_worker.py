# SPDX-License-Identifier: BSD-2-Clause
"""The stream that flows beside every hostile act tells a worker that stands still from a busy machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from support.apps import SLOTS
from support.stream import PACE, Stream
from support.vptd import Vptd
from support.waiting import PATIENCE_S, until
from vpt.daemon.transports.unix import open_app


@pytest.fixture(scope="module")
def vptd() -> Iterator[Vptd]:
    """One with two app ports."""
    daemon = Vptd("--no-keeper")
    daemon.start()
    daemon.call("switch.add", name="sw0")
    for name in "ab":
        daemon.call("port.add", name=name, switch="sw0", kind="app", slots=SLOTS)
    yield daemon
    daemon.close()


@pytest.fixture
def stream(vptd: Vptd) -> Iterator[Stream]:
    """A stream through it."""
    a, b = (vptd.socket(port) for port in "ab")
    with (
        open_app(a, timeout=PATIENCE_S) as one,
        open_app(b, timeout=PATIENCE_S) as other,
        closing(Stream(one.app, other.app)) as flowing,
    ):
        flowing.check()
        yield flowing


def stand_still(vptd: Vptd, long_enough: Callable[[], object]) -> None:
    """vptd's workers take nothing meanwhile."""
    assert vptd.process
    os.kill(vptd.process.pid, signal.SIGSTOP)
    try:
        until(long_enough, "packets to become due")
    finally:
        os.kill(vptd.process.pid, signal.SIGCONT)


def test_a_worker_that_leaves_no_room_for_what_is_due_is_found(vptd: Vptd, stream: Stream) -> None:
    stand_still(vptd, lambda: stream.held_up)
    with pytest.raises(AssertionError, match=r"'held up': [1-9]"):
        stream.check()


def test_a_worker_that_is_late_by_a_fifth_of_a_second_loses_nothing(vptd: Vptd, stream: Stream) -> None:
    before = stream.sent
    stand_still(vptd, lambda: stream.sent >= before + PACE // 5)
    stream.check()
