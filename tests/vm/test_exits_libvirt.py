# SPDX-License-Identifier: BSD-2-Clause
"""Exits of a VM that libvirt runs, through its embedded driver: no libvirtd is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.exits_guest import PIO, Mailbox, build_payload, domain_xml
from vpt.errors import MissingError, NotFoundError
from vpt.exits import meter
from vpt.exits.session import open_session

_DRIVER = "lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.needs("qemu-system-x86_64", "gcc"),
    pytest.mark.skipif(
        os.geteuid() != 0, reason="needs root: the embedded driver's QEMU must open our files"
    ),
    pytest.mark.skipif(
        not any(Path("/usr").glob(_DRIVER)),
        reason="needs libvirt: apt-get install libvirt-daemon-driver-qemu",
    ),
]


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_payload(tmp_path_factory.mktemp("exits"))


@pytest.fixture
def start(embedded_libvirt: tuple[Path, Any], payload: Path) -> Iterator[Callable[[str], tuple[str, Path]]]:
    """start("kvm"): libvirt's URI and the guest's memory file. The VM is called "exits"."""
    root, connection = embedded_libvirt
    uri = f"qemu:///embed?root={root}"
    domains: list[Any] = []

    def begin(kind: str) -> tuple[str, Path]:
        if kind == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("/dev/kvm can't be opened: modprobe kvm_intel or kvm_amd, or join the group kvm")
        domains.append(connection.createXML(domain_xml("exits", kind, payload), 0))
        (ram,) = (root / "ram").rglob("pc.ram")
        return uri, ram

    yield begin
    for domain in domains:
        domain.destroy()


def test_domstats_count_the_guests_port_writes(start: Callable[[str], tuple[str, Path]]) -> None:
    uri, ram = start("kvm")
    mailbox = Mailbox(ram)
    mailbox.order(PIO, 1)  # has started
    with open_session("libvirt:exits", "libvirt", uri) as session:
        before = session.sample()
        mailbox.order(PIO, 10_000)
        m = meter.measure(session.identity, meter.delta(session.identity, before, session.sample()))
    mailbox.close()
    assert session.identity.missing == ()
    assert m.refused is None
    assert m.counted == pytest.approx(10_000, rel=0.01)
    assert m.delta.cpu_ms is not None, "the VM's process was found"


def test_a_domain_under_tcg_has_no_exits(start: Callable[[str], tuple[str, Path]]) -> None:
    uri, _ = start("qemu")
    for source, said in (("libvirt", "this VM has none"), ("auto", "no source of exit counts works")):
        with pytest.raises(MissingError, match=said) as caught, open_session("exits", source, uri):
            pass
        hint = str(caught.value.hint)
        assert ("--source qemu-trace" in hint) == (source == "libvirt")
        assert "--source vpt counts the kicks" in hint
        assert "-qmp unix:PATH" in hint


def test_an_unknown_domain_is_named(start: Callable[[str], tuple[str, Path]]) -> None:
    uri, _ = start("qemu")
    with pytest.raises(NotFoundError, match="no VM 'nosuch'"), open_session("nosuch", connect=uri):
        pass
