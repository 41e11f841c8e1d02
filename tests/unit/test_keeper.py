# SPDX-License-Identifier: BSD-2-Clause
"""The keeper: what it hands to QEMU and to host processes, and that it outlives who started it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from support.leaks import open_things, until_open
from support.lingering import Lingering
from support.vptd import gone
from support.waiting import until
from vpt.daemon.keeper_client import KeeperClient
from vpt.daemon.runtime import RuntimePaths
from vpt.daemon.shelf import Record, Shelf
from vpt.daemon.sockets import close_fds
from vpt.daemon.transports.peer import Bundle
from vpt.daemon.transports.ring import create_bundle
from vpt.daemon.transports.unix import receive_bundle
from vpt.dataplane import PEER_STATUS_OFS, RegionOptions, vec_cfg, vec_count
from vpt.errors import (
    ConflictError,
    DaemonError,
    ExistsError,
    NotFoundError,
    ProtocolError,
    UsageError,
    VptError,
)

LOG = logging.getLogger("test")
DRIVER_OK = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vpt-") as name:
        yield Path(name)


@pytest.fixture
def pairs(request: pytest.FixtureRequest) -> int:
    count: int = getattr(request, "param", 1)
    return count


@pytest.fixture
def bundle(pairs: int) -> Iterator[Bundle]:
    made = create_bundle(RegionOptions("p", pairs=pairs, num_slots=64, buf_size=256))
    yield made
    made.close()


def record(path: Path, protocol: str = "ivshmem", name: str = "p") -> Record:
    return Record(name, protocol, str(path), PEER_STATUS_OFS, meta={"mine": 1})  # type: ignore[arg-type]


def same_file(a: int, b: int) -> bool:
    return os.fstat(a).st_ino == os.fstat(b).st_ino


def counts_alike(a: int, b: int) -> bool:
    """Are both the same eventfd?"""
    os.eventfd_write(a, 3)
    try:
        return os.eventfd_read(b) == 3
    except BlockingIOError:
        os.eventfd_read(a)
        return False


class QemuEnd:
    """Reads an ivshmem server as QEMU does: eight bytes at a time, a descriptor with some."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        self.fds: list[int] = []

    def message(self) -> tuple[int, int | None]:
        data, fds, _, _ = socket.recv_fds(self.sock, 8, 4)
        self.fds += fds
        assert len(data) == 8, f"{data!r} instead of eight bytes"
        assert len(fds) <= 1
        return struct.unpack("<q", data)[0], fds[0] if fds else None

    def close(self) -> None:
        self.sock.close()
        close_fds(self.fds)


@asynccontextmanager
async def shelf_with(entry: Record, bundle: Bundle) -> AsyncIterator[Shelf]:
    shelf = Shelf(LOG)
    await shelf.put(entry, bundle)
    try:
        yield shelf
    finally:
        await shelf.close()


def gone_from(sock: socket.socket) -> bool:
    """Has the other side hung up?"""
    try:
        return sock.recv(4096) == b""
    except ConnectionError:
        return True


def with_shelf(entry: Record, bundle: Bundle, peer: Callable[[], Any]) -> Any:
    """Run `peer` in a thread while a shelf serves the bundle."""

    async def run() -> Any:
        async with shelf_with(entry, bundle):
            return await asyncio.to_thread(peer)

    return asyncio.run(run())


# ---- ivshmem, as QEMU speaks it ----


@pytest.mark.parametrize("pairs", [1, 4, 32], indirect=True)
def test_qemu_is_greeted_as_its_protocol_says(folder: Path, bundle: Bundle, pairs: int) -> None:
    """Version 0, own id 1, -1 with the memory, the host's eventfds under id 0, then the guest's under id 1.

    Each eventfd exactly once: QEMU refuses more than the device's `vectors`.
    """

    def peer() -> None:
        qemu = QemuEnd(folder / "s")
        try:
            assert qemu.message() == (0, None)
            assert qemu.message() == (1, None)
            value, memory = qemu.message()
            assert value == -1
            assert memory is not None
            assert same_file(memory, bundle.memory)
            for owner, fds in ((0, bundle.kicks), (1, bundle.interrupts)):
                for fd in fds:
                    value, theirs = qemu.message()
                    assert value == owner
                    assert theirs is not None
                    assert counts_alike(theirs, fd)
            qemu.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                qemu.message()
        finally:
            qemu.close()

    assert len(bundle.kicks) == len(bundle.interrupts) == vec_count(pairs)
    with_shelf(record(folder / "s"), bundle, peer)


