# SPDX-License-Identifier: BSD-2-Clause
"""A stage for hostile acts: one port for the villain, two for neighbours who must not notice.

Every act is followed by the same questions: do the neighbours' packets still all arrive, has anything leaked,
is there a log line but no flood of them, and is the port's state one of those it may be in.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.host import Host, VhostPort
from support.leaks import until_open
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import USUAL, VNET_HDR, FrontEnd

MAX_LOG_LINES = 12  # of each level: ten at once, one more every five seconds
FAULTS = (
    "protocol_errors",
    "refused",
    "broken",
    "second_clients",
    "features_lost",
)  # the transport's counters of what is worth a line
MAC_X = b"\x52\x54\0\0\0\x99"  # the villain's


def good(fe: FrontEnd) -> int:
    """Address of a header and a frame that would be forwarded: 112 bytes."""
    at = fe.memory.alloc(2048, 64)
    fe.memory.write(at, bytes(VNET_HDR) + frame(BROADCAST, MAC_X, 0, 100))
    return at


class Line(str):
    """What was logged, and at which level."""

    __slots__ = ("level",)
    level: int


def most_of_a_level(lines: list[Line]) -> int:
    """Levels have limits of their own."""
    return max(Counter(line.level for line in lines).values(), default=0)


class _Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, lines: list[Line]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        line = Line(record.getMessage())
        line.level = record.levelno
        self._lines.append(line)


@dataclass
class Scene:
    """The villain's port and the neighbours. lines: what was logged."""

    host: Host
    villain: VhostPort
    one: FrontEnd
    two: FrontEnd
    lines: list[Line]
    layout: int = 0  # features of the ring layout that the villain uses
    ports: tuple[VhostPort, ...] = ()  # the neighbours'
    _sent: int = 0
    _open: Counter[str] = field(default_factory=Counter)
    _guests: list[FrontEnd] = field(default_factory=list)
    _handler: logging.Handler = field(default_factory=logging.NullHandler)

    @classmethod
    def build(cls, directory: Path, **villain: Any) -> Scene:
        """Neighbours at work, the villain's port waiting."""
        host = Host(directory)
        lines: list[Line] = []
        log = logging.getLogger("vpt.test")
        log.setLevel(logging.INFO)
        handler = _Lines(lines)
        log.addHandler(handler)
        a, b = host.vhost("a", mac=MAC_A), host.vhost("b", mac=MAC_B)
        one, two = FrontEnd(a.path).start(), FrontEnd(b.path).start()
        scene = cls(host, host.vhost("x", **villain), one, two, lines, ports=(a, b), _handler=handler)
        scene.neighbours_forward()
        scene._open = host.open_things()
        return scene

    def close(self) -> None:
        """Send everybody home."""
        logging.getLogger("vpt.test").removeHandler(self._handler)
        for fe in [*self._guests, self.one, self.two]:
            fe.close()
        self.host.close()

    def enter(self, **options: Any) -> FrontEnd:
        """A connection to the villain's port."""
        options["features"] = int(options.get("features", USUAL)) | self.layout
        self._guests.append(FrontEnd(self.villain.path, **options))
        return self._guests[-1]

    def neighbours_forward(self, count: int = 64) -> None:
        """All packets between the neighbours arrive, in order, and are counted: none twice, none dropped."""
        first = self._sent
        self._sent += count
        before = self._neighbours_counters()
        self.one.transmit(*(frame(MAC_B, MAC_A, n, 100) for n in range(first, self._sent)))
        got: list[int] = []
        while len(got) < count:
            got += [number(r.frame) for r in self.two.receive() if r.frame[:12] == MAC_B + MAC_A]
        assert got == list(range(first, self._sent))
        counted = self._neighbours_counters() - before
        assert counted["a", "tx_packets"] == count
        assert counted["b", "rx_packets"] >= count  # the villain may have sent some, too
        assert not [name for port, name in counted if port == "a" and name.startswith("tx_drop")]

    def _neighbours_counters(self) -> Counter[tuple[str, str]]:
        read = self.host.stats.read()
        return Counter(
            {(p.port.name, name): n for p in self.ports for name, n in read.port(p.port.id).items()}
        )

    def villain_leaves(self) -> None:
        """All connections to the villain's port end."""
        for fe in self._guests:
            fe.close()
        self._guests.clear()
        self.villain.until_left()

    def check(self, *, logged: bool = True) -> None:
        """The questions that follow every act, and a guest that behaves finds the port as new.

        logged: there must be a line and a named counter; what was counted as a fault has a line anyhow.
        """
        self.neighbours_forward()
        faults = {name: n for name, n in self.villain.faults.items() if name in FAULTS}
        self.villain_leaves()
        until_open(self._open)
        said = [line for line in self.lines if line.startswith(f"port={self.villain.port.name} ")]
        assert most_of_a_level(said) <= MAX_LOG_LINES
        if logged or faults:
            assert faults
            assert any("dropped" in line or "broken" in line or "refused" in line for line in said), said
        assert not self.villain.state().up
        with FrontEnd(self.villain.path) as fe:
            fe.start()
            assert self.villain.state().up
            fe.transmit(frame(MAC_B, MAC_X, 4711))
            until(lambda: any(number(r.frame) == 4711 for r in self.two.poll()), "the revived port's packet")
