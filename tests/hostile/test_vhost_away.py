# SPDX-License-Identifier: BSD-2-Clause
"""L: what a port's socket file, its log, and a back-end of another version have to stand."""

from __future__ import annotations

import os
import socket
from struct import pack

import pytest

from support.scene import MAC_X, MAX_LOG_LINES, Scene
from vpt.conform.frames import BROADCAST, frame, number
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.dataplane import vhost_features
from vpt.vhost_user import U64, Request, Rule, VirtioFeature

F = VirtioFeature


def test_l2_a_back_end_that_offers_less_than_before_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A front-end that asks for what it had is refused at once, and the log names what is missing."""
    fe = scene.enter(features=int(USUAL | F.IN_ORDER)).start()
    had = fe.features
    assert had & F.IN_ORDER
    scene.villain_leaves()
    less = vhost_features() & ~int(F.IN_ORDER)
    monkeypatch.setattr("vpt.daemon.transports.vhost.state.vhost_features", lambda: less)
    fe = scene.enter()
    fe.negotiate(0)
    fe.send(Request.SET_FEATURES, U64(had))
    assert fe.closed_by_peer()
    assert scene.villain.faults[Rule.NOT_OFFERED] == 1
    assert any("not_offered" in line and "IN_ORDER" in line for line in scene.lines)
    scene.check()


@pytest.mark.parametrize("replaced", [False, True], ids=["unlinked", "replaced"])
def test_l8_a_socket_file_that_is_taken_away(scene: Scene, replaced: bool) -> None:
    """Whoever is connected stays; what is in its place now belongs to somebody else, and is left alone."""
    port = scene.host.vhost("p")
    with FrontEnd(port.path) as fe, socket.socket(socket.AF_UNIX) as other:
        fe.start()
        os.unlink(port.path)
        if replaced:
            other.bind(str(port.path))
        fe.transmit(frame(BROADCAST, MAC_X, 8))
        assert number(scene.two.receive()[0].frame) == 8
        scene.host.remove(port)
        assert fe.closed_by_peer()
        assert port.path.exists() == replaced
    scene.one.poll()
    scene.check(logged=False)


def test_l10_however_many_faults_there_are_the_log_stays_short(scene: Scene) -> None:
    """Those that cost the connection, and those that are only refused."""
    for n in range(300):
        fe = scene.enter()
        fe.sock.send(pack("=III", Request.GET_FEATURES, 0, 0))
        assert fe.closed_by_peer()
        scene.villain_leaves()
        assert scene.villain.faults[Rule.BAD_VERSION] == n + 1
    fe = scene.enter()
    fe.negotiate()
    for _ in range(1000):
        assert fe.try_(Request.SET_FEATURES, U64(1 << 63)) == 1
    assert scene.villain.faults["refused"] == 1000
    assert len(scene.lines) <= MAX_LOG_LINES
    scene.check()
