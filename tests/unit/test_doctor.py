# SPDX-License-Identifier: BSD-2-Clause
"""What the doctor finds where something is wrong. Its whole report is in test_cli.py."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.vptd import Vptd, vpt_json
from vpt.doctor import Check, _host, _libvirt, _machines
from vpt.qemu import Qemu


@pytest.fixture
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    daemon.call("port.add", switch="sw0", name="p1", kind="vhost-user")
    yield daemon
    daemon.close()


def sockets(daemon: Vptd) -> dict[str, dict[str, str]]:
    checks = vpt_json(daemon.paths.runtime, "doctor", "--no-boot")["checks"]
    return {check["name"]: check for check in checks if check["name"].startswith("socket")}


def test_whose_the_sockets_are(lab: Vptd) -> None:
    assert lab.process is not None
    (found,) = sockets(lab).values()
    assert found["verdict"] == "ok"
    assert found["what"].endswith(f"({lab.process.pid}): ports/p1.sock, vptd.sock"), "which socket, and whose"

    ports = lab.paths.ports
    with closing(socket.socket(socket.AF_UNIX)) as dead, closing(socket.socket(socket.AF_UNIX)) as other:
        dead.bind(str(ports / "dead.sock"))
        other.bind(str(ports / "other.sock"))
        other.listen()
        expected = {"socket dead.sock": f"rm {ports}/dead.sock"}
        if os.geteuid() == 0:
            os.chown(ports / "other.sock", 65534, 65534)
            expected["socket other.sock"] = f"ls -l {ports}/other.sock"
        found = sockets(lab)
    assert {name: check["fix"] for name, check in found.items()} == expected
    assert {check["verdict"] for check in found.values()} == {"note"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((7, 2, 22), {"MSI-X", "barriers", "eventfds", "reconnect"}),
        ((10, 0, 2), {"barriers", "eventfds", "reconnect"}),
    ],
    ids=["7.2.22", "10.0.2"],
)
def test_faults_of_this_qemu_come_with_what_avoids_them(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], expected: set[str]
) -> None:
    monkeypatch.setattr("vpt.qemu.find_qemu", lambda: Qemu(Path("/usr/bin/qemu"), version))
    found = list(_machines.faults())
    assert {check.name.removeprefix("QEMU ") for check in found} == expected
    assert all(check.fix for check in found)


@pytest.mark.parametrize(
    ("machine", "more", "verdict", "says"),
    [
        ("pc", "", "ok", ["both kinds"]),
        ("pc", "<metadata><p:ports xmlns:p='urn:vpt:domain:1' spent='yes'/></metadata>", "note",
         ["no vhost-user port: a passthrough port was taken out"]),
        ("q35", "", "note", ["no vhost-user or passthrough port: the running domain has no spare"]),
    ],
    ids=["pc", "spent", "q35"],
)  # fmt: skip
@pytest.mark.parametrize("vectors", [True, False])
def test_what_attach_refuses_in_a_running_domain_is_said(
    machine: str, more: str, verdict: str, says: list[str], vectors: bool
) -> None:
    args = "<q:arg value='-global'/><q:arg value='virtio-net-pci.vectors=0'/>" if vectors else ""
    xml = (
        "<domain type='qemu' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>d</name>"
        f"{more}<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
        f"<os><type machine='{machine}'>hvm</type></os><devices/>"
        f"<q:commandline>{args}</q:commandline></domain>"
    )
    target = SimpleNamespace(name="d", live_xml=lambda: xml, require_live=lambda: None)
    found = _libvirt._running(target, 7_002_022)  # type: ignore[arg-type]
    if not vectors:
        verdict, says = "note", ["no vhost-user port: this QEMU crashes under TCG"]
        says += ["no passthrough port: the running domain has no spare"] if machine == "q35" else []
    assert found.verdict == verdict
    assert [text for text in says if text not in found.what] == []
    assert bool(found.fix) == (verdict == "note")


def test_huge_pages_are_measured_or_said_not_to_be() -> None:
    what = _host.huge_pages().what
    assert re.search(r"took \d+% of the time from small ones$|was not measured: the kernel gave none$", what)


@pytest.mark.parametrize(
    ("linux", "micro", "verdict", "says"),
    [
        ("kvm", "kvm", "ok", "booted"),
        ("tcg", "kvm", "note", "runs unprivileged code only"),
        ("tcg", "tcg", "note", "guests run slowly"),
    ],
)
def test_what_ran_under_kvm_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, linux: str, micro: str, verdict: str, says: str
) -> None:
    """The runs themselves are those of vpt.qemu and vpt.bench.micro, which have tests of their own."""
    from vpt.qemu import Accel

    image = SimpleNamespace(kernel=SimpleNamespace(vmlinuz=Path("/k")), initrd=Path("/i"))
    monkeypatch.setattr(_machines, "_kvm_device", lambda: None)
    monkeypatch.setattr("vpt.guest.build_image", lambda: image)
    monkeypatch.setattr("vpt.qemu.find_qemu", lambda: Qemu(Path("/q"), (7, 2, 0)))
    monkeypatch.setattr("vpt.qemu.probe_accel", lambda *_, **__: Accel(linux, "a guest booted"))  # type: ignore[arg-type]
    monkeypatch.setattr("vpt.bench.micro.choose_accel", lambda: Accel(micro, "it ran"))  # type: ignore[arg-type]
    found = _machines.kvm()
    assert isinstance(found, Check)
    assert (found.verdict, says in found.what) == (verdict, True)
