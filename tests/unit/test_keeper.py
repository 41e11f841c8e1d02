# SPDX-License-Identifier: BSD-2-Clause
"""The keeper: what it hands to QEMU and to host processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from support.keeper import QemuEnd, counts_alike, gone_from, record, same_file
from support.leaks import open_things, until_open
from support.lingering import Lingering
from support.waiting import until
from vpt.daemon.shelf import Record, Shelf
from vpt.daemon.sockets import close_fds
from vpt.daemon.transports.peer import Bundle
from vpt.daemon.transports.unix import receive_bundle
from vpt.dataplane import PEER_STATUS_OFS, vec_cfg, vec_count
from vpt.errors import ConflictError, DaemonError, ExistsError, NotFoundError, ProtocolError, UsageError

LOG = logging.getLogger("test")
DRIVER_OK = 4


@asynccontextmanager
async def shelf_with(entry: Record, bundle: Bundle) -> AsyncIterator[Shelf]:
    shelf = Shelf(LOG)
    await shelf.put(entry, bundle)
    try:
        yield shelf
    finally:
        await shelf.close()


def with_shelf(entry: Record, bundle: Bundle, peer: Callable[[], Any]) -> Any:
    """Run `peer` in a thread while a shelf serves the bundle."""

    async def run() -> Any:
        async with shelf_with(entry, bundle):
            return await asyncio.to_thread(peer)

    return asyncio.run(run())


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


def test_the_keeper_needs_the_standard_library_only() -> None:
    """It stays for weeks; and an update of what is installed must not be able to break it."""
    script = "import sys, json, vpt.daemon.keeper; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    modules = set(json.loads(done.stdout))
    assert not modules & {"pydantic", "click", "rich", "cffi", "yaml", "vpt._vpt", "vpt.dataplane"}
