# SPDX-License-Identifier: BSD-2-Clause
"""Files that the back-end uses or is to use, and that their sender has a grip on, or has filled.

Closing or reading them waits for the sender's memory or server, or takes long. That is nobody's to wait for.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from support.absent import AbsentMemory
from support.fuse import SilentFile
from support.scene import Scene
from support.waiting import until
from vpt.conform.front_end import FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.vhost_user import Log, MemReg, Region, Request, VringFd, encode

# Each gives an eventfd away before it is closed: the last who has it is the one who waits.


def kick_replaced(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_VRING_KICK, VringFd(1), [fd])
    os.close(fd)
    fe.set_kick(1, fe.pairs[0].tx.kick_fd)


def call_replaced(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_VRING_CALL, VringFd(0), [fd])
    os.close(fd)
    fe.set_call(0, None)


def error_replaced(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_VRING_ERR, VringFd(0), [fd])
    os.close(fd)
    fe.do(Request.SET_VRING_ERR, VringFd(0 | VringFd.NOFD))


def log_event_replaced(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_LOG_FD, None, [fd])
    os.close(fd)
    fe.do(Request.SET_LOG_FD, None, [fe.pairs[0].rx.call_fd])


def ring_stopped(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_VRING_KICK, VringFd(1), [fd])
    os.close(fd)
    fe.stop_ring(1)


def all_of_it_at_the_end(fe: FrontEnd, fd: int) -> None:
    fe.do(Request.SET_VRING_KICK, VringFd(1), [fd])
    fe.do(Request.SET_VRING_CALL, VringFd(0), [fd])
    fe.do(Request.SET_VRING_ERR, VringFd(1), [fd])
    fe.do(Request.SET_LOG_FD, None, [fd])
    os.close(fd)
    fe.disconnect()


def unwanted(fe: FrontEnd, fd: int) -> None:
    """In a message that is not complete before it is closed here."""
    message = encode(Request.SET_VRING_KICK, VringFd(0xFF), need_reply=True)
    fe.sock.sendmsg([message[:-1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
    os.close(fd)
    fe.sock.send(message[-1:])
    fe.reply()


HELD = [
    pytest.param(kick_replaced, id="S28 a kick that is replaced"),
    pytest.param(call_replaced, id="S26 a call that is replaced"),
    pytest.param(error_replaced, id="S26 an error that is replaced"),
    pytest.param(log_event_replaced, id="M17 the log's event that is replaced"),
    pytest.param(ring_stopped, id="S28 a kick of a ring that stops"),
    pytest.param(all_of_it_at_the_end, id="S33 at the end of the connection"),
    pytest.param(unwanted, id="S11 that nobody wants"),
]


@pytest.mark.native
@pytest.mark.parametrize("give", HELD)
def test_an_eventfd_in_an_epoll_set_that_is_held_holds_up_nobody(
    scene: Scene, give: Callable[[FrontEnd, int], None]
) -> None:
    """Its last close() waits for an epoll_wait() that writes to memory which does not come."""
    fe = scene.enter().start()
    with AbsentMemory() as absent:
        fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        absent.hold_epoll([fd])
        give(fe, fd)
        until(lambda: scene.villain.closing, "it to be waited for")
        scene.neighbours_forward()
        assert scene.villain.closing, "it was not held"
        assert scene.villain.faults["slow_descriptors"] == 0
    until(lambda: scene.villain.closing == 0, "the descriptor to be closed")
    scene.check(logged=False)


def as_region(fe: FrontEnd, fd: int) -> None:
    region = Region(GPA_BASE + 64 * MIB, MIB, 1 << 40, 0)
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region), [fd]) != 0


def as_record(fe: FrontEnd, fd: int) -> None:
    info = fe.ask_record().info
    fe.stop_ring(0)
    fe.stop_ring(1)
    assert fe.try_(Request.SET_INFLIGHT_FD, info, [fd]) != 0


def as_log(fe: FrontEnd, fd: int) -> None:
    fe.send(Request.SET_LOG_BASE, Log(MIB, 0), [fd])
    assert fe.closed_by_peer()


def as_kick(fe: FrontEnd, fd: int) -> None:
    assert fe.try_(Request.SET_VRING_KICK, VringFd(1), [fd]) != 0


def as_channel(fe: FrontEnd, fd: int) -> None:
    assert fe.try_(Request.SET_BACKEND_REQ_FD, None, [fd]) != 0


@pytest.mark.native
@pytest.mark.parametrize(
    "give",
    [
        pytest.param(as_region, id="M7 as memory"),
        pytest.param(as_record, id="M18 as a record"),
        pytest.param(as_log, id="M15 as a log"),
        pytest.param(as_kick, id="S25 as a kick"),
        pytest.param(as_channel, id="S12 as a back channel"),
    ],
)
def test_a_file_on_fuse_whose_server_is_silent_is_refused_unasked(
    scene: Scene, tmp_path: Path, give: Callable[[FrontEnd, int], None]
) -> None:
    """Not even its size is asked for; its close() waits, elsewhere."""
    fe = scene.enter().start()
    with SilentFile(tmp_path / "fuse") as file:
        give(fe, file.fd)
        scene.neighbours_forward()
        until(lambda: scene.villain.closing, "its close() to wait")
        assert scene.villain.describe["problem"] is None
    until(lambda: scene.villain.closing == 0, "it to be closed")
    scene.check()


@pytest.mark.native
def test_s31_a_back_channel_that_is_being_read_at_the_front_ends_side_blocks_nobody(scene: Scene) -> None:
    """It has that very socket, too: reads of one exclude each other, and its own waits for memory."""
    fe = scene.enter()
    fe.negotiate()
    ours, theirs = socket.socketpair()
    with ours, theirs, AbsentMemory() as absent:
        ours.send(b"xx")
        absent.hold_socket(theirs.fileno())
        fe.do(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        until(lambda: scene.villain.closing, "it to be read")
        fe.ask(Request.GET_FEATURES)
        scene.neighbours_forward()
        fe.disconnect()
        scene.villain.until_left()
        assert scene.villain.closing
    until(lambda: scene.villain.closing == 0, "the channel to be closed")
    scene.check(logged=False)


def test_l3_what_a_front_end_that_is_gone_has_left_is_freed_by_the_closer_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is mapped nowhere any more when it is let go of; and the control thread goes on meanwhile."""
    closer, seen = scene.villain.transport.closer, {}
    real = closer.let_go

    def let_go(fds: Iterable[int]) -> None:
        mine = list(fds)
        files = [os.fstat(fd).st_ino for fd in mine]
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = {int(line.split()[4]) for line in maps if "memfd:" in line}
        real(mine)
        seen.update({inode: (inode in mapped, closer.pending > 0) for inode in files})

    monkeypatch.setattr(closer, "let_go", let_go)
    fe = scene.enter(memory=GuestMemory([Span(GPA_BASE, 256 * MIB)])).start(record=True)
    assert fe.record
    log = os.memfd_create("log")
    for fd, size in ((fe.memory.regions[0].fd, 256 * MIB), (log, 64 * MIB)):
        os.posix_fallocate(fd, 0, size)
    fe.send(Request.SET_LOG_BASE, Log(64 * MIB, 0), [log])
    fe.reply()
    inodes = [os.fstat(fd).st_ino for fd in (fe.memory.regions[0].fd, log, fe.record.fd)]
    with scene.host.held():
        os.close(log)
        fe.close()
    scene.villain.until_left()
    scene.neighbours_forward()
    assert [seen[inode] for inode in inodes] == [(False, True)] * 3
    until(lambda: scene.villain.closing == 0, "all to be freed")
    scene.check(logged=False)
