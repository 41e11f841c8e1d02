# SPDX-License-Identifier: BSD-2-Clause
"""Regions that are kept for their peers, with the sockets that hand them out.

The keeper process is a shelf with a socket; a vptd that runs without keeper has the shelf itself. Standard
library only.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self

from vpt.daemon.ratelimit import PortLog
from vpt.daemon.sockets import PeerCredentials, listen_unix
from vpt.daemon.transports.ivshmem import IvshmemServer
from vpt.daemon.transports.peer import Bundle, PeerServer
from vpt.daemon.transports.unix import AppServer
from vpt.errors import ExistsError, UsageError

__all__ = ["Holder", "Record", "Shelf"]

_SERVERS: dict[str, type[PeerServer]] = {"ivshmem": IvshmemServer, "app": AppServer}
_SOCKET_KINDS = {"ivshmem": socket.SOCK_STREAM, "app": socket.SOCK_SEQPACKET}


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a kept port apart from its fds.

    status_ofs: where in the region the peer's status word is
    owned:      a stale socket at the path is ours to remove
    meta:       the daemon's; not looked at here
    """

    name: str
    protocol: Literal["ivshmem", "app"]
    socket: str
    status_ofs: int
    mode: int = 0o600
    group: int | None = None
    owned: bool = False
    meta: dict[str, Any] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        try:
            record = cls(**wire)
        except TypeError as error:
            raise UsageError(f"not a record: {error}") from None
        if record.protocol not in _SERVERS:
            raise UsageError(f"unknown protocol {record.protocol!r}")
        return record


class Holder(Protocol):
    """Who keeps regions for vptd: a Shelf of its own, or the keeper."""

    async def put(self, record: Record, bundle: Bundle) -> None:
        """Keep duplicates of the bundle's fds and serve them at the record's socket."""

    async def fetch(self, name: str) -> tuple[Record, Bundle] | None:
        """What is kept under that name; the bundle is the caller's."""

    async def drop(self, name: str) -> None:
        """Stop serving and forget. Nothing happens if nothing is kept under that name."""

    async def names(self) -> list[str]:
        """Of everything that is kept."""

    def peer(self, name: str) -> PeerCredentials | None:
        """Who is connected."""

    def second_peers(self, name: str) -> int:
        """How many were refused meanwhile."""


@dataclass(slots=True)
class _Kept:
    record: Record
    bundle: Bundle
    server: PeerServer


class Shelf:
    """Keeps bundles. on_change(name) is called after a peer has come or gone, or others have been refused."""

    def __init__(self, log: logging.Logger, on_change: Callable[[str], None] | None = None) -> None:
        self._log = log
        self._on_change = on_change or (lambda _name: None)
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def in_use(self) -> bool:
        """Is any peer connected?"""
        return any(kept.server.peer for kept in self._kept.values())

    async def put(self, record: Record, bundle: Bundle) -> None:
        if record.name in self._kept:
            raise ExistsError(f"a port {record.name!r} is kept already")
        ours = bundle.duplicate()
        try:
            listener = listen_unix(
                record.socket,
                mode=record.mode,
                group=record.group,
                kind=_SOCKET_KINDS[record.protocol],
                replace_stale=record.owned,
            )
        except BaseException:
            ours.close()
            raise
        server = _SERVERS[record.protocol](
            listener,
            ours,
            status_ofs=record.status_ofs,
            log=PortLog(self._log, record.name),
            on_change=lambda: self._on_change(record.name),
        )
        self._kept[record.name] = _Kept(record, ours, server)
        server.start()

    async def fetch(self, name: str) -> tuple[Record, Bundle] | None:
        found = self.find(name)
        return (found[0], found[1].duplicate()) if found else None

    def find(self, name: str) -> tuple[Record, Bundle] | None:
        """As fetch(), but the bundle stays the shelf's."""
        kept = self._kept.get(name)
        return (kept.record, kept.bundle) if kept else None

    async def drop(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            await kept.server.stop()
            kept.server.closer.let_go(kept.bundle.fds())  # the peer may make the last close() wait

    async def names(self) -> list[str]:
        return sorted(self._kept)

    def peer(self, name: str) -> PeerCredentials | None:
        kept = self._kept.get(name)
        return kept.server.peer if kept else None

    def second_peers(self, name: str) -> int:
        kept = self._kept.get(name)
        return kept.server.second_peers if kept else 0

    async def close(self) -> None:
        for name in list(self._kept):
            await self.drop(name)
