# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors that peers send: what they are taken for, and that nobody waits for their close()."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from array import array
from collections.abc import Iterator

import pytest

from support.leaks import open_fds
from support.lingering import Lingering
from support.waiting import until
from vpt.daemon import descriptors
from vpt.daemon.descriptors import MOST_PENDING, Closer, is_eventfd, is_memory

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
def test_memory_and_eventfds_are_closed_at_once_and_all_else_elsewhere(closer: Closer, kind: str) -> None:
    """At once: whoever counts descriptors afterwards finds none."""
    fd = made(kind)
    closer.close([fd])
    harmless = kind in ("memfd", "tmpfs", "eventfd")
    if harmless:
        assert fd not in open_fds()
    assert closer.handed_over == (not harmless)


def test_a_file_with_much_memory_is_freed_elsewhere(closer: Closer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_LARGE_FILE", 1 << 20)
    fds = [os.memfd_create("large"), os.memfd_create("sparse")]
    os.posix_fallocate(fds[0], 0, 2 << 20)
    os.ftruncate(fds[1], 2 << 20)
    closer.close(fds)
    assert closer.handed_over == 1


@pytest.mark.native
def test_nobody_waits_for_a_descriptor_that_does_not_close(closer: Closer, slow: Lingering) -> None:
    fds = [os.dup(fd) for fd in slow.fds]
    slow.given()
    closer.close(fds)
    assert closer.pending == 2
    assert not closer.full
    slow.end()
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
    slow.end()
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
        slow.end()


def test_a_stream_with_nothing_in_it_is_closed_at_once(closer: Closer) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    with theirs:
        closer.hang_up(ours)
        assert fd not in open_fds()
