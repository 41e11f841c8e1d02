# SPDX-License-Identifier: BSD-2-Clause
"""Packet generator and receiver on app ports of a running vptd: what `vpt gen` does."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vpt.daemon.client import Client
from vpt.daemon.transports.unix import AppLink, open_app
from vpt.dataplane import App, Feature, Receiver, Sender
from vpt.errors import ConflictError, ExistsError, UsageError, VptError
from vpt.percentile import tells

__all__ = [
    "PERCENTILES",
    "RECEIVER_MAC",
    "Limits",
    "Peer",
    "Traffic",
    "plug",
    "random_mac",
    "receive",
    "send",
    "sender_of",
]

# Whom a sender finds without being told. All others have an address of their own, so that several may run.
RECEIVER_MAC = "52:54:00:67:6e:02"
_OWN_MAC = "02:67:6e"
_OWN_NAME = re.compile(r"gen-(\d+)-(?:recv|send)")

PERCENTILES = (0, 10, 50, 90, 99, 100)

# Packets published together: so many without a rate; with one, those that are due in so short a time.
_BURST, _BURST_NS = 32, 10_000
# Between two looks at the clock, the other thread and Ctrl-C; also how old a live line's numbers are.
_SLICE_S = 0.2

Report = Callable[[float, int, dict[str, int]], None]
"""Called about once a second: seconds since the last call, packets so far, other counts so far by name."""


class Peer(Protocol):
    """A connection that packets depend on: to vptd, or to a port."""

    def hung_up(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send: frame lengths in bytes without FCS, in turn; pps 0: as fast as there is room.

    burst: packets published together; 0: 32, but with a rate no more than are due in 10 us, so that they are
    evenly apart.
    """

    dst: str = RECEIVER_MAC
    src: str = field(default_factory=lambda: random_mac())
    sizes: tuple[int, ...] = (60,)
    flows: int = 1
    burst: int = 0
    pps: float = 0

    @property
    def together(self) -> int:
        """`burst`, chosen if it is 0."""
        due = max(1, int(self.pps * _BURST_NS / 1e9)) if self.pps else _BURST
        return self.burst or min(_BURST, due)


@dataclass(slots=True)
class Limits:
    """When to end; the first that is met does. stop may be set from another thread or a signal handler.

    peers: the end of one of them is one more.
    """

    packets: int = 0
    seconds: float = 0.0
    peers: tuple[Peer, ...] = ()
    stop: threading.Event = field(default_factory=threading.Event)

    def slices(self) -> Iterator[float]:
        """Lengths of time to work for, until it is time to end."""
        deadline = time.monotonic() + self.seconds
        while not self.stop.is_set():
            left = deadline - time.monotonic() if self.seconds else _SLICE_S
            if left <= 0 or any(peer.hung_up() for peer in self.peers):
                return
            yield min(left, _SLICE_S)


def random_mac() -> str:
    """An address that no other port has."""
    return f"{_OWN_MAC}:{secrets.token_bytes(3).hex(':')}"


@contextlib.contextmanager
def plug(
    vptd: Client, role: Literal["recv", "send"], *, switch: str | None, port: str | None, mac: str
) -> Iterator[AppLink]:
    """The app port to work on: an existing one, or one made on that switch for as long as we need it."""
    if port is not None:
        path = _usable(vptd, vptd.call("port.show", name=port))
        with open_app(path, features=int(Feature.EVENT_IDX)) as link:
            yield link
        return
    _clear(vptd)
    name = f"gen-{os.getpid()}-{role}"
    try:
        view = vptd.call("port.add", name=name, switch=switch, kind="app", mac=mac)
    except ExistsError as error:
        raise ExistsError(
            error.message,
            hint="end the one that runs there, or use an app port: "
            + vptd.typed("gen", role, "--port", "NAME"),
        ) from None
    try:
        with open_app(view["socket"], features=int(Feature.EVENT_IDX)) as link:
            yield link
    finally:
        # The next vptd restores the ports of one that has ended; the next generator clears this one away.
        with contextlib.suppress(VptError):
            vptd.call("port.del", name=name, if_exists=True)


