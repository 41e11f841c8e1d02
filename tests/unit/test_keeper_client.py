# SPDX-License-Identifier: BSD-2-Clause
"""vptd's client of the keeper, and that the keeper outlives who started it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.keeper import QemuEnd, counts_alike, gone_from, record, same_file
from support.vptd import gone
from support.waiting import until
from vpt.daemon.keeper_client import KeeperClient
from vpt.daemon.runtime import RuntimePaths
from vpt.daemon.transports.peer import Bundle
from vpt.daemon.transports.ring import create_bundle
from vpt.dataplane import RegionOptions
from vpt.errors import DaemonError, ExistsError, VptError

LOG = logging.getLogger("test")


class Connection(KeeperClient):
    """A client that takes down what it is told."""

    def __init__(self, folder: Path, linger_s: float = 5.0) -> None:
        self.changed: list[str] = []
        self.lost = 0
        super().__init__(
            RuntimePaths(folder, folder),
            linger_s=linger_s,
            log=LOG,
            on_change=self.changed.append,
            on_lost=self._note_loss,
        )

    def _note_loss(self) -> None:
        self.lost += 1


def in_loop(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


@pytest.mark.parametrize("pairs", [32], indirect=True)
def test_what_one_vptd_puts_the_next_one_fetches(folder: Path, bundle: Bundle) -> None:
    """131 descriptors travel there and back, and the keeper is the same process all along."""

    async def first() -> int:
        keeper = Connection(folder)
        await keeper.connect()
        assert await keeper.fetch("p") is None
        await keeper.put(record(folder / "s"), bundle)
        with pytest.raises(ExistsError):
            await keeper.put(record(folder / "s"), bundle)
        assert await keeper.names() == ["p"]
        pid = keeper.pid
        await keeper.close()
        assert keeper.lost == 0, "hanging up is no loss"
        assert pid
        return pid

    async def second(pid: int) -> None:
        keeper = Connection(folder)
        await keeper.connect()
        assert keeper.pid == pid
        found = await keeper.fetch("p")
        assert found is not None
        kept, theirs = found
        assert kept == record(folder / "s")
        assert same_file(theirs.memory, bundle.memory)
        for a, b in zip(theirs.fds()[1:], bundle.fds()[1:], strict=True):
            assert counts_alike(a, b)
        theirs.close()
        await keeper.drop("p")
        assert not (folder / "s").exists()
        assert await keeper.names() == []
        await keeper.stop_keeper()

    pid = in_loop(first())
    in_loop(second(pid))
    until(lambda: gone(pid), "the keeper to end when told")
    assert not (folder / "keeper.sock").exists()


def test_peers_come_and_go_by_name(folder: Path, bundle: Bundle) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        await keeper.put(record(folder / "s"), bundle)
        qemu = QemuEnd(folder / "s")
        while not keeper.changed:
            await asyncio.sleep(0.01)
        peer = keeper.peer("p")
        assert peer is not None
        assert peer.pid == os.getpid()
        with QemuEnd(folder / "s") as other:
            assert gone_from(other.sock)
        while not keeper.second_peers("p"):
            await asyncio.sleep(0.01)
        assert len(keeper.changed) == 1, "who was refused has not come"
        qemu.close()
        while len(keeper.changed) < 2:
            await asyncio.sleep(0.01)
        assert keeper.peer("p") is None
        await keeper.stop_keeper()

    in_loop(run())


def test_a_keeper_with_a_guest_stays_and_one_without_goes(folder: Path, bundle: Bundle) -> None:
    async def run() -> int:
        keeper = Connection(folder, linger_s=0.3)
        await keeper.connect()
        await keeper.put(record(folder / "s"), bundle)
        pid = keeper.pid
        qemu = QemuEnd(folder / "s")
        assert qemu.message() == (0, None)
        await keeper.close()
        # Several times what it would linger.
        await asyncio.sleep(1.2)
        assert pid is not None
        assert not gone(pid), "it has a guest"
        qemu.close()
        return pid

    pid = in_loop(run())
    until(lambda: gone(pid), "the keeper to end by itself")
    assert not (folder / "s").exists()


def test_many_names_are_listed_page_by_page(folder: Path) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        bundle = create_bundle(RegionOptions("p", num_slots=64, buf_size=256))
        names = [f"p{i:03}" for i in range(205)]
        for name in names:
            await keeper.put(record(folder / name, name=name), bundle)
        assert await keeper.names() == names
        bundle.close()
        await keeper.stop_keeper()

    in_loop(run())


def test_the_loss_of_the_keeper_is_noticed(folder: Path) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        assert keeper.pid
        os.kill(keeper.pid, signal.SIGKILL)
        while not keeper.lost:
            await asyncio.sleep(0.01)
        with pytest.raises(DaemonError):
            await keeper.names()
        await keeper.connect()
        assert await keeper.names() == []
        await keeper.stop_keeper()

    in_loop(run())


def test_a_keeper_that_is_ending_is_not_the_one_to_speak_to(folder: Path) -> None:
    """The kernel closes a process's connections before its listening socket; until then one connects.

    A listening socket whose connections end stands for it, as that moment can't be met at will.
    """

    async def run() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ending:
            ending.bind(str(folder / "keeper.sock"))
            ending.listen()
            ending.setblocking(False)
            keeper = Connection(folder)
            connecting = asyncio.create_task(keeper.connect())
            conn, _ = await asyncio.get_running_loop().sock_accept(ending)
        conn.close()
        await connecting
        assert keeper.pid != os.getpid()
        assert keeper.lost == 0, "who never answered is no loss"
        assert await keeper.names() == []
        await keeper.stop_keeper()

    in_loop(run())


def test_the_next_keeper_has_nothing_before_it_has_said_so(folder: Path, bundle: Bundle) -> None:
    """Who looks at the status in between, and then ends vptd, would lose what the former one had."""

    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        await keeper.put(record(folder / "s"), bundle)
        assert keeper.held == 1
        assert keeper.pid
        os.kill(keeper.pid, signal.SIGKILL)
        while not keeper.lost:
            await asyncio.sleep(0.01)
        # One that takes the connection and does not come to answer.
        (folder / "keeper.sock").unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.bind(str(folder / "keeper.sock"))
            silent.listen()
            connecting = asyncio.create_task(keeper.connect())
            while not keeper.connected:
                await asyncio.sleep(0.01)
            assert (keeper.pid, keeper.held) == (None, 0)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)

    in_loop(run())


def test_a_request_it_does_not_know_is_an_error_and_no_end(folder: Path) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        for request in (
            {"op": "dance"},
            {"op": []},
            {},
            {"op": "put"},
            {"op": "put", "record": {}},
            {"op": "put", "record": {"name": "x", "protocol": "smtp", "socket": "/x", "status_ofs": 0}},
            {"op": "hello", "version": 99},
        ):
            with pytest.raises(VptError):
                await keeper._ask(request)
        assert await keeper.names() == []
        await keeper.stop_keeper()

    in_loop(run())


@pytest.mark.parametrize("garbage", [b"x", b"[]", b"{", b'{"op":"list"}' * 6000, bytes(60000)])
def test_garbage_on_its_socket_costs_the_keeper_nothing(folder: Path, garbage: bytes) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
            conn.connect(str(folder / "keeper.sock"))
            conn.send(garbage)
            conn.recv(1000)
        await keeper.close()
        await keeper.connect()
        assert await keeper.names() == []
        await keeper.stop_keeper()

    in_loop(run())


def test_there_is_one_keeper_per_folder(folder: Path) -> None:
    async def run() -> None:
        keeper = Connection(folder)
        await keeper.connect()
        argv = [sys.executable, "-m", "vpt.daemon.keeper", "--runtime-dir", str(folder)]
        second = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        assert f"process {keeper.pid}" in second.stderr
        await keeper.stop_keeper()

    in_loop(run())
