# SPDX-License-Identifier: BSD-2-Clause
"""A micro guest on a passthrough port of a real switch, all in the test's process but QEMU."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from support.micro_host import IvshmemSocket
from vpt.bench.micro import Machine, MicroGuest
from vpt.dataplane import (
    Engine,
    EventType,
    Kind,
    Policy,
    Port,
    RegionOptions,
    StatsReader,
    Switch,
    region_create,
    vec_count,
)
from vpt.qemu import Ivshmem

__all__ = ["MicroRig"]


class MicroRig:
    """An engine with one worker, a switch, and guests plugged into it. A context manager."""

    def __init__(self, folder: Path, accel: Literal["kvm", "tcg"]) -> None:
        self._folder = folder
        self._accel = accel
        self._undo = contextlib.ExitStack()
        self.engine = self._undo.enter_context(Engine())
        self.switch: Switch = self.engine.add_switch("sw")
        self._stats = self._undo.enter_context(StatsReader(self.engine.stats_fd))
        self._ports: dict[int, Port] = {}
        self._sockets: list[IvshmemSocket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._undo.close()

    def _keep(self, fd: int) -> int:
        self._undo.callback(os.close, fd)
        return fd

    def _eventfds(self) -> list[int]:
        return [self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(vec_count(1))]

    def guest(
        self, name: str, mac: str, policy: Policy | None = None, qmp: Path | None = None
    ) -> tuple[MicroGuest, Port]:
        """A booted guest whose port is up, and lossless: what it sends waits in its ring for room."""
        opts = RegionOptions(name, mac=mac)
        port = self.switch.add_port(name, Kind.PASSTHROUGH, policy=policy, lossless=True, mac=mac)
        region, kicks, interrupts = self._keep(region_create(opts)), self._eventfds(), self._eventfds()
        port.ring_attach(region, opts, kicks, interrupts)
        self._ports[port.id] = port
        socket = IvshmemSocket(self._folder / name, region, kicks, interrupts)
        self._undo.callback(socket.close)
        self._sockets.append(socket)
        machine = Machine(accel=self._accel, nic=Ivshmem(socket.path, vectors=len(kicks)), qmp=qmp)
        guest = self._undo.enter_context(MicroGuest(machine, serve=self._serve))
        guest.open()
        return guest, port

    def _serve(self) -> None:
        """What the daemon does: let QEMU in, answer status changes."""
        for socket in self._sockets:
            socket.serve()
        for event in self.engine.events():
            if event.type is EventType.STATUS:
                self._ports[event.port_id].ring_status()

    def counters(self, port: Port) -> Counter[str]:
        return self._stats.read().port(port.id)
