# SPDX-License-Identifier: BSD-2-Clause
"""A Daemon inside this process leaves it as it was: for demo, benchmarks and tests."""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.absent import AbsentMemory
from vpt.daemon.daemon import Daemon, Settings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.models import PortAdd, PortRemove, SwitchAdd
from vpt.daemon.runtime import locate
from vpt.daemon.transports.unix import open_app, receive_bundle
from vpt.errors import ConflictError, ExistsError, UsageError

PATIENCE_S = 30.0


@pytest.fixture
def settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="vpt-") as folder:
        yield Settings(paths=locate(folder), keeper=False)


@pytest.mark.usefixtures("no_leaks")
def test_start_use_stop_leaves_no_descriptor_and_no_mapping(settings: Settings) -> None:
    for _ in range(3):
        with EmbeddedDaemon(settings) as daemon:
            daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw0", may_exist=True)))
            for kind in ("app", "passthrough", "vhost-user", "null"):
                port = PortAdd.model_validate(
                    {"name": kind, "switch": "sw0", "kind": kind, "may_exist": True}
                )
                daemon.call(lambda d, port=port: d.ports.add(port))
            with open_app(settings.paths.port_socket("app"), timeout=PATIENCE_S) as link:
                assert link.app.send(0, (b"\xff" * 6 + b"\x52\x54\0\0\0\1\x88\xb5").ljust(60, b"\0"))
            daemon.call(lambda d: d.ports.remove(PortRemove(name="passthrough")))
        assert list(settings.paths.ports.iterdir()) == []
        assert not settings.paths.control.exists()


@pytest.mark.usefixtures("no_leaks")
def test_a_start_that_fails_leaves_nothing_behind(settings: Settings) -> None:
    settings.paths.create()
    settings.paths.journal.write_text("garbage")
    with pytest.raises(UsageError), EmbeddedDaemon(settings):
        pass
    settings.paths.journal.unlink()
    settings.paths.control.write_text("taken")
    with pytest.raises(ExistsError), EmbeddedDaemon(settings):
        pass
    settings.paths.control.unlink()
    with (
        EmbeddedDaemon(settings),
        pytest.raises(ConflictError, match="already running"),
        EmbeddedDaemon(settings),
    ):
        pass
    assert not settings.paths.stats.exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("no_leaks", "interruptible")
@pytest.mark.parametrize("moment", ["while the thread starts", "while the daemon starts"])
def test_a_start_that_is_interrupted_leaves_nothing_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The signal comes while this thread waits for the other: who would end that one but this?"""
    interrupted, main = threading.Event(), threading.get_ident()
    thread_start, daemon_start = threading.Thread.start, Daemon.start

    def interrupt() -> None:
        interrupted.set()
        signal.pthread_kill(main, signal.SIGTERM)

    def start_thread(self: threading.Thread) -> None:
        thread_start(self)
        if self.name == "vptd":
            interrupt()

    async def start_daemon(self: Daemon) -> None:
        interrupt()
        await daemon_start(self)

    if moment == "while the thread starts":
        monkeypatch.setattr(threading.Thread, "start", start_thread)
    else:
        monkeypatch.setattr(Daemon, "start", start_daemon)
    with pytest.raises(KeyboardInterrupt), EmbeddedDaemon(settings):
        pass
    assert interrupted.is_set()
    assert "vptd" not in [thread.name for thread in threading.enumerate()]


def test_a_journal_that_can_not_be_written_undoes_the_change(settings: Settings) -> None:
    """What is not remembered was not done: the answer is an error and the port is not there."""

    def journal_in_the_way(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.mkdir()

    with EmbeddedDaemon(settings) as daemon:
        daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw0")))
        journal_in_the_way(settings.paths.journal)
        for kind in ("app", "vhost-user", "null"):
            port = PortAdd.model_validate({"name": "x", "switch": "sw0", "kind": kind})
            with pytest.raises(ConflictError, match="nothing was changed"):
                daemon.call(lambda d, port=port: d.ports.add(port))
        with pytest.raises(ConflictError):
            daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw1")))
        assert list(settings.paths.ports.iterdir()) == []
        settings.paths.journal.rmdir()
        daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw1")))


@pytest.mark.native
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("kind", ["kicks", "interrupts"])
def test_an_app_that_has_its_eventfds_in_an_epoll_set_holds_up_nobody_when_its_port_goes(
    settings: Settings, kind: str
) -> None:
    """vptd closes them last then, and waits for an epoll_wait() that writes to memory which does not come."""
    with EmbeddedDaemon(settings) as daemon:
        daemon.call(lambda d: d.switches.add(SwitchAdd(name="sw0")))
        port = PortAdd.model_validate({"name": "x", "switch": "sw0", "kind": "app"})
        daemon.call(lambda d: d.ports.add(port))
        with AbsentMemory() as absent:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
                conn.connect(str(settings.paths.port_socket("x")))
                bundle = receive_bundle(conn)
            absent.hold_epoll(list(getattr(bundle, kind)))
            bundle.close()
            daemon.call(lambda d: d.ports.remove(PortRemove(name="x")))
            daemon.call(lambda d: d.ports.add(port))


def test_faults_that_nobody_caught_are_said_but_not_without_end(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Short of memory or descriptors, the same callback fails each time that it is called."""

    def fail() -> None:
        raise MemoryError

    async def fail_often(_daemon: Daemon) -> None:
        for _ in range(100):
            asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)

    with EmbeddedDaemon(settings) as daemon:
        daemon.call(fail_often)
    said = [record for record in caplog.records if record.exc_info and record.exc_info[0] is MemoryError]
    assert 1 <= len(said) <= 12
    assert all(record.name == "vpt.daemon" for record in said)
