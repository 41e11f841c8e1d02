# SPDX-License-Identifier: BSD-2-Clause
"""`vpt libvirt watch` beside a real libvirtd and a real vptd, each of which is killed under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from support.libvirt import (
    NEEDS,
    DomainGuest,
    assert_traffic_between_its_interfaces,
    lose_device,
    may_reset,
)
from support.libvirtd import Libvirtd, stopped
from support.vptd import Vptd, run_vpt
from support.waiting import until
from vpt import hints
from vpt.cli import main
from vpt.daemon.client import Client
from vpt.libvirt_plugin import _answers, _domain, hook, watch
from vpt.libvirt_plugin._connection import open_libvirt
from vpt.libvirt_plugin.metadata import Plug, left_in
from vpt.libvirt_plugin.watch import Domain, is_watched, left_over

LIVE = [pytest.mark.vm, pytest.mark.timeout(240), pytest.mark.needs(*NEEDS, "libvirtd", "unshare")]


def port(name: str, owner: str | None) -> dict[str, str | None]:
    return {"name": name, "owner": owner}


def domain(uuid: str, *ports: str, active: bool = False) -> Domain:
    plugs = tuple(Plug(name, "sw0", "vhost-user", f"/s/{name}", "/s") for name in ports)
    return Domain(f"dom-{uuid}", f"libvirt:system:{uuid}", active, plugs)


JUDGED = {
    "its domain is gone": ([port("a", "libvirt:system:1")], [], ["a"]),
    "its domain does not have it any more": ([port("a", "libvirt:system:1")], [domain("1", "b")], ["a"]),
    "the configuration has it": ([port("a", "libvirt:system:1")], [domain("1", "a")], []),
    "another domain was given it": ([port("a", "libvirt:system:1")], [domain("2", "a")], []),
    "its domain runs": ([port("a", "libvirt:system:1")], [domain("1", active=True)], []),
    "it is nobody's": ([port("a", None)], [], []),
    "it is a QEMU's without libvirt": ([port("a", "qmp:/run/a")], [], []),
    "it is of another libvirt": ([port("a", "libvirt:session-1000:1")], [], []),
}


@pytest.mark.parametrize(("ports", "domains", "expected"), JUDGED.values(), ids=JUDGED)
def test_what_is_left_over(
    ports: list[dict[str, str | None]], domains: list[Domain], expected: list[str]
) -> None:
    assert left_over(ports, domains, "system") == expected


# ---- for real ----


@pytest.fixture(scope="module")
def vptd() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    yield daemon
    daemon.close()


class Watcher:
    """`vpt libvirt watch` as a process, and what it says."""

    def __init__(self, vptd: Vptd, uri: str) -> None:
        self.log = vptd.folder / "watch.log"
        self.log.write_text("")
        argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(vptd.paths.runtime)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*argv, "libvirt", "watch", "--connect", uri], stdout=log, stderr=log
            )

    def wait_says(self, text: str, times: int = 1) -> None:
        def said() -> bool:
            assert self.process.poll() is None, f"it ended: {self.log.read_text()}"
            return self.log.read_text().count(text) >= times

        with suppress(AssertionError):
            until(said, text)
            return
        pytest.fail(f"did not say {text!r} {times} times:\n{self.log.read_text()}")


@contextmanager
def watching(vptd: Vptd, uri: str) -> Iterator[Watcher]:
    watcher = Watcher(vptd, uri)
    try:
        yield watcher
        watcher.process.send_signal(signal.SIGTERM)
        assert watcher.process.wait(30) == 0, watcher.log.read_text()
    finally:
        watcher.process.kill()
        watcher.process.wait()


@pytest.fixture(scope="module")
def held(libvirtd: Libvirtd, vptd: Vptd) -> Iterator[DomainGuest]:
    """A running domain with a port of its start and one attached since. No hook: vpt's own work shows."""
    hook.remove(libvirtd.hooks)
    guest = libvirtd.libvirt.define("held")
    try:
        attach(libvirtd, vptd, "held", "--config", "--port", "cold")
        guest.start().wait_ready()
        attach(libvirtd, vptd, "held", "--live", "--port", "warm")
        guest.wait_until("[ -e /sys/class/net/eth1 ]", 20, "the second interface")
        yield guest
    finally:
        libvirtd.libvirt.remove(guest)
        if hook.install(libvirtd.hooks):
            # One of these tests has started it while there was none, and it looks for hooks then only.
            libvirtd.stop()
            libvirtd.start()


