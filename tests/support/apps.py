# SPDX-License-Identifier: BSD-2-Clause
"""An app port with an application at its other end, both in this process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from support.waiting import PATIENCE_S, until
from vpt.dataplane import App, Engine, EventType, Kind, Port, RegionOptions, Switch, region_create, vec_count

BROADCAST = b"\xff" * 6
SLOTS = 256  # of a ring


def mac(i: int) -> bytes:
    """A locally administered unicast address."""
    return bytes((0x52, 0x54, 0)) + i.to_bytes(3, "big")


def ether(dst: bytes, src: bytes, payload: bytes = b"", size: int = 60) -> bytes:
    """An Ethernet frame of at least `size` bytes, with an experimental ethertype."""
    return (dst + src + b"\x88\xb5" + payload).ljust(size, b"\0")


def pump(engine: Engine, ports: dict[int, Port]) -> None:
    """What the daemon does on STATUS events."""
    for event in engine.events():
        if event.type is EventType.STATUS and event.port_id in ports:
            ports[event.port_id].ring_status()


class AppPeer:
    """One app port, its region, its eventfds and its application. close() leaves nothing behind."""

    def __init__(self, switch: Switch, name: str, *, pairs: int = 1, **port_options: object) -> None:
        self.switch = switch
        self.opts = self.options(name, pairs)
        with contextlib.ExitStack() as undo:
            self.region_fd = region_create(self.opts)
            undo.callback(os.close, self.region_fd)
            self.kick_fds = [self._eventfd(undo) for _ in range(vec_count(pairs))]
            self.intr_fds = [self._eventfd(undo) for _ in range(vec_count(pairs))]
            self.port = switch.add_port(name, Kind.APP, pairs=pairs, **port_options)  # type: ignore[arg-type]
            undo.callback(self.port.delete)
            self.port.ring_attach(self.region_fd, self.opts, self.kick_fds, self.intr_fds)
            self._undo = undo.pop_all()
        self._app: App | None = None

    def options(self, name: str, pairs: int) -> RegionOptions:
        """The region's shape."""
        return RegionOptions(name, pairs=pairs, num_slots=SLOTS)

    @staticmethod
    def _eventfd(undo: contextlib.ExitStack) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        undo.callback(os.close, fd)
        return fd

    @property
    def app(self) -> App:
        assert self._app is not None, "connect() first"
        return self._app

    def open(self, features: int = 0) -> App:
        """Open the application's side; the handshake is to come."""
        self._app = App(self.region_fd, self.kick_fds, self.intr_fds, features)
        self._undo.callback(self._app.close)
        return self._app

    def connect(self, features: int = 0) -> App:
        """Open the application's side and go through the handshake."""
        app = self.open(features)
        self.handshake()
        return app

    def handshake(self) -> None:
        def done() -> bool:
            pump(self.switch.engine, {self.port.id: self.port})
            return self.app.step()

        until(done, f"the handshake of {self.port.name}")

    def recv(self, ring: int = 0) -> bytes:
        """The next packet; it must come."""
        deadline = time.monotonic() + PATIENCE_S
        while (frame := self.app.recv(ring)) is None:
            assert time.monotonic() < deadline, f"{self.port.name}: no packet"
            self.app.wait(ring, timeout=0.1)
        return frame

    def drain(self, ring: int = 0) -> Iterator[bytes]:
        """All packets that are there now."""
        while (frame := self.app.recv(ring)) is not None:
            yield frame

    def close(self) -> None:
        self._undo.close()
