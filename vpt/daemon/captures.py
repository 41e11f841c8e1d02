# SPDX-License-Identifier: BSD-2-Clause
"""Captures: the methods capture.* of the control socket.

Each has a socket, by which its observer is handed the memory. A capture lives as long as its observer's
connection. It is not in the journal: it ends with vptd.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from dataclasses import dataclass
from itertools import count

from vpt.daemon import models
from vpt.daemon.aio import receive, send
from vpt.daemon.inventory import Inventory
from vpt.daemon.ports import ManagedPort
from vpt.daemon.sockets import Listener, listen_unix, peer_credentials
from vpt.dataplane import BpfInsn, Capture
from vpt.errors import ConflictError, DataplaneError, NotFoundError

__all__ = ["GREETING", "Captures"]

_log = logging.getLogger("vpt.daemon")

#: What comes with the memfd: a mark and a version.
GREETING = struct.pack("<4sI", b"VPTC", 1)

_MAX = 16
# How long an observer may take to come for what it asked for, and to take it.
_CONNECT_S = 10.0
_DIRECTIONS = {"in": 1, "out": 2, "both": 3}


@dataclass(slots=True)
class _Entry:
    id: int
    target: str
    switch: str | None  # if it is of all its ports
    capture: Capture
    listener: Listener
    ports: list[str]  # all it has seen
    pid: int | None = None
    task: asyncio.Task[None] | None = None

    def watch(self, managed: ManagedPort) -> None:
        if managed.port is not None:
            self.capture.watch(managed.port)
            self.ports.append(managed.config.name)


class Captures:
    """What is being captured, for whom. group: of the sockets, none: the process's own."""

    def __init__(self, there: Inventory, *, group: int | None) -> None:
        self._there = there
        self._group = group
        self._entries: dict[int, _Entry] = {}
        self._ids = count(1)

    async def start(self, request: models.CaptureStart) -> models.CaptureView:
        async with self._there.change:
            if len(self._entries) >= _MAX:
                raise ConflictError(
                    f"there are {_MAX} captures already",
                    hint=f"end one; whose they are: {self._there.typed('capture', '--list')}",
                )
            ports, switch = self._target(request.target)
            entry = self._open(request, switch)
            try:
                for managed in ports:
                    entry.watch(managed)
            except BaseException:
                self._close(entry)
                raise
            self._entries[entry.id] = entry
            entry.task = asyncio.create_task(self._serve(entry))
            return _view(entry)

    async def list_all(self, _request: models.Empty) -> models.CaptureList:
        return models.CaptureList(captures=[_view(entry) for entry in self._entries.values()])

    def port_added(self, managed: ManagedPort) -> None:
        """One that joins a switch joins its captures, while there is room for it."""
        for entry in self._entries.values():
            if entry.switch == managed.config.switch:
                try:
                    entry.watch(managed)
                except DataplaneError as error:
                    managed.log.warning("not in capture %d of %s: %s", entry.id, entry.target, error)

    async def stop(self) -> None:
        """End all; the engine is still there."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _target(self, name: str) -> tuple[list[ManagedPort], str | None]:
        if name in self._there.switches:
            names = sorted(self._there.switches[name].ports)
            return [self._there.ports[port] for port in names], name
        managed = self._there.ports.get(name)
        if managed is None:
            hint = f"see them with: {self._there.typed('ls')}"
            raise NotFoundError(f"no port or switch {name!r}", hint=hint)
        if managed.port is None:
            hint = self._there.typed("show", name)
            raise ConflictError(f"port {name!r} is not there: {managed.error}", hint=hint)
        return [managed], None

    def _open(self, request: models.CaptureStart, switch: str | None) -> _Entry:
        number = next(self._ids)
        capture = self._there.engine.capture(
            ring_bytes=request.buffer_bytes,
            snaplen=request.snaplen,
            directions=_DIRECTIONS[request.direction],
            filter_=[_insn(each) for each in request.filter],
        )
        try:
            listener = listen_unix(
                self._there.paths.runtime / f"capture-{number}.sock",
                mode=0o660,
                group=self._group,
                kind=socket.SOCK_SEQPACKET,
                replace_stale=True,
            )
        except BaseException:
            capture.close()
            raise
        return _Entry(number, request.target, switch, capture, listener, [])

    def _close(self, entry: _Entry) -> None:
        self._entries.pop(entry.id, None)
        entry.listener.close()
        entry.capture.close()

    async def _serve(self, entry: _Entry) -> None:
        """Give one observer the memory, and wait until it has gone."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                conn = await self._accept(entry)
            with conn:
                async with asyncio.timeout(_CONNECT_S):
                    await send(conn, GREETING, [entry.capture.fd])
                _log.info("capture=%d of %s for pid=%s", entry.id, entry.target, entry.pid)
                await receive(conn, 1)
        except TimeoutError:
            _log.warning("capture=%d of %s: nobody came for it in %.0f s", entry.id, entry.target, _CONNECT_S)
        except OSError as error:
            _log.info("capture=%d: %s", entry.id, os.strerror(error.errno or 0))
        finally:
            self._close(entry)
            _log.info("capture=%d ended", entry.id)

    async def _accept(self, entry: _Entry) -> socket.socket:
        while True:
            conn, _ = await asyncio.get_running_loop().sock_accept(entry.listener.sock)
            peer = peer_credentials(conn)
            if peer.may_control(os.geteuid(), entry.listener.group):
                entry.pid = peer.pid
                return conn
            conn.close()


def _insn(numbers: list[int]) -> BpfInsn:
    code, jt, jf, k = numbers
    return code, jt, jf, k


def _view(entry: _Entry) -> models.CaptureView:
    return models.CaptureView(
        id=entry.id, target=entry.target, ports=entry.ports, socket=entry.listener.path, pid=entry.pid
    )
