# SPDX-License-Identifier: BSD-2-Clause
"""S: descriptors whose close() takes as long as their sender likes. Nobody but the sender waits for that."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterator

import pytest

from support.lingering import Lingering
from support.scene import Scene
from support.waiting import until
from vpt.conform.back_channel import BackChannel
from vpt.daemon.descriptors import MOST_PENDING
from vpt.vhost_user import Request, Rule, VringFd, encode

SCM_MAX = 253


@pytest.fixture
def lingering() -> Iterator[Callable[[int], Lingering]]:
    """lingering(count): whatever happens, nobody waits for them in the end."""
    made: list[Lingering] = []

    def make(count: int) -> Lingering:
        made.append(Lingering(count))
        return made[-1]

    yield make
    for each in made:
        each.close()


def send_fds(sock: socket.socket, data: bytes, fds: list[int], flags: int = 0) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], flags)


# Each gives them away before the back-end can have looked: the last who has them is the one who waits.


def by_one_message(scene: Scene, slow: Lingering) -> None:
    """More than a message may have: the kernel must not have to close any."""
    fe = scene.enter()
    fe.negotiate()
    with scene.host.held():
        fe.send(Request.SET_VRING_CALL, VringFd(0), slow.fds)
        slow.given()
    assert fe.closed_by_peer()


def by_refused_messages(scene: Scene, slow: Lingering) -> None:
    """Each is refused with an acknowledgement, which leaves the connection, until there are too many."""
    fe = scene.enter()
    fe.negotiate()
    for _ in range(9):
        with scene.host.held():
            for fd in slow.fds[:8]:
                fe.send(Request.SET_VRING_CALL, VringFd(0), [fd], need_reply=True)
            slow.given(8)
    until(lambda: scene.villain.faults.get(Rule.UNCLOSED_FDS), "the connection to be dropped")


def unread(scene: Scene, slow: Lingering) -> None:
    """Behind a message that ends the connection."""
    fe = scene.enter()
    fe.negotiate()
    with scene.host.held():
        fe.sock.send(b"\xff" * 12)
        send_fds(fe.sock, b"x", slow.fds)
        slow.given()
    scene.villain.until_left()


def urgent(scene: Scene, slow: Lingering) -> None:
    """With a byte out of band, which the kernel would drop, and them with it."""
    fe = scene.enter()
    fe.negotiate()
    with scene.host.held():
        send_fds(fe.sock, b"!", slow.fds, socket.MSG_OOB)
        fe.sock.send(b"x")
        slow.given()
    fe.disconnect()
    scene.villain.until_left()


def by_a_second_client(scene: Scene, slow: Lingering) -> None:
    scene.enter().start()
    with socket.socket(socket.AF_UNIX) as second:
        with scene.host.held():
            second.connect(str(scene.villain.path))
            send_fds(second, b"x", slow.fds)
            slow.given()
        until(lambda: scene.villain.faults.get("second_clients"), "the second client to be refused")


def in_the_back_channel(scene: Scene, slow: Lingering) -> None:
    """Answers bring no descriptors."""
    fe = scene.enter()
    fe.negotiate()
    with BackChannel(fe) as back:
        with scene.host.held():
            send_fds(back.sock, b"x" * 12, slow.fds)
            slow.given()
        assert back.closed_by_peer()
    fe.disconnect()


def as_a_back_channel(scene: Scene, slow: Lingering) -> None:
    """What is no unix socket."""
    fe = scene.enter()
    fe.negotiate()
    with scene.host.held():
        for fd in slow.fds:
            fe.send(Request.SET_BACKEND_REQ_FD, None, [fd], need_reply=True)
        slow.given()
    for _ in range(3):
        fe.reply()
    fe.disconnect()


def within_a_socket(scene: Scene, slow: Lingering) -> None:
    """A descriptor that brings others."""
    fe = scene.enter()
    fe.negotiate()
    ours, theirs = socket.socketpair()
    with ours, scene.host.held():
        send_fds(ours, b"x", slow.fds)
        slow.given()
        fe.send(Request.SET_VRING_ERR, VringFd(0), [theirs.fileno()], need_reply=True)
        theirs.close()
    assert fe.reply()
    fe.disconnect()


WAYS = [
    pytest.param(by_one_message, SCM_MAX, SCM_MAX, id="S13 all that fit into one message"),
    pytest.param(by_refused_messages, 72, MOST_PENDING + 1, id="S25 one by one, refused"),
    pytest.param(unread, SCM_MAX, 0, id="S33 unread when the connection ends"),
    pytest.param(urgent, 3, 3, id="S11 with a byte out of band"),
    pytest.param(by_a_second_client, 3, 0, id="S32 by a second client"),
    pytest.param(in_the_back_channel, 3, 3, id="S11 with an answer"),
    pytest.param(as_a_back_channel, 3, 3, id="S12 for a back channel"),
    pytest.param(within_a_socket, 3, 1, id="S25 within a socket"),
]


@pytest.mark.native
@pytest.mark.parametrize(("send", "count", "seen"), WAYS)
def test_descriptors_that_do_not_close_hold_up_nobody(
    scene: Scene,
    lingering: Callable[[int], Lingering],
    send: Callable[[Scene, Lingering], None],
    count: int,
    seen: int,
) -> None:
    """The control thread answers and packets flow while they are there; then nothing is left of them."""
    slow = lingering(count)
    send(scene, slow)
    scene.neighbours_forward()
    assert scene.villain.faults["slow_descriptors"] >= seen
    assert scene.villain.closing > 0, "it was not slow"
    said = [line for line in scene.lines if "closed in the background" in line]
    assert bool(said) == bool(seen)
    slow.close()
    until(lambda: scene.villain.closing == 0, "the descriptors to be closed")
    scene.check(logged=False)


@pytest.mark.native
def test_s33_who_has_sent_too_many_of_them_is_not_served_until_they_are_closed(
    scene: Scene, lingering: Callable[[int], Lingering]
) -> None:
    slow = lingering(MOST_PENDING + 1)
    by_one_message(scene, slow)
    fe = scene.enter()
    fe.sock.send(encode(Request.GET_FEATURES))
    scene.neighbours_forward()
    described = scene.villain.describe
    assert not described["connected"]
    assert "still being closed" in described["problem"]
    slow.close()
    assert fe.reply().request == Request.GET_FEATURES
    assert scene.villain.describe["problem"] is None
    scene.check(logged=False)


@pytest.mark.native
def test_s33_a_port_goes_while_somebody_waits_with_them_to_be_accepted(
    scene: Scene, lingering: Callable[[int], Lingering]
) -> None:
    """Closing a socket that listens closes what those have sent whom nobody accepted."""
    other = scene.host.vhost("other")
    slow = lingering(3)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as waiting:
        with scene.host.held():
            first.connect(str(other.path))
            waiting.connect(str(other.path))
            send_fds(waiting, b"x", slow.fds)
            slow.given()
            gone = scene.host.begin_removal(other)
        gone.result(30)
    scene.neighbours_forward()
    slow.close()
    scene.check(logged=False)


@pytest.mark.native
def test_s31_a_back_channel_that_was_made_blocking_behind_our_back_blocks_nobody(scene: Scene) -> None:
    """The front-end has made the socket, and may have it still."""
    fe = scene.enter()
    fe.negotiate()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fe.do(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        os.set_blocking(theirs.fileno(), True)
        ours.send(b"x")
        fe.ask(Request.GET_FEATURES)
        scene.neighbours_forward()
        assert scene.villain.describe["connected"]
    scene.check(logged=False)