def attach(libvirtd: Libvirtd, vptd: Vptd, name: str, *options: str) -> str:
    done = run_vpt(vptd.paths.runtime, "attach", name, "--switch", "sw0", "--connect", libvirtd.uri, *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def names(vptd: Vptd) -> set[str]:
    return {port["name"] for port in vptd.call("port.list")["ports"]}


def up(vptd: Vptd) -> set[str]:
    return {port["name"] for port in vptd.call("port.list")["ports"] if port["state"] == "up"}


class TestTogether:
    """One domain, booted once, lives through all of it, in this order."""

    pytestmark = LIVE

    def test_a_vptd_that_is_killed_finds_both_ports_connected_again(
        self, libvirtd: Libvirtd, vptd: Vptd, held: DomainGuest
    ) -> None:
        with watching(vptd, libvirtd.uri) as watch:
            watch.wait_says("following the domains")
            assert_traffic_between_its_interfaces(held)
            vptd.kill()
            watch.wait_says("vptd is not running")
            vptd.start()
            until(lambda: up(vptd) == {"cold", "warm"}, "both ports to be up")
            assert_traffic_between_its_interfaces(held)
            watch.wait_says("port warm connected again to held")
            assert "port cold" not in watch.log.read_text(), "QEMU did that by itself"

    def test_what_nobody_watched_is_put_right_once(
        self, libvirtd: Libvirtd, vptd: Vptd, held: DomainGuest
    ) -> None:
        """The same, by hand, after the fact."""
        vptd.kill()
        vptd.start()
        until(lambda: "cold" in up(vptd), "QEMU to connect again to the port of the start")
        assert "warm" not in up(vptd), "libvirt 9.0 told QEMU not to"
        once = ("libvirt", "watch", "--once", "--connect", libvirtd.uri)
        done = run_vpt(vptd.paths.runtime, *once)
        assert (done.returncode, done.stderr) == (0, "")
        assert "port warm connected again to held" in done.stdout
        assert_traffic_between_its_interfaces(held)
        assert "connected again" not in run_vpt(vptd.paths.runtime, *once).stdout

    @pytest.mark.usefixtures("held")
    def test_attach_warns_where_nobody_watches(self, libvirtd: Libvirtd, vptd: Vptd) -> None:
        live = ("held", "--live", "--port", "more")
        detach = ("detach", "held", "more", "--connect", libvirtd.uri)
        watch_it = hints.vpt("libvirt", "watch", runtime=vptd.paths.runtime, uri=libvirtd.uri)
        assert watch_it in attach(libvirtd, vptd, *live)
        assert run_vpt(vptd.paths.runtime, *detach).returncode == 0
        with watching(vptd, libvirtd.uri) as watch:
            watch.wait_says("following the domains")
            assert is_watched(vptd.paths, "system")
            assert attach(libvirtd, vptd, *live) == ""
            assert run_vpt(vptd.paths.runtime, *detach).returncode == 0
            second = run_vpt(vptd.paths.runtime, "libvirt", "watch", "--connect", libvirtd.uri)
            assert (second.returncode, "already running" in second.stderr) == (1, True)
        assert not is_watched(vptd.paths, "system")

    @pytest.mark.usefixtures("held")
    def test_a_libvirtd_that_is_stopped_is_said_to_be_and_what_ended_meanwhile_leaves_no_port(
        self, libvirtd: Libvirtd, vptd: Vptd
    ) -> None:
        guest = libvirtd.libvirt.define("brief")
        guest.start()
        try:
            attach(libvirtd, vptd, "brief", "--live")
            with watching(vptd, libvirtd.uri) as watch:
                watch.wait_says("following the domains")
                with stopped(libvirtd):
                    os.kill(libvirtd.qemu_pid("brief"), signal.SIGKILL)
                    watch.wait_says("does not answer")  # while it waits, or in the middle of a look
                watch.wait_says("following the domains", 2)
                watch.wait_says("port brief deleted")
                assert up(vptd) == {"cold", "warm"}
        finally:
            libvirtd.libvirt.remove(guest)

    @pytest.mark.usefixtures("held")
    def test_one_that_waits_for_a_stopped_libvirtd_ends_when_it_is_told_to(
        self, libvirtd: Libvirtd, vptd: Vptd
    ) -> None:
        with stopped(libvirtd), watching(vptd, libvirtd.uri) as watch:
            # Itself, libvirt's events, and the call that waits.
            tasks = Path(f"/proc/{watch.process.pid}/task")
            until(lambda: len(list(tasks.iterdir())) == 3, "it to wait")
            watch.process.send_signal(signal.SIGTERM)
            assert watch.process.wait(_answers._OPEN_S / 2) == 0

    def test_a_vptd_that_is_stopped_is_said_to_be_and_asked_again_once_it_goes_on(
        self, libvirtd: Libvirtd, vptd: Vptd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "Client", partial(Client, timeout=0.5))
        vptd.call("port.add", name="gone", switch="sw0", kind="null", owner="libvirt:system:1")
        assert vptd.process is not None
        pid, said = vptd.process.pid, list[str]()

        def say(text: str) -> None:
            said.append(text.partition(" the ")[0])
            if "did not answer" in text:
                os.kill(pid, signal.SIGCONT)
            if "deleted" in text:
                raise KeyboardInterrupt

        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(KeyboardInterrupt):
                watch.Watch(vptd.paths, libvirtd.uri, say).run()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert said == [
            "following",
            "vptd did not answer port.list in 0 s",
            "following",
            "port gone deleted:",
        ]

    def test_a_libvirtd_that_is_killed_is_followed_again_and_a_dead_domain_leaves_no_port(
        self, libvirtd: Libvirtd, vptd: Vptd, held: DomainGuest
    ) -> None:
        with watching(vptd, libvirtd.uri) as watch:
            watch.wait_says("following the domains")
            libvirtd.kill()
            watch.wait_says("libvirt is gone")
            libvirtd.start()
            held.domain = libvirtd.libvirt.connection.lookupByName("held")
            watch.wait_says("following the domains", 2)
            assert up(vptd) == {"cold", "warm"}, "the domain did not notice"
            # A query waits for its turn, behind libvirtd's own return to that QEMU. One that dies before
            # that is tried for half a minute, and counts as running.
            held.domain.memoryStats()
            os.kill(libvirtd.qemu_pid("held"), signal.SIGKILL)
            watch.wait_says("port warm deleted")
            assert names(vptd) == {"cold"}, "the configuration has it, and no hook would bring it back"
            held.domain.undefine()
            watch.wait_says("port cold deleted")
            assert names(vptd) == set()

    def test_what_went_away_before_is_swept_at_the_start_and_nothing_else(
        self, libvirtd: Libvirtd, vptd: Vptd
    ) -> None:
        libvirtd.libvirt.define("brief")
        attach(libvirtd, vptd, "brief")
        uuid = libvirtd.libvirt.connection.lookupByName("brief").UUIDString()
        vptd.call("port.add", name="mine", switch="sw0", kind="null")
        vptd.call("port.add", name="foreign", switch="sw0", kind="null", owner=f"libvirt:session-7:{uuid}")
        vptd.kill()  # a vptd that comes back remembers whose its ports are
        vptd.start()
        libvirtd.libvirt.connection.lookupByName("brief").undefine()
        with watching(vptd, libvirtd.uri) as watch:
            watch.wait_says("port brief deleted")
        assert names(vptd) == {"mine", "foreign"}

    def test_a_note_of_a_port_keeps_it_from_nobody_once_its_device_is_out(
        self, libvirtd: Libvirtd, vptd: Vptd
    ) -> None:
        """Somebody edited the configuration of a stopped domain, and left our metadata in."""
        guest = libvirtd.libvirt.define("edited")
        try:
            for name in ("taken", "stays"):
                attach(libvirtd, vptd, "edited", "--port", name)
            lose_device(guest, "taken", live=False)
            done = run_vpt(vptd.paths.runtime, "libvirt", "watch", "--once", "--connect", libvirtd.uri)
            assert (done.returncode, done.stderr) == (0, "")
            assert "port taken deleted" in done.stdout
            assert names(vptd) & {"taken", "stays"} == {"stays"}
        finally:
            libvirtd.libvirt.remove(guest)
            for name in ("taken", "stays"):
                vptd.call("port.del", name=name, if_exists=True)

    def test_a_device_that_goes_after_its_detach_was_given_up_is_seen_to(
        self, libvirtd: Libvirtd, vptd: Vptd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A guest without ACPI never lets go; a reset of the machine does. watch has QEMU forget the rest."""
        monkeypatch.setattr(_domain, "_DEVICE_S", 0.5)
        detach = ["--runtime-dir", str(vptd.paths.runtime), "detach", "--connect", libvirtd.uri, "late"]
        # libvirtd hangs up on one that does not answer its pings, as libvirtd.libvirt's without event loop.
        with open_libvirt(libvirtd.uri) as connection:
            monkeypatch.setattr(libvirtd.libvirt, "connection", connection)
            guest = may_reset(libvirtd.libvirt.define("late", append="acpi=off"), connection)
            try:
                guest.start()
                attach(libvirtd, vptd, "late", "--live", "--kind", "passthrough")
                assert main(detach) == 1
                with watching(vptd, libvirtd.uri) as watch:
                    watch.wait_says("following the domains")
                    guest.domain.reset()
                    watch.wait_says("late has let go of late since vpt detach gave up")
                xml = guest.domain.XMLDesc()
                assert (left_in(xml), "spent" in xml) == ({"late": []}, False)
                assert main(detach) == 0
            finally:
                libvirtd.libvirt.remove(guest)
                vptd.call("port.del", name="late", if_exists=True)

    def test_a_libvirt_that_is_not_there_yet_is_waited_for(
        self, libvirtd: Libvirtd, vptd: Vptd, tmp_path: Path
    ) -> None:
        libvirtd.stop()
        try:
            with watching(vptd, libvirtd.uri) as watch:
                watch.wait_says("no libvirt at")
                libvirtd.start()
                watch.wait_says("following the domains")
        finally:
            if libvirtd.ended:
                libvirtd.start()
        done = run_vpt(tmp_path, "libvirt", "watch", "--once", "--connect", libvirtd.uri)
        assert (done.returncode, "vptd is not running" in done.stderr) == (1, True)
