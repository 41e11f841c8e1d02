# SPDX-License-Identifier: BSD-2-Clause
"""`vpt exits record` of a domain of a real libvirtd that ends: no number that looks like a result."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from support.exits_guest import build_payload, domain_xml
from support.libvirt import NEEDS
from support.libvirtd import Libvirtd
from vpt.cli.exits import exits
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.errors import GuestError
from vpt.exits.session import load
from vpt.libvirt_plugin import _answers

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(240),
    pytest.mark.needs(*NEEDS, "libvirtd", "unshare", "gcc", "virsh"),
]

NAME = "brief"


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_payload(tmp_path_factory.mktemp("exits"))


@pytest.fixture
def xml(libvirtd: Libvirtd, payload: Path) -> Iterator[Callable[[str], str]]:
    """xml("kvm"): a domain that is not known to libvirt yet."""

    def write(kind: str) -> str:
        if kind == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("/dev/kvm can't be opened: modprobe kvm_intel or kvm_amd, or join its group")
        return domain_xml(NAME, kind, payload)

    yield write
    import libvirt

    with suppress(libvirt.libvirtError):
        domain = libvirtd.libvirt.connection.lookupByName(NAME)
        with suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefine()


@pytest.fixture
def record(
    libvirtd: Libvirtd, vptd: Client, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], tuple[Result, Path]]]:
    """record("libvirt", COMMAND): divided by the packets of a port that is no VM's.

    $virsh in COMMAND is that of this libvirtd.
    """
    monkeypatch.setattr("vpt.exits.session._FINISH_S", 0.1)
    monkeypatch.setenv("virsh", f"virsh -q -c {libvirtd.uri}")
    vptd.call("port.add", switch="sw0", name="sink", kind="null")

    def run(source: str, command: str) -> tuple[Result, Path]:
        out = tmp_path / "r.json"
        named = (
            "--connect",
            libvirtd.uri,
            "--source",
            source,
            "--stats",
            locate(runtime).stats,
            "--port",
            "sink",
        )
        arguments = ("record", NAME, *named, "-o", out, "--interval", 0.1, "--", "sh", "-ec", command)
        return CliRunner().invoke(exits, [str(argument) for argument in arguments]), out

    yield run
    vptd.call("port.del", name="sink")


#: What counts: KVM by libvirt itself, and vptd, whose counters outlive the domain.
SOURCES = [("kvm", "libvirt"), ("kvm", "vpt"), ("qemu", "vpt")]


@pytest.mark.parametrize(("kind", "source"), SOURCES)
@pytest.mark.parametrize("transient", [True, False], ids=["transient", "defined"])
def test_a_domain_that_ends_leaves_a_marked_file(
    libvirtd: Libvirtd,
    xml: Callable[[str], str],
    record: Callable[[str, str], tuple[Result, Path]],
    kind: str,
    source: str,
    transient: bool,
) -> None:
    """A transient one is not even known any more: libvirt says so by an error."""
    connection, text = libvirtd.libvirt.connection, xml(kind)
    if transient:
        connection.createXML(text)
    else:
        connection.defineXML(text).create()
    result, out = record(source, f"$virsh destroy {NAME}; exec sleep 60")
    assert isinstance(result.exception, GuestError), (result.exception, result.output)
    assert result.exception.exit_code == 1
    said, hint = str(result.exception), str(result.exception.hint)
    assert said.startswith(f"the VM '{NAME}' ended while it was measured"), said
    assert f"{out} holds" in said
    assert ("create XMLFILE" if transient else f"start {NAME}") in hint
    assert "per packet" not in result.output
    recording = load(out)
    assert (recording.complete, recording.ended) == (False, said.partition(", before")[0])


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_a_domain_that_was_started_again_is_another_vm(
    libvirtd: Libvirtd,
    xml: Callable[[str], str],
    record: Callable[[str, str], tuple[Result, Path]],
    kind: str,
    source: str,
) -> None:
    """libvirt knows it by the same name, and says that it runs."""
    libvirtd.libvirt.connection.defineXML(xml(kind)).create()
    result, out = record(source, f"$virsh destroy {NAME}; $virsh start {NAME}")
    assert isinstance(result.exception, GuestError), (result.exception, result.output)
    assert f"'{NAME}' ended while it was measured" in str(result.exception)
    assert not load(out).complete


@pytest.mark.parametrize(
    ("whose", "says", "helps"),
    [
        ("libvirtd", "does not answer: waited", "systemctl restart libvirtd"),
        ("QEMU", "process {pid} is stopped", "kill -CONT {pid}"),
    ],
)
def test_one_that_is_stopped_is_named_and_does_not_hold_a_recording_for_ever(
    libvirtd: Libvirtd,
    xml: Callable[[str], str],
    record: Callable[[str, str], tuple[Result, Path]],
    monkeypatch: pytest.MonkeyPatch,
    whose: str,
    says: str,
    helps: str,
) -> None:
    """Calls of libvirt wait in C, where Ctrl-C is not heard."""
    libvirtd.libvirt.connection.createXML(xml("kvm"))
    pid = libvirtd.pid if whose == "libvirtd" else libvirtd.qemu_pid(NAME)
    limits = {"_ASK_S": 1, "_SILENT": 1} if whose == "libvirtd" else {"_VM_S": 2.0}
    for name, limit in limits.items():
        monkeypatch.setattr(_answers, name, limit)
    try:
        result, out = record("libvirt", f"kill -STOP {pid}; exec sleep 60")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(result.exception, GuestError), (result.exception, result.output)
    assert says.format(pid=pid) in str(result.exception)
    assert helps.format(pid=pid) in str(result.exception.hint)
    assert not load(out).complete
