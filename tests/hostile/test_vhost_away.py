# SPDX-License-Identifier: BSD-2-Clause
"""L: what a port's socket file, its log, and a back-end of another version have to stand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from struct import pack

import pytest

from support.scene import MAC_X, MAX_LOG_LINES, Scene, most_of_a_level
from support.waiting import until
from vpt.conform.frames import BROADCAST, frame, number
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.dataplane import vhost_features
from vpt.vhost_user import U64, Request, Rule, VirtioFeature

F = VirtioFeature


def test_l2_a_back_end_that_offers_less_than_before_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file, too, a back-end remembers while it lives; the log names what is missing."""
    fe = scene.enter(features=int(USUAL | F.IN_ORDER)).start()
    assert fe.features & F.IN_ORDER
    scene.villain_leaves()
    less = vhost_features() & ~int(F.IN_ORDER)
    with monkeypatch.context() as patch:
        patch.setattr("vpt.daemon.transports.vhost.state.vhost_features", lambda: less)
        assert scene.enter().closed_by_peer()
    assert scene.villain.faults[Rule.FEATURES_LOST] == 1
    assert any("refused" in line and "IN_ORDER" in line for line in scene.lines)
    scene.check()


OTHER_PROCESS = """
import socket, struct, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.send(struct.pack("=III", 1, 1, 0))
assert len(sock.recv(20)) == 20
"""


def test_l2_a_guest_that_uses_what_is_no_longer_offered_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same front-end process, after another daemon has taken over; one that was started anew may come.

    The other daemon is this one with a feature fewer, and what it knows is what the first wrote down.
    """
    scene = Scene.build(tmp_path, remember=True)
    scene.enter(features=int(USUAL | F.IN_ORDER)).start()
    scene.villain_leaves()
    with monkeypatch.context() as patch:
        less = vhost_features() & ~int(F.IN_ORDER)
        patch.setattr("vpt.daemon.transports.vhost.state.vhost_features", lambda: less)
        for n in range(30):
            assert scene.enter().closed_by_peer()
            assert scene.villain.faults[Rule.FEATURES_LOST] == n + 1
        assert "IN_ORDER" in scene.villain.describe["problem"]
        said = [line for line in scene.lines if "refused" in line]
        assert all("IN_ORDER" in line and "restart the VM" in line for line in said)
        assert 1 <= len(said) <= MAX_LOG_LINES
        done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(scene.villain.path)], check=False)
        assert done.returncode == 0, "a new process has had nothing yet"
    scene.villain_leaves()
    scene.enter(features=int(USUAL | F.IN_ORDER)).start()
    assert scene.villain.describe["problem"] is None
    scene.check()
    scene.close()


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "vpt.negotiated/v1", "process": 5}', "[[[["])
def test_l2_a_file_of_what_was_negotiated_that_makes_no_sense_is_none(tmp_path: Path, content: str) -> None:
    scene = Scene.build(tmp_path, remember=True)
    (tmp_path / "x.negotiated").write_text(content)
    scene.check(logged=False)
    scene.close()


def test_l8_a_socket_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    """By somebody who tidies up /run, say: whoever is connected stays, and others can come again."""
    scene = Scene.build(tmp_path, watch_s=0.02)
    fe = scene.enter().start()
    scene.villain.path.unlink()
    until(scene.villain.path.exists, "the file to be there again")
    fe.transmit(frame(BROADCAST, MAC_X, 8))
    scene.villain_leaves()
    scene.enter().start()
    assert scene.villain.faults["sockets_renewed"] == 1
    assert any("made anew" in line for line in scene.lines)
    scene.one.poll()
    scene.two.poll()
    scene.check(logged=False)
    scene.close()


def test_l8_what_others_have_put_in_its_place_stays_and_is_complained_of_once(tmp_path: Path) -> None:
    scene = Scene.build(tmp_path, watch_s=0.02)
    path = scene.villain.path
    path.unlink()
    path.write_text("mine")
    until(lambda: scene.villain.describe["problem"], "it to be noticed")
    until(lambda: sum("nobody can connect" in line for line in scene.lines) == 1, "a line about it")
    for _ in range(20):
        scene.neighbours_forward(1)
    assert path.read_text() == "mine"
    assert sum("nobody can connect" in line for line in scene.lines) == 1
    path.unlink()
    until(lambda: scene.villain.describe["problem"] is None, "it to listen again")
    scene.check(logged=False)
    scene.close()


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
    assert most_of_a_level(scene.lines) <= MAX_LOG_LINES
    scene.check()
