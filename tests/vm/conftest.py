# SPDX-License-Identifier: BSD-2-Clause
"""Guests for the VM tests: an image built once, a data plane in this process, passthrough ports for QEMU."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from support.waiting import PATIENCE_S, until
from vpt.daemon.launch import launch, shut_down
from vpt.daemon.runtime import RuntimePaths, locate
from vpt.dataplane import (
    App,
    Engine,
    Kind,
    Policy,
    Port,
    RegionOptions,
    StatsReader,
    Switch,
    region_create,
    vec_count,
)
from vpt.guest import READY_MARK, Guest, Image, build_image, cache_dir
from vpt.qemu import Ivshmem, Nic, Qemu, find_qemu, probe_accel


class Bundle(Protocol):
    """What an ivshmem server hands out."""

    region: int
    kicks: list[int]
    interrupts: list[int]


class Fds:
    """A region and its eventfds; closed together."""

    def __init__(self, opts: RegionOptions) -> None:
        count = vec_count(opts.pairs)
        self.opts = opts
        self.region = region_create(opts)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.kicks = [os.eventfd(0, flags) for _ in range(count)]
        self.interrupts = [os.eventfd(0, flags) for _ in range(count)]

    def close(self) -> None:
        for fd in (self.region, *self.kicks, *self.interrupts):
            os.close(fd)


class IvshmemServer:
    """The smallest server that QEMU's ivshmem-doorbell takes: one guest, and the host as its only peer."""

    def __init__(self, path: Path, fds: Bundle) -> None:
        self.nic = Ivshmem(path, len(fds.kicks))
        self._fds = fds
        self._conn: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._hello(conn)
            self._conn = conn

    def _hello(self, conn: socket.socket) -> None:
        def say(value: int, *fds: int) -> None:
            socket.send_fds(conn, [struct.pack("<q", value)], list(fds))

        with contextlib.suppress(BrokenPipeError):
            say(0)  # version
            say(1)  # the guest's id
            say(-1, self._fds.region)
            for fd in self._fds.kicks:
                say(0, fd)
            for fd in self._fds.interrupts:
                say(1, fd)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        if self._conn is not None:
            self._conn.close()


@dataclass
class GuestPort:
    """A passthrough port with everything that belongs to it."""

    port: Port
    fds: Fds
    server: IvshmemServer

    @property
    def nic(self) -> Ivshmem:
        return self.server.nic


class Host:
    """A data plane with one switch, whose events are acted on by a thread as vptd would."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vpt-vm-"))
        self.engine = Engine(workers=1)
        self.switch: Switch = self.engine.add_switch("sw")
        self.stats = StatsReader(self.engine.stats_fd)
        self.lock = threading.Lock()
        self.broken: list[Port] = []
        self._ports: dict[int, Port] = {}
        self._open: list[Fds | IvshmemServer | App] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._events)
        self._thread.start()

    def _events(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.engine.event_fd, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ, "end")
            while not any(key.data for key, _ in selector.select()):
                with self.lock:
                    for event in list(self.engine.events()):
                        self._act(event.type.label, self._ports.get(event.port_id))

    def _act(self, what: str, port: Port | None) -> None:
        if port is None or port.deleted:
            return
        if what == "status":
            port.ring_status()
        else:
            self.broken.append(port)

    def _add(self, kind: Kind, opts: RegionOptions, policy: Policy | None) -> tuple[Port, Fds]:
        fds = Fds(opts)
        self._open.append(fds)
        with self.lock:
            port = self.switch.add_port(opts.name, kind, opts.pairs, policy, mtu=opts.mtu, mac=opts.mac)
            self._ports[port.id] = port
            port.ring_attach(fds.region, opts, fds.kicks, fds.interrupts)
        return port, fds

    def passthrough(self, opts: RegionOptions, policy: Policy | None = None) -> GuestPort:
        port, fds = self._add(Kind.PASSTHROUGH, opts, policy)
        return GuestPort(port, fds, self.ivshmem_server(opts.name, fds))

    def ivshmem_server(self, name: str, fds: Bundle) -> IvshmemServer:
        server = IvshmemServer(self.folder / f"{name}.sock", fds)
        self._open.append(server)
        return server

    def reattach(self, guest_port: GuestPort) -> None:
        """What a daemon that comes back does: the same region under a new port."""
        old, opts = guest_port.port, guest_port.fds.opts
        with self.lock:
            old.delete()
            port = self.switch.add_port(opts.name, old.kind, opts.pairs, mtu=opts.mtu, mac=opts.mac)
            self._ports[port.id] = port
            port.ring_attach(guest_port.fds.region, opts, guest_port.fds.kicks, guest_port.fds.interrupts)
        guest_port.port = port

    def app(self, name: str, features: int = 0) -> App:
        _, fds = self._add(Kind.APP, RegionOptions(name), None)
        app = App(fds.region, fds.kicks, fds.interrupts, features)
        self._open.append(app)
        until(app.step, f"the handshake of app {name}")
        return app

    def counters(self, port: Port) -> Counter[str]:
        return self.stats.read().port(port.id)

    def close(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for thing in reversed(self._open):
            thing.close()
        self.stats.close()
        self.engine.close()
        os.close(self._wake)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    return find_qemu()


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image()


@pytest.fixture(scope="session")
def accel(image: Image, qemu: Qemu) -> str:
    return probe_accel(image.kernel.vmlinuz, image.initrd, qemu, marker=READY_MARK, cache=cache_dir()).name


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture(scope="module")
def paths() -> Iterator[RuntimePaths]:
    """Where a vptd runs that was started as `vpt` does it."""
    folder = tempfile.mkdtemp(prefix="vpt-vm-")
    paths = locate(folder)
    launch(paths, [], PATIENCE_S)
    yield paths
    shut_down(paths, keep=False, timeout=PATIENCE_S)
    shutil.rmtree(folder, ignore_errors=True)  # the keeper takes its socket away meanwhile


@pytest.fixture(scope="module")
def boot(image: Image, qemu: Qemu, accel: str) -> Iterator[Callable[..., Guest]]:
    """boot(name, *nics, extra=()): a guest that is being started; wait_ready() is the caller's."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *nics: Nic, extra: tuple[str, ...] = ()) -> Guest:
            guest = Guest(image, qemu, name=name, accel=accel, nics=nics, extra=extra)  # type: ignore[arg-type]
            return stack.enter_context(guest)

        yield start


@pytest.fixture(scope="module")
def new_fds() -> Iterator[Callable[[RegionOptions], Fds]]:
    """A region with its eventfds, which no port serves."""
    with contextlib.ExitStack() as stack:

        def make(opts: RegionOptions) -> Fds:
            fds = Fds(opts)
            stack.callback(fds.close)
            return fds

        yield make