def _clear(vptd: Client) -> None:
    """Delete ports that generators left behind: killed ones, and those whose vptd ended before them."""
    for port in vptd.call("port.list")["ports"]:
        made = _OWN_NAME.fullmatch(port["name"])
        ours = port["kind"] == "app" and (port["mac"] or "").startswith((_OWN_MAC, RECEIVER_MAC))
        # One in use is left alone: the process may be in another pid namespace.
        if made and ours and port["state"] != "up" and not _runs(int(made[1])):
            vptd.call("port.del", name=port["name"], if_exists=True)


def _runs(pid: int) -> bool:
    """Is that a process that runs, other than this one?"""
    if pid == os.getpid():  # it has not made the port yet: an earlier process had that number
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _usable(vptd: Client, port: dict[str, Any]) -> str:
    """The socket of an app port on which packets flow."""
    name = port["name"]
    if port["kind"] != "app":
        raise UsageError(
            f"port {name} is of kind {port['kind']}, which is for others to use",
            hint="name an app port, or the switch, for one to be made: --switch " + port["switch"],
        )
    if port["state"] in ("broken", "failed"):
        raise ConflictError(
            f"port {name} is {port['state']}: {port['reason']}", hint=vptd.typed("show", name)
        )
    if port["link"] == "down":
        raise ConflictError(
            f"the link of port {name} is down: vptd takes nothing from it, and delivers nothing",
            hint=vptd.typed("port", "set", name, "--link", "up"),
        )
    return str(port["socket"])


class _Ticker:
    """Calls a Report about once a second."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._last = time.monotonic()

    def tick(self, packets: int, beside: dict[str, int]) -> None:
        now = time.monotonic()
        if self._report is not None and now - self._last >= 1.0:
            self._report(now - self._last, packets, beside)
            self._last = now


def sender_of(app: App, traffic: Traffic, packets: int) -> Sender:
    """For so many packets; 0: no end."""
    return Sender(
        app,
        dst=traffic.dst,
        src=traffic.src,
        sizes=traffic.sizes,
        flows=traffic.flows,
        burst=traffic.together,
        pps=traffic.pps,
        packets=packets,
    )


def send(sender: Sender, limits: Limits, report: Report | None = None) -> dict[str, Any]:
    """Send until a limit is met; what was sent, as data."""
    ticker, begin = _Ticker(report), time.monotonic()
    for seconds in limits.slices():
        if sender.run(seconds):
            break
        ticker.tick(sender.sent, {})
    took = time.monotonic() - begin
    return {
        "sent": sender.sent,
        "bytes": sender.bytes,
        "ring_full": sender.full,
        "seconds": round(took, 6),
        "pps": _rounded(sender.pps),
    }


def receive(
    receiver: Receiver, limits: Limits, report: Report | None = None, *, poll: bool = False
) -> dict[str, Any]:
    """Receive until a limit is met; what came, as data. Latencies are one way, of one host's clock."""
    ticker = _Ticker(report)
    for seconds in limits.slices():
        receiver.run(seconds, poll=poll)
        ticker.tick(receiver.received, {"lost": receiver.lost, "other": receiver.other})
        if limits.packets and receiver.received - receiver.duplicate + receiver.lost >= limits.packets:
            break
    return {
        "received": receiver.received,
        "bytes": receiver.bytes,
        "lost": receiver.lost,
        "late": receiver.late,
        "duplicate": receiver.duplicate,
        "other": receiver.other,
        "other_pps": _rounded(receiver.other_pps),
        "seconds": round(receiver.seconds, 6),
        "pps": _rounded(receiver.pps),
        # None: too few packets have come for it whose sender has this host's clock.
        "latency_us": {
            f"p{percent}": receiver.latency_us(percent) if tells(percent, receiver.timed) else None
            for percent in PERCENTILES
        },
    }


def _rounded(pps: float | None) -> float | None:
    return None if pps is None else round(pps, 1)
