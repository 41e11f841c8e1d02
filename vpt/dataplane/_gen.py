# SPDX-License-Identifier: BSD-2-Clause
"""Packet generator and receiver on an App; the loops are C's, a slice of time at a time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from vpt.dataplane._app import App
from vpt.dataplane._native import check, lib, mac_bytes, new

__all__ = ["Receiver", "Sender"]

_BUCKETS = 1024


def _pps(span: Any, packets: int) -> float | None:
    """Of the packets after the first ones; None: there were none."""
    took = int(span.last_ns) - int(span.first_ns)
    return (packets - int(span.first)) * 1e9 / took if took else None


class Sender:
    """What to send, and how far it has come.

    sizes: frame lengths in bytes without FCS, 60..1514, sent in turn (16 at most)
    pps: packets per second, 0.001 at least; 0: as fast as there is room. packets: in all; 0: no end
    """

    def __init__(
        self,
        app: App,
        *,
        dst: str,
        src: str,
        sizes: Sequence[int] = (60,),
        flows: int = 1,
        burst: int = 32,
        pps: float = 0,
        packets: int = 0,
        ring: int = 0,
    ) -> None:
        self._app = app
        self._ring = app._ring(ring)
        self._g = new(
            "struct vpt_gen_tx *",
            {
                "dst": list(mac_bytes(dst)),
                "src": list(mac_bytes(src)),
                "sizes": list(sizes),
                "nsizes": len(sizes),
                "flows": flows,
                "burst": burst,
                "run": 1 + secrets.randbelow((1 << 32) - 1),
                "pps": pps,
                "packets": packets,
            },
        )

    def run(self, seconds: float) -> bool:
        """Send for that long at most; True: all packets are sent."""
        rc = lib.vpt_gen_send(self._app._handle(), self._ring, self._g, int(seconds * 1e9))
        return bool(check(rc, "send"))

    @property
    def run_id(self) -> int:
        """What a Receiver knows its packets by; never 0."""
        return int(self._g.run)

    @property
    def sent(self) -> int:
        return int(self._g.sent)

    @property
    def bytes(self) -> int:
        return int(self._g.bytes)

    @property
    def full(self) -> int:
        """How often there was no room in the ring."""
        return int(self._g.full)

    @property
    def pps(self) -> float | None:
        """Packets per second from the first burst to the last; None: there was one burst at most."""
        return _pps(self._g.span, self.sent)


class Receiver:
    """What has come of Senders' packets, of each from the first on that came; 64 Senders at most.

    A micro guest that stamps its packets is a Sender, too.

    only: run_id of the Sender to count, from its first packet on; packets of all others are `other`
    """

    def __init__(self, app: App, *, ring: int = 0, only: int = 0) -> None:
        self._app = app
        self._ring = app._ring(ring)
        self._g = new("struct vpt_gen_rx *", {"only": only})

    def run(self, seconds: float, *, poll: bool = False) -> None:
        """Receive for that long; without poll it sleeps while nothing comes."""
        rc = lib.vpt_gen_recv(self._app._handle(), self._ring, self._g, int(seconds * 1e9), poll)
        check(rc, "receive")

    @property
    def received(self) -> int:
        return int(self._g.received)

    @property
    def bytes(self) -> int:
        return int(self._g.bytes)

    @property
    def timed(self) -> int:
        """Those received that have a latency: a micro guest's have none, for its clock is another."""
        return self.received - int(self._g.untimed)

    @property
    def other(self) -> int:
        """Packets that no Sender sent, or one that is not counted."""
        return int(self._g.other)

    @property
    def other_pps(self) -> float | None:
        """Those per second, as `pps`."""
        return _pps(self._g.other_span, self.other)

    @property
    def lost(self) -> int:
        """Gaps in Senders' sequence numbers that nothing has filled."""
        return int(self._g.lost)

    @property
    def late(self) -> int:
        """Packets that came after a later one: reordered. One that comes 1024 after it stays lost, too."""
        return int(self._g.late)

    @property
    def duplicate(self) -> int:
        """Packets that came again; `received` and `bytes` have them, too."""
        return int(self._g.duplicate)

    @property
    def pps(self) -> float | None:
        """Packets per second from the first to the last; None: they came together, or not at all."""
        return _pps(self._g.span, self.received)

    @property
    def seconds(self) -> float:
        """From the first packet to the last."""
        return (int(self._g.span.last_ns) - int(self._g.span.first_ns)) / 1e9

    def latency_us(self, percent: float) -> float | None:
        """Percentile of the one-way latency in microseconds, to 6%; None: no packet has one."""
        total = self.timed
        if not total:
            return None
        low, high = int(self._g.latency_min_ns), int(self._g.latency_max_ns)
        if percent <= 0 or percent >= 100:
            return (low if percent <= 0 else high) / 1000
        need, seen = total * percent / 100, 0
        for i in range(_BUCKETS):
            seen += self._g.latency[i]
            if seen >= need:
                # A bucket begins below what fell into it.
                return min(max(int(lib.vpt_gen_bucket_ns(i)), low), high) / 1000
        return high / 1000
