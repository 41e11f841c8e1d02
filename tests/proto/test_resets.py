# SPDX-License-Identifier: BSD-2-Clause
"""What survives which reset, as the table in resets.py has it and docs/vhost-user.md shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.host import Host, VhostPort
from vpt.conform.frames import MAC_A, MAC_B, frame
from vpt.conform.front_end import ALL_PROTOCOL, Failure, FrontEnd
from vpt.daemon.transports.vhost.resets import TAKES, Part, Reset
from vpt.vhost_user import U64, Request, VringState

DOC = Path(__file__).parents[2] / "docs" / "vhost-user.md"
SENT = 3
TX = 1  # index of the ring that is looked at


class Patient:
    """A front-end and its port, with everything that there is to lose; the transmit ring has come to SENT."""

    def __init__(self, host: Host) -> None:
        self.port: VhostPort = host.vhost("a")
        self.fe = FrontEnd(self.port.path).start()
        self.fe.do(Request.NET_SET_MTU, U64(1400))
        self.fe.transmit(*(frame(MAC_B, MAC_A, n) for n in range(SENT)))
        assert self.port.state().up

    def undergo(self, why: Reset) -> None:
        """Have a reset."""
        if why is Reset.END:
            old = self.fe
            old.disconnect()
            self.port.until_left()
            self.fe = FrontEnd(self.port.path, memory=old.memory)
            self.fe.pairs = old.pairs
        elif why is Reset.STOP:
            for index in (0, TX):
                self.fe.stop_ring(index)
        elif why is Reset.STATUS:
            self.fe.do(Request.SET_STATUS, U64(0))
        else:
            self.fe.do(Request[why.value])
        self.fe.ask(Request.GET_FEATURES)

    def negotiate(self) -> None:
        """What every device begins with, where that is gone."""
        if not self.fe.protocol:
            self.fe.negotiate(int(ALL_PROTOCOL))
        self.fe.do(Request.SET_FEATURES, U64(self.fe.features))

    def restart(self) -> bool:
        """Describe the ring again, if it does not run, and let it run; nothing else. Does it?"""
        queue = self.fe.pairs[0].tx
        self.negotiate()
        if self.port.state().up:
            return True
        self.fe.do(Request.SET_VRING_NUM, VringState(TX, queue.num))
        self.fe.do(Request.SET_VRING_ADDR, queue.addresses(TX))
        self.fe.do(Request.SET_VRING_BASE, VringState(TX, SENT))
        try:
            self.fe.set_kick(TX, queue.kick_fd)
        except Failure:
            return False
        return True

    @property
    def session(self) -> dict[str, object]:
        """As the port tells it."""
        session: dict[str, object] = self.port.describe["session"]
        return session


@pytest.fixture
def patient(host: Host) -> Iterator[Patient]:
    made = Patient(host)
    yield made
    made.fe.close()


def runs(p: Patient) -> bool:
    return p.port.state().up


def enabled(p: Patient) -> bool:
    p.negotiate()
    p.fe.send(Request.SET_VRING_NUM, VringState(TX, 256), need_reply=True)  # refused if it runs
    p.fe.reply()
    rings = p.session["rings"]
    assert isinstance(rings, list)
    return any(ring["index"] == TX and ring["enabled"] for ring in rings)


def has_shape(p: Patient) -> bool:
    return p.session["rings"] != []


def has_base(p: Patient) -> bool:
    p.negotiate()
    return p.fe.stop_ring(TX) == SENT


def has_features(p: Patient) -> bool:
    return p.session["features"] != []


def has_status(p: Patient) -> bool:
    return p.session["status"] != 0


def calls(p: Patient) -> bool:
    if not p.restart():
        p.fe.share_memory()
        assert p.restart()
    p.fe.enable_ring(TX)
    tx = p.fe.pairs[0].tx
    tx.take_calls()
    tx.want_calls()
    p.fe.transmit(frame(MAC_B, MAC_A))
    return tx.take_calls(5) > 0


def has_memory(p: Patient) -> bool:
    return p.restart()


def has_protocol(p: Patient) -> bool:
    return p.session["protocol_features"] != [] and p.session["mtu"] is not None


LOOK: dict[Part, Callable[[Patient], bool]] = {
    Part.RUNNING: runs,
    Part.ENABLED: enabled,
    Part.SHAPE: has_shape,
    Part.BASE: has_base,
    Part.FEATURES: has_features,
    Part.STATUS: has_status,
    Part.NOTIFIERS: calls,
    Part.MEMORY: has_memory,
    Part.PROTOCOL: has_protocol,
}


@pytest.mark.parametrize("part", Part, ids=lambda part: part.name)
@pytest.mark.parametrize("why", Reset, ids=lambda why: why.value)
def test_a_reset_takes_what_the_table_says_and_nothing_else(patient: Patient, why: Reset, part: Part) -> None:
    patient.undergo(why)
    assert LOOK[part](patient) == (part not in TAKES[why])


def test_the_document_shows_the_table() -> None:
    """A row for each part, a column for each reset, an x where it is lost."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in DOC.read_text().splitlines()
        if line.startswith("|")
    ]
    head = next(i for i, row in enumerate(rows) if row[0] == "lost by")
    assert rows[head][1:] == [why.value for why in Reset]
    shown = [[cell == "x" for cell in row[1:]] for row in rows[head + 2 : head + 2 + len(Part)]]
    assert shown == [[part in TAKES[why] for why in Reset] for part in Part]
