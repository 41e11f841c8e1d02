# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors that peers send: what they are taken for, and that nobody waits for their close()."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from support.absent import AbsentMemory
from support.leaks import open_fds
from support.lingering import Lingering
from support.waiting import until
from vpt.daemon.descriptors import MOST_PENDING, MOST_USUAL, Closer, Lane, is_eventfd, is_memory

KINDS = ["memfd", "tmpfs", "disk", "eventfd", "pipe", "folder", "O_PATH"]


@pytest.fixture
def closer() -> Iterator[Closer]:
    made = Closer(logging.getLogger("test"))
    yield made
    until(lambda: not made.pending, "all to be closed")


@pytest.fixture
def slow() -> Iterator[Lingering]:
    with Lingering(2) as made:
        yield made


def made(kind: str) -> int:
    if kind == "memfd":
        return os.memfd_create("m")
    if kind == "tmpfs":
        return os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    if kind == "disk":
        return os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    if kind == "eventfd":
        return os.eventfd(0)
    if kind == "pipe":
        r, w = os.pipe()
        os.close(w)
        return r
    return os.open(tempfile.gettempdir(), os.O_PATH if kind == "O_PATH" else os.O_DIRECTORY)


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_are(kind: str) -> None:
    fd = made(kind)
    assert is_memory(fd) == (kind in ("memfd", "tmpfs"))
    assert is_eventfd(fd) == (kind == "eventfd")
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_neither_memory_nor_an_eventfd_is_worth_a_word(
    closer: Closer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    closer.close([made(kind)])
    strange = kind not in ("memfd", "tmpfs", "eventfd")
    assert closer.handed_over == strange
    assert bool(caplog.messages) == strange


@pytest.mark.parametrize("kind", ["memfd", "tmpfs"])
def test_memory_that_is_as_good_as_empty_is_closed_at_once(closer: Closer, kind: str) -> None:
    """Whoever counts descriptors afterwards finds none."""
    fd = made(kind)
    os.truncate(fd, 1 << 40)
    os.posix_fallocate(fd, 0, 4096)
    closer.let_go([fd])
    assert fd not in open_fds()


def test_memory_that_is_full_is_freed_in_another_thread(
    closer: Closer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files it is spread over: each takes its time."""
    closed_by: list[int] = []
    real = os.close
    monkeypatch.setattr(os, "close", lambda fd: (closed_by.append(threading.get_ident()), real(fd))[1])
    for _ in range(4):
        fd = os.memfd_create("full")
        os.posix_fallocate(fd, 0, 1 << 20)
        closer.let_go([fd])
    until(lambda: len(closed_by) == 4, "all to be closed")
    assert threading.get_ident() not in closed_by


@pytest.mark.native
@pytest.mark.parametrize("end", [Closer.close, Closer.let_go], ids=["unwanted", "used"])
def test_nobody_waits_for_an_eventfd_in_an_epoll_set_that_is_held(
    closer: Closer, end: Callable[[Closer, list[int]], None]
) -> None:
    with AbsentMemory() as absent:
        fd = os.eventfd(1)
        absent.hold_epoll([fd])
        end(closer, [fd])
        assert closer.pending == 1
        assert closer.handed_over == 0
        assert not closer.full
    until(lambda: closer.pending == 0, "it to be closed")


@pytest.mark.native
def test_what_waits_for_its_end_behind_a_held_eventfd_has_a_limit(closer: Closer) -> None:
    with AbsentMemory() as absent:
        fd = os.eventfd(1)
        absent.hold_epoll([fd])
        closer.let_go([fd, *(os.eventfd(0) for _ in range(MOST_USUAL - 1))])
        assert not closer.full
        closer.let_go([os.eventfd(0)])
        assert closer.full
    until(lambda: closer.pending == 0, "all to be closed")
    assert closer.problem is None


def test_a_lane_does_its_jobs_in_order_and_goes_on_after_one_that_fails() -> None:
    done: list[int] = []
    lane = Lane()

    def job(n: int) -> None:
        if n == 3:
            raise OSError
        done.append(n)

    for n in range(8):
        lane.do(partial(job, n))
    until(lambda: not len(lane), "all to be done")
    assert done == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.native
def test_nobody_waits_for_a_descriptor_that_does_not_close(closer: Closer, slow: Lingering) -> None:
    fds = [os.dup(fd) for fd in slow.fds]
    slow.given()
    closer.close(fds)
    assert closer.pending == 2
    assert not closer.full
    slow.close()
    until(lambda: closer.pending == 0, "both to be closed")


@pytest.mark.native
def test_what_is_closed_by_one_does_not_hold_up_what_is_closed_by_another(
    closer: Closer, slow: Lingering
) -> None:
    stuck = Closer(logging.getLogger("test"))
    fds = [os.dup(fd) for fd in slow.fds]
    slow.given()
    stuck.close(fds)
    closer.close([made("pipe")])
    until(lambda: closer.pending == 0, "the pipe to be closed")
    assert stuck.pending == 2
    slow.close()
    until(lambda: stuck.pending == 0, "the others to be closed")


@pytest.mark.native
def test_too_many_is_said(closer: Closer) -> None:
    with Lingering(1) as slow:
        fds = [os.dup(fd) for fd in slow.fds] + [made("pipe") for _ in range(MOST_PENDING)]
        slow.given()
        closer.close(fds)
        assert closer.full
        assert closer.problem == f"{MOST_PENDING + 1} descriptors that a peer sent are still being closed"
    until(lambda: closer.pending == 0, "all to be closed")
    assert closer.problem is None


@pytest.mark.native
@pytest.mark.parametrize("data", [b"x", b""], ids=["unread", "of no bytes"])
def test_a_connection_ends_at_once_for_its_peer_whatever_waits_in_it(
    closer: Closer, slow: Lingering, data: bytes
) -> None:
    kind = socket.SOCK_STREAM if data else socket.SOCK_SEQPACKET  # a stream has no messages without bytes
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
        theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", slow.fds))])
        slow.given()
        closer.hang_up(ours)
        with contextlib.suppress(ConnectionResetError):  # a stream that was closed with something unread
            assert theirs.recv(1) == b""
        assert closer.pending == 1
        slow.close()


def test_a_stream_with_nothing_in_it_is_closed_at_once(closer: Closer) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    with theirs:
        closer.hang_up(ours)
        assert fd not in open_fds()