class TestOnePeer:
    """A port has one peer at a time, and its connection is its claim."""

    def test_a_second_one_is_turned_away_and_the_first_goes_on(self, folder: Path, bundle: Bundle) -> None:
        def peer() -> None:
            first, second = QemuEnd(folder / "s"), None
            try:
                assert first.message() == (0, None)
                second = QemuEnd(folder / "s")
                assert second.sock.recv(8) == b""
                assert first.message() == (1, None)
            finally:
                first.close()
                if second:
                    second.close()

        with_shelf(record(folder / "s"), bundle, peer)

    def test_the_next_one_gets_the_same_memory(self, folder: Path, bundle: Bundle) -> None:
        def peer() -> None:
            for _ in range(20):
                end = QemuEnd(folder / "s")
                while not (answer := end.sock.recv(8, socket.MSG_PEEK)):
                    # The last one's end has not been noticed yet.
                    end.close()
                    end = QemuEnd(folder / "s")
                assert answer == bytes(8)
                messages = [end.message() for _ in range(3)]
                assert messages[2][1] is not None
                assert same_file(messages[2][1], bundle.memory)
                end.close()

        with_shelf(record(folder / "s"), bundle, peer)

    @pytest.mark.parametrize("rude", [False, True])
    def test_one_that_is_gone_is_reset_in_its_place(self, folder: Path, bundle: Bundle, rude: bool) -> None:
        """Its status word becomes 0 and its doorbell rings. The same for one that says what it must not."""

        def status() -> int:
            return int.from_bytes(os.pread(bundle.memory, 4, PEER_STATUS_OFS), "little")

        def peer() -> None:
            end = QemuEnd(folder / "s")
            assert end.message() == (0, None)
            os.pwrite(bundle.memory, DRIVER_OK.to_bytes(4, "little"), PEER_STATUS_OFS)
            if rude:
                end.sock.send(b"x")
            else:
                end.close()
            until(lambda: status() == 0, "the reset")
            end.close()
            until(lambda: _rung(bundle.kicks[vec_cfg(1)]), "the doorbell")

        with_shelf(record(folder / "s"), bundle, peer)

    def test_one_that_is_still_there_is_not_reset_by_an_end_of_service(
        self, folder: Path, bundle: Bundle
    ) -> None:
        """The keeper ends, the guest goes on with its memory: its status word is its own."""
        ends = []

        def peer() -> None:
            ends.append(QemuEnd(folder / "s"))
            assert ends[0].message() == (0, None)
            os.pwrite(bundle.memory, DRIVER_OK.to_bytes(4, "little"), PEER_STATUS_OFS)

        with_shelf(record(folder / "s"), bundle, peer)
        ends[0].close()
        assert os.pread(bundle.memory, 4, PEER_STATUS_OFS) == DRIVER_OK.to_bytes(4, "little")
        assert not (folder / "s").exists()

    def test_an_app_gets_the_same_files(self, folder: Path, bundle: Bundle) -> None:
        def peer() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
                conn.connect(str(folder / "s"))
                got = receive_bundle(conn)
                assert got.vectors == bundle.vectors
                assert same_file(got.memory, bundle.memory)
                for ours, theirs in zip(bundle.fds()[1:], got.fds()[1:], strict=True):
                    assert counts_alike(ours, theirs)
                got.close()

        with_shelf(record(folder / "s", "app"), bundle, peer)

    def test_a_second_app_is_told_who_has_the_port(self, folder: Path, bundle: Bundle) -> None:
        def peer() -> None:
            with (
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second,
            ):
                first.connect(str(folder / "s"))
                receive_bundle(first).close()
                second.connect(str(folder / "s"))
                with pytest.raises(ConflictError, match=f"process {os.getpid()} uses"):
                    receive_bundle(second)

        with_shelf(record(folder / "s", "app"), bundle, peer)

    def test_of_a_crowd_of_second_apps_few_are_told_and_all_are_counted(
        self, folder: Path, bundle: Bundle
    ) -> None:
        """Who is told is waited for, and has a descriptor and a task of ours meanwhile."""

        def hung_up(conn: socket.socket) -> bool:
            try:
                return conn.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        def crowd(shelf: Shelf) -> None:
            with ExitStack() as stack:
                first, *others = (
                    stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                    for _ in range(41)
                )
                first.connect(str(folder / "s"))
                receive_bundle(first).close()
                for conn in others:
                    conn.connect(str(folder / "s"))
                until(lambda: shelf.second_peers("p") == 40, "all to be counted")
                until(lambda: sum(map(hung_up, others)) == 40 - 8, "most to be hung up on")
                told = next(conn for conn in others if not hung_up(conn))
                with pytest.raises(ConflictError, match=f"process {os.getpid()} uses"):
                    receive_bundle(told)
                assert not hung_up(first)

        async def run() -> None:
            async with shelf_with(record(folder / "s", "app"), bundle) as shelf:
                await asyncio.to_thread(crowd, shelf)

        asyncio.run(run())

    @pytest.mark.parametrize(
        "hello", [b"", b"V", b"GET / HTTP/1.1\r\n", b"VPTB\1\0\0\0", b"VPTA\2\0\0\0", bytes(8), bytes(5000)]
    )
    def test_what_is_no_app_gets_no_memory(self, folder: Path, bundle: Bundle, hello: bytes) -> None:
        def peer() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
                conn.settimeout(20)
                conn.connect(str(folder / "s"))
                conn.send(hello)
                if not hello:
                    conn.shutdown(socket.SHUT_WR)
                data, fds, _, _ = socket.recv_fds(conn, 1000, 253)
                close_fds(fds)
                assert not fds
                assert data == b"" or b"version 1, not 2" in data

        with_shelf(record(folder / "s", "app"), bundle, peer)

    @pytest.mark.usefixtures("no_leaks")
    def test_an_app_is_not_fooled_by_another_server(self, folder: Path) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(folder / "s"))
        listener.listen()
        answers = [
            b"",
            b"hello",
            bytes(128),
            b"VPTA" + bytes(124),
            struct.pack("<4sIII112s", b"VPTA", 1, 0, 3, b""),
        ]
        for answer in answers:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
                conn.connect(str(folder / "s"))
                server, _ = listener.accept()
                with server:
                    if answer:
                        socket.send_fds(server, [answer], [0, 1])
                    else:
                        server.close()
                    with pytest.raises((DaemonError, ProtocolError, UsageError)):
                        receive_bundle(conn)
        listener.close()

    @pytest.mark.native
    @pytest.mark.parametrize("protocol", ["ivshmem", "app"])
    def test_descriptors_that_do_not_close_hold_up_nobody(
        self, folder: Path, bundle: Bundle, protocol: str
    ) -> None:
        """Another port's peer is served meanwhile; this one's next when they are gone."""

        def connected(name: str) -> socket.socket:
            kind = socket.SOCK_STREAM if name == "p" and protocol == "ivshmem" else socket.SOCK_SEQPACKET
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.settimeout(20)
            sock.connect(str(folder / name))
            return sock

        def peers() -> None:
            with Lingering(253) as slow:
                with connected("p") as villain:
                    socket.send_fds(villain, [b"x"], slow.fds)
                    slow.given()
                    until(lambda: gone_from(villain), "the villain to be dropped")
                with connected("q") as other, closing(receive_bundle(other)):
                    pass
                with connected("p") as again:
                    again.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        again.recv(1)
                    again.settimeout(20)
                    slow.close()
                    if protocol == "app":
                        receive_bundle(again).close()
                    else:
                        assert again.recv(8) == bytes(8)

        async def run() -> None:
            async with shelf_with(record(folder / "p", protocol), bundle) as shelf:
                await shelf.put(record(folder / "q", "app", "q"), bundle)
                await asyncio.to_thread(peers)

        before = open_things()
        asyncio.run(run())
        until_open(before)

    def test_memory_that_can_shrink_is_not_kept(self, bundle: Bundle) -> None:
        """Whoever may truncate it could end with SIGBUS all who map it."""
        shrinkable = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(shrinkable, 1 << 20)
        with pytest.raises(UsageError, match="shrink"):
            Bundle.from_fds([shrinkable, *bundle.fds()[1:]])
        with pytest.raises(UsageError):
            Bundle.from_fds(bundle.fds()[:2])
        os.close(shrinkable)

    @pytest.mark.usefixtures("no_leaks")
    def test_a_shelf_leaves_nothing_behind(self, folder: Path, bundle: Bundle) -> None:
        async def run() -> None:
            shelf = Shelf(LOG)
            for name in ("a", "b"):
                await shelf.put(record(folder / name, name=name), bundle)
            with pytest.raises(ExistsError):
                await shelf.put(record(folder / "c", name="a"), bundle)
            with pytest.raises(NotFoundError):
                await shelf.put(record(folder / "none" / "c", name="c"), bundle)
            fetched = await shelf.fetch("a")
            assert fetched is not None
            fetched[1].close()
            assert await shelf.names() == ["a", "b"]
            await shelf.drop("a")
            await shelf.drop("a")
            assert await shelf.fetch("a") is None
            await shelf.close()

        asyncio.run(run())
        assert list(folder.iterdir()) == []


def _rung(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


# ---- the process ----


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
        with closing(QemuEnd(folder / "s")) as other:
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


def test_the_keeper_needs_the_standard_library_only() -> None:
    """It stays for weeks; and an update of what is installed must not be able to break it."""
    script = "import sys, json, vpt.daemon.keeper; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    modules = set(json.loads(done.stdout))
    assert not modules & {"pydantic", "click", "rich", "cffi", "yaml", "vpt._vpt", "vpt.dataplane"}
