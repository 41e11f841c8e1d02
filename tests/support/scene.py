# SPDX-License-Identifier: BSD-2-Clause
"""A stage for hostile acts: one port for the villain, two for neighbours who must not notice.

Every act is followed by the same questions: do the neighbours' packets still all arrive, has anything leaked,
is there a log line but no flood of them, and is the port's state one of those it may be in. Beside it, from
the first moment of the scene to its last, a stream flows whose every packet must have come at its time.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.host import LOG, Host, VhostPort
from support.leaks import until_open
from support.stream import HostStream
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


@contextlib.contextmanager
def logged() -> Iterator[list[Line]]:
    """What the ports of a Host log meanwhile."""
    lines: list[Line] = []
    handler = _Lines(lines)
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    try:
        yield lines
    finally:
        LOG.removeHandler(handler)


class Neighbours:
    """Two ports at work beside whoever misbehaves: front-ends with addresses that nobody else has."""

    def __init__(
        self, host: Host, names: tuple[str, str] = ("a", "b"), macs: tuple[bytes, bytes] = (MAC_A, MAC_B)
    ) -> None:
        self._host = host
        self._macs = macs
        self._sent = 0
        self.ports = [host.vhost(name, mac=mac) for name, mac in zip(names, macs, strict=True)]
        self.one, self.two = (FrontEnd(port.path).start() for port in self.ports)
        self.forward()

    def close(self) -> None:
        """They go."""
        self.one.close()
        self.two.close()

    def forward(self, count: int = 64) -> None:
        """All packets between them arrive, in order, and are counted: none twice, none dropped."""
        a, b = self._macs
        first = self._sent
        self._sent += count
        before = self._counters()
        self.one.transmit(*(frame(b, a, n, 100) for n in range(first, self._sent)))
        got: list[int] = []
        while len(got) < count:
            got += [number(r.frame) for r in self.two.receive() if r.frame[:12] == b + a]
        assert got == list(range(first, self._sent))
        counted = self._counters() - before
        assert counted[0, "tx_packets"] == count
        assert counted[1, "rx_packets"] >= count  # others may have sent some, too
        assert not [name for which, name in counted if which == 0 and name.startswith("tx_drop")]

    def _counters(self) -> Counter[tuple[int, str]]:
        read = self._host.stats.read()
        return Counter(
            {
                (which, name): n
                for which, p in enumerate(self.ports)
                for name, n in read.port(p.port.id).items()
            }
        )


@dataclass
class Scene:
    """The villain's port and the neighbours. lines: what was logged."""

    host: Host
    villain: VhostPort
    neighbours: Neighbours
    lines: list[Line]
    layout: int = 0  # features of the ring layout that the villain uses
    _open: Counter[str] = field(default_factory=Counter)
    _guests: list[FrontEnd] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def build(cls, directory: Path, **villain: Any) -> Scene:
        """Neighbours at work, the villain's port waiting."""
        stack = contextlib.ExitStack()
        host = stack.enter_context(Host(directory))
        lines = stack.enter_context(logged())
        stream = stack.enter_context(contextlib.closing(HostStream(host)))
        neighbours = stack.enter_context(contextlib.closing(Neighbours(host)))
        stack.callback(stream.check)
        scene = cls(host, host.vhost("x", **villain), neighbours, lines, _stack=stack)
        scene._open = host.open_things()
        return scene

    @property
    def one(self) -> FrontEnd:
        """A neighbour."""
        return self.neighbours.one

    @property
    def two(self) -> FrontEnd:
        """The other one."""
        return self.neighbours.two

    def close(self) -> None:
        """Send everybody home."""
        for fe in self._guests:
            fe.close()
        self._stack.close()

    def enter(self, **options: Any) -> FrontEnd:
        """A connection to the villain's port."""
        options["features"] = int(options.get("features", USUAL)) | self.layout
        self._guests.append(FrontEnd(self.villain.path, **options))
        return self._guests[-1]

    def neighbours_forward(self, count: int = 64) -> None:
        """All their packets arrive."""
        self.neighbours.forward(count)

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
