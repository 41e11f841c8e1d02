# SPDX-License-Identifier: BSD-2-Clause
"""What attach and detach refuse: one clear message with a hint, the exit code, and all as it was before."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.libvirt import NEEDS, Libvirt, Vpt, ok, qmp
from support.libvirtd import NOBODY
from support.vptd import run_vpt_as_nobody
from vpt.daemon.client import Client
from vpt.daemon.daemon import Settings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.runtime import locate
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._domain import Target

pytestmark = [pytest.mark.vm, pytest.mark.needs(*NEEDS)]


@dataclass
class Scene:
    libvirt: Libvirt
    guests: SimpleNamespace
    vptd: Client
    runtime: Path
    vpt: Vpt
    patch: pytest.MonkeyPatch

    def state(self) -> dict[str, object]:
        """Both sides: each domain as it runs and as it is configured, ports, files, what QEMU has."""
        domains = self.libvirt.connection.listAllDomains()
        return {
            "domains": {domain.name(): (_described(domain, 0), _described(domain, 2)) for domain in domains},
            # Not their state: a guest that has just got one brings it up meanwhile.
            "ports": self.vptd.call("config")["ports"],
            # What was negotiated is noted when a guest has got so far.
            "files": sorted(path for path in self.runtime.rglob("*") if path.suffix != ".negotiated"),
            "qemu": [
                sorted(item["label"] for item in qmp(guest, "query-chardev"))
                for guest in (self.guests.left, self.guests.right)
            ],
        }


def _described(domain: Any, flags: int) -> str:
    """Without the state of its channel: a guest that has just started opens it meanwhile."""
    return re.sub(" state='(dis)?connected'", "", str(domain.XMLDesc(flags)))


@pytest.fixture
def scene(
    libvirt: Libvirt,
    guests: SimpleNamespace,
    vptd: Client,
    runtime: Path,
    vpt: Vpt,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    return Scene(libvirt, guests, vptd, runtime, vpt, monkeypatch)


# ---- what is the matter ----


@contextmanager
def paused(scene: Scene) -> Iterator[None]:
    scene.guests.left.domain.suspend()
    yield
    scene.guests.left.domain.resume()


@contextmanager
def private(scene: Scene) -> Iterator[None]:
    guest = scene.libvirt.define("private", shared=False)
    guest.start()
    yield
    scene.libvirt.remove(guest)


@contextmanager
def stopped(scene: Scene) -> Iterator[None]:
    guest = scene.libvirt.define("stopped")
    yield
    scene.libvirt.remove(guest)


@contextmanager
def old_qemu(scene: Scene) -> Iterator[None]:
    scene.patch.setattr(Target, "qemu_version", lambda _: 7_002_022)
    yield


@contextmanager
def would_crash(scene: Scene) -> Iterator[None]:
    """Stopped, without KVM, and nothing keeps its QEMU from MSI-X."""
    scene.patch.setattr(Target, "qemu_version", lambda _: 7_002_022)
    guest = scene.libvirt.define("msix")
    scene.libvirt.connection.defineXML(guest.domain.XMLDesc(2).replace("pci.vectors=0", "pci.vectors=3"))
    yield
    scene.libvirt.remove(guest)


@contextmanager
def ends_meanwhile(scene: Scene) -> Iterator[None]:
    guest = scene.libvirt.define("brief")
    guest.start()
    before = Target.plug_live

    def plug_live(target: Target, *args: object) -> None:
        guest.stop()
        before(target, *args)  # type: ignore[arg-type]

    scene.patch.setattr(Target, "plug_live", plug_live)
    yield
    scene.libvirt.remove(guest)


@contextmanager
def taken_by_a_file(scene: Scene) -> Iterator[None]:
    path = scene.runtime / "ports/left.sock"
    path.write_text("not ours")
    yield
    assert path.read_text() == "not ours"
    path.unlink()


@contextmanager
def taken_by_a_program(scene: Scene) -> Iterator[None]:
    path = scene.runtime / "ports/left.sock"
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        other.listen()
        yield
    path.unlink()


@contextmanager
def of_another_user(scene: Scene) -> Iterator[None]:
    path = scene.runtime / "ports/left.sock"
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
    os.chown(path, NOBODY, NOBODY)
    yield
    path.unlink()


@contextmanager
def vptd_is_down(scene: Scene) -> Iterator[None]:
    control = locate(scene.runtime).control
    away = control.with_suffix(".away")
    control.rename(away)
    yield
    away.rename(control)


@contextmanager
def other_network_card(scene: Scene) -> Iterator[None]:
    ok(scene.vpt("attach", "left", "--switch", "sw0", "--mac", "52:54:00:00:00:77"))
    yield
    ok(scene.vpt("detach", "left"))


@contextmanager
def with_another_switch(scene: Scene) -> Iterator[None]:
    scene.vptd.call("switch.add", name="sw1")
    with other_network_card(scene):
        yield
    scene.vptd.call("switch.del", name="sw1")


def nothing(_scene: Scene) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Case:
    command: tuple[str, ...]
    code: int
    says: str
    hint: str
    given: Callable[[Scene], AbstractContextManager[None]] = nothing
    uri: str | None = None


def attach(vm: str, *more: str, switch: str = "sw0") -> tuple[str, ...]:
    return ("attach", vm, "--switch", switch, *more)


PASSTHROUGH = ("--kind", "passthrough")
ADD_IT = "vpt --runtime-dir {runtime} switch add nosuch"
CASES = {
    "no such domain": Case(attach("nosuch"), 1, "no domain 'nosuch'", "list --all"),
    "a paused domain": Case(attach("left"), 1, "left is paused", "resume left", paused),
    "a domain that does not run, live": Case(
        attach("stopped", "--live"), 1, "stopped does not run", "start stopped", stopped
    ),
    "memory that is not shared": Case(attach("private"), 1, "memory is not shared", "--config", private),
    "a configuration that QEMU would crash with": Case(
        attach("msix", "--config"), 1, "crashes under TCG", "virtio-net-pci.vectors=0", would_crash
    ),
    "queue pairs that QEMU would crash with": Case(
        attach("left", "--pairs", "2"), 1, "with several queue pairs", "one queue pair", old_qemu
    ),
    "a domain that ends meanwhile": Case(
        attach("brief"), 1, "domain is not running", "domstate --reason brief", ends_meanwhile
    ),
    "a file at the socket's path": Case(
        attach("left"), 1, "exists and is not a socket", "another name for the port", taken_by_a_file
    ),
    "a program at the socket's path": Case(
        attach("left"), 1, "another program listens on", "ss -xlp", taken_by_a_program
    ),
    "another user's socket there": Case(
        attach("left"), 1, f"a socket of user {NOBODY}", "rm ", of_another_user
    ),
    "no vptd": Case(attach("left"), 1, "vptd is not running", " daemon start", vptd_is_down),
    "no libvirt": Case(
        attach("left"), 3, "no libvirt at", "systemctl start libvirtd",
        uri="qemu+unix:///system?socket=/nonexistent/sock",
    ),
    "no such switch": Case(attach("left", switch="nosuch"), 1, "no switch 'nosuch'", ADD_IT),
    "no such switch, and a domain that could not be plugged into one": Case(
        attach("private", switch="nosuch"), 1, "no switch 'nosuch'", ADD_IT, private
    ),
    "no such switch, and only asked what would be done": Case(
        attach("left", "--print-diff", switch="nosuch"), 1, "no switch 'nosuch'", ADD_IT
    ),
    "a multicast address for a paused domain": Case(
        attach("left", "--mac", "01:00:00:00:00:01"), 2, "multicast", "", paused
    ),
    "more queues than there can be, and only asked": Case(
        attach("left", "--print-diff", "--pairs", "500"), 2, "pairs: must be less", "vpt attach --help"
    ),
    "a program at the socket's path, and only asked": Case(
        attach("left", "--print-diff"), 1, "another program listens on", "ss -xlp", taken_by_a_program
    ),
    "a name that is none": Case(attach("left", "--port", "x" * 32), 2, "1 to 31 letters", ""),
    "a name that a switch has": Case(
        attach("left", "--port", "sw0"), 1, "there is a switch 'sw0' already", "--port"
    ),
    "a multicast address": Case(attach("left", "--mac", "01:00:00:00:00:01"), 2, "multicast", ""),
    "an address that the domain has": Case(
        attach("left", "--mac", "52:54:00:00:00:77", "--port", "second", switch="sw1"), 1,
        "two devices with the MAC address", "--mac", with_another_switch,
    ),
    "an address that the switch has": Case(
        attach("left", "--mac", "52:54:00:00:00:77", "--port", "second"), 1,
        "port 'left' on the same switch has the mac", "an address of its own", other_network_card,
    ),
    "a port that the domain has": Case(
        attach("left", "--port", "left", "--pairs", "2"), 1,
        "has a port 'left' already, with other settings", "--port", other_network_card,
    ),
    "more slots than fit": Case(
        attach("right", *PASSTHROUGH, "--slots", "4096"), 1, "do not fit", "--slots"
    ),
    "detach: no port at all": Case(
        ("detach", "left"), 1, "no vpt port",
        "vpt --runtime-dir {runtime} attach left --switch SWITCH --connect ",
    ),
    "detach: no such port": Case(("detach", "left", "nosuch"), 1, "no port 'nosuch'", "its vpt ports"),
    "detach: no such domain": Case(("detach", "nosuch"), 1, "no domain 'nosuch'", "list --all"),
}  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_can_not_be_is_said_in_one_line_and_nothing_changes(scene: Scene, case: Case) -> None:
    with case.given(scene):
        before = scene.state()
        options = {"uri": case.uri} if case.uri else {}
        code, out, err = scene.vpt(*case.command, **options)
        after = scene.state()
        if case.given is ends_meanwhile:
            before["domains"]["brief"] = after["domains"]["brief"]  # type: ignore[index]
    assert (code, out) == (case.code, ""), err
    assert case.says in err
    assert err.count("error:") == 1
    if case.hint:
        assert case.hint.format(runtime=scene.runtime) in err.partition("hint:")[2]
    assert after == before


def test_a_socket_path_that_is_too_long(scene: Scene) -> None:
    """The control socket's path still fits an address, the port's does not."""
    with tempfile.TemporaryDirectory(prefix=f"vpt-{'x' * 70}-", dir="/tmp") as folder:
        paths = locate(folder)
        with EmbeddedDaemon(Settings(paths, keeper=False)), Client(paths.control) as vptd:
            vptd.call("switch.add", name="sw0")
            before = scene.state()
            code, _, err = scene.vpt(*attach("left", "--port", "a" * 31), runtime_dir=Path(folder))
            assert (code, "the system allows 107" in err, "--runtime-dir" in err) == (2, True, True), err
            assert vptd.call("port.list")["ports"] == []
        assert scene.state() == before


@pytest.mark.usefixtures("untouched")
def test_a_domain_undefined_meanwhile_does_not_come_back(scene: Scene) -> None:
    """Somebody is faster, between our look and our change."""
    guest = scene.libvirt.define("brief")
    before = scene.state()

    def undefine(_xml: str) -> None:
        if "brief" in [domain.name() for domain in scene.libvirt.connection.listAllDomains()]:
            guest.domain.undefine()

    scene.patch.setattr(rules, "validate", undefine)
    code, _, err = scene.vpt(*attach("brief"))
    assert (code, "brief went away" in err, "list --all" in err) == (1, True, True), err
    del before["domains"]["brief"]  # type: ignore[attr-defined]
    assert scene.state() == before


DENIED = {
    "vptd": (attach("left"), "no permission to use", "run as root"),
    "libvirt": (
        attach("left", "--connect", "{uri}"),
        "no permission to use libvirt",
        "sudo adduser nobody 65531",
    ),
    "a QMP socket": (attach("{folder}/vm.qmp"), "no permission", "root"),
}


@pytest.mark.parametrize("whose", DENIED)
def test_no_permission(scene: Scene, whose: str) -> None:
    if os.geteuid():
        pytest.skip("needs root: to be somebody else")
    command, says, hint = DENIED[whose]
    with tempfile.TemporaryDirectory() as folder, closing(socket.socket(socket.AF_UNIX)) as denied:
        Path(folder).chmod(0o755)
        # A socket of a group that we are not in stands for libvirtd's and QEMU's: they are asked for no more.
        denied.bind(f"{folder}/vm.qmp")
        denied.listen()
        Path(folder, "vm.qmp").chmod(0o660)
        os.chown(f"{folder}/vm.qmp", 0, 65531)
        uri = f"qemu+unix:///system?socket={folder}/vm.qmp"
        paths = locate(f"{folder}/vptd")
        group = None if whose == "vptd" else NOBODY
        with EmbeddedDaemon(Settings(paths, keeper=False, group=group)), Client(paths.control) as vptd:
            vptd.call("switch.add", name="sw0")
            before = scene.state()
            words = [part.format(folder=folder, uri=uri) for part in command]
            done = run_vpt_as_nobody(paths.runtime, *words)
            assert (done.returncode, done.stdout) == (3, ""), done.stderr
            assert says in done.stderr
            assert hint in done.stderr.partition("hint:")[2]
            assert vptd.call("port.list")["ports"] == []
    assert scene.state() == before
