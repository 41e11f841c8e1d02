# SPDX-License-Identifier: BSD-2-Clause
"""What QEMU is mended with, on a process that does with descriptors what QEMU does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from vpt.errors import GuestError
from vpt.qemu import stale

pytestmark = pytest.mark.native

_QEMU = """
import json, os, socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
named = {}
while True:
    text, fds, _, _ = socket.recv_fds(peer, 4096, 1)
    if not text:
        break
    command, arguments = json.loads(text)
    answer = True
    if command == "getfd":
        named[arguments["fdname"]] = fds[0]
    elif command == "netdev_add":
        answer = arguments["fd"] in named
    elif command == "netdev_del":
        os.close(named.pop(arguments["id"]))
    elif command == "eventfd":
        answer = os.eventfd(0)
    elif command == "take":
        answer = fds[0]
    elif command == "open":
        answer = os.open("/dev/null", os.O_RDONLY)
    elif command == "close":
        os.close(arguments["number"])
    else:
        answer = False
    peer.send(json.dumps(answer).encode())
"""


class FakeQemu:
    """Its monitor. heard: commands that it was given."""

    def __init__(self, peer: socket.socket, pid: int) -> None:
        self._peer = peer
        self.pid = pid
        self.heard: list[str] = []

    def __call__(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        self.heard.append(command)
        socket.send_fds(self._peer, [json.dumps([command, arguments]).encode()], list(files))
        answer = json.loads(self._peer.recv(4096))
        if answer is False:
            raise GuestError(f"QEMU refused {command}")
        return answer

    @property
    def files(self) -> dict[str, str]:
        folder = f"/proc/{self.pid}/fd"
        return {number: os.readlink(f"{folder}/{number}") for number in os.listdir(folder)}


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    ours, its = socket.socketpair()
    argv = [sys.executable, "-I", "-c", _QEMU, str(its.fileno())]
    with ours, its, subprocess.Popen(argv, pass_fds=[its.fileno()]) as process:
        its.close()
        fake = FakeQemu(ours, process.pid)
        fake("open")  # it has begun, and opens nothing by itself any more
        yield fake
        ours.close()
        assert process.wait(30) == 0


def test_the_numbers_of_eventfds_that_have_gone_are_filled_and_given_up(qemu: FakeQemu) -> None:
    stays, hole, *device = (qemu("eventfd") for _ in range(5))
    qemu("close", number=hole)
    were = stale.eventfds(qemu.pid)
    assert [int(each.partition("-")[0]) for each in were] == [stays, *device]
    for number in device:
        qemu("close", number=number)
    before, qemu.heard = qemu.files, []
    assert stale.mend(qemu, qemu.pid, were)
    assert qemu.heard.count("netdev_add") == 1 + len(device), "the hole comes first"
    assert qemu.heard.count("netdev_del") == 1 + len(device)
    assert qemu.files == before


def test_of_eventfds_only_those_that_somebody_else_holds_are_the_device_s(qemu: FakeQemu) -> None:
    """What else has gone and been opened again (a virtqueue's, at a reset) keeps nobody from mending."""
    other = qemu("eventfd")
    device = os.eventfd(0)
    try:
        number = qemu("take", files=[device])
        assert stale.eventfds(qemu.pid, os.getpid()) == [f"{number}-{stale._id(qemu.pid, number)}"]
        assert len(stale.eventfds(qemu.pid)) == len(stale.eventfds(qemu.pid, qemu.pid)) == 2
        were = stale.eventfds(qemu.pid, os.getpid())
    finally:
        os.close(device)
    assert len(stale.eventfds(qemu.pid, os.getpid())) == 2, "it is held by nobody else now"
    for each in (number, other):
        qemu("close", number=each)
    assert qemu("eventfd") == other
    assert stale.mend(qemu, qemu.pid, were)


@pytest.mark.parametrize("again", ["eventfd", "open"])
def test_a_number_that_was_opened_again_can_not_be_mended(qemu: FakeQemu, again: str) -> None:
    """By an eventfd as well, which is known by its id: a handler would be called for it."""
    number = qemu("eventfd")
    were = stale.eventfds(qemu.pid)
    qemu("close", number=number)
    assert qemu(again) == number
    assert not stale.mend(qemu, qemu.pid, were)


def test_what_was_not_seen_is_not_mended(qemu: FakeQemu) -> None:
    assert stale.eventfds(None) == []
    qemu("eventfd")
    were = stale.eventfds(qemu.pid)
    qemu.heard = []
    assert not stale.mend(qemu, qemu.pid, []), "nothing was seen"
    assert not stale.mend(qemu, None, were), "nor now"
    assert not stale.mend(qemu, qemu.pid, were), "the device is still there"
    assert qemu.heard == []
