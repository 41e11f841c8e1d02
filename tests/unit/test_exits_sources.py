# SPDX-License-Identifier: BSD-2-Clause
"""Parsers of the sources, the evidence for a tier, and what each source says when it can't count."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpt.errors import MissingError, NotFoundError, ProtocolError, UsageError, VptError
from vpt.exits.model import Tier
from vpt.exits.sources import open_source
from vpt.exits.sources.debugfs import Debugfs, mount_point
from vpt.exits.sources.libvirt_domstats import Domain, parse_domstats
from vpt.exits.sources.qemu_trace import parse_line
from vpt.exits.sources.qmp_stats import QmpStats, parse_stats, schema_names
from vpt.exits.sources.stats_fd import Counter, parse_counters
from vpt.exits.target import Vm, look_hint, open_vm, qmp_path_of
from vpt.exits.tier import HostEvidence, kvm_tier


def host(flags: str = "", arch: str = "x86_64", **modules: int | None) -> HostEvidence:
    return HostEvidence(arch, frozenset(flags.split()), modules)


@pytest.mark.parametrize(
    ("evidence", "tier"),
    [
        (host("fpu", kvm_pvm=None), Tier.KVM_PVM),
        (host("fpu"), Tier.KVM_PVM),
        (host("fpu vmx", kvm_intel=3), Tier.KVM),
        (host("fpu svm"), Tier.KVM),
        (host("svm", kvm_amd=0, kvm_pvm=2), Tier.KVM_PVM),
        (host("svm", kvm_amd=2, kvm_pvm=0), Tier.KVM),
        (host("svm", kvm_amd=None, kvm_pvm=None), Tier.KVM),
        (host("svm", kvm_pvm=None), Tier.KVM_PVM),
        (host(arch="aarch64"), Tier.KVM),
    ],
)
def test_the_tier_follows_from_evidence(evidence: HostEvidence, tier: Tier) -> None:
    found, why = kvm_tier(evidence)
    assert found is tier
    assert why


def test_query_stats_is_keyed_by_path_and_not_by_order() -> None:
    results = [
        {"provider": "kvm", "qom-path": "/b", "stats": [{"name": "exits", "value": 2}]},
        {"provider": "kvm", "qom-path": "/a", "stats": [{"name": "exits", "value": 1}]},
        {"provider": "kvm", "qom-path": "/new", "stats": [{"name": "exits", "value": 3}]},
    ]
    assert parse_stats(results, {"/a": 0, "/b": 1}) == {
        "vcpu0": {"exits": 1},
        "vcpu1": {"exits": 2},
        "/new": {"exits": 3},
    }


def test_flags_and_histograms_are_not_counters() -> None:
    result = {
        "qom-path": "/a",
        "stats": [{"name": "blocking", "value": False}, {"name": "h", "value": [1, 2]}],
    }
    assert parse_stats([result], {"/a": 0}) == {"vcpu0": {}}
    schemas = [
        {
            "provider": "kvm",
            "target": "vcpu",
            "stats": [{"name": "exits", "type": "cumulative"}, {"name": "h", "type": "log2-histogram"}],
        },
        {"provider": "kvm", "target": "vm", "stats": [{"name": "mmu_recycled", "type": "cumulative"}]},
    ]
    assert schema_names(schemas) == {"exits"}


def test_domstats_fields_of_libvirt() -> None:
    stats = {
        "vcpu.current": 2,
        "vcpu.0.state": 1,
        "vcpu.0.exits.sum": 10,
        "vcpu.1.exits.sum": 20,
        "vcpu.1.halt_wait_hist.sum": 5,
        "vcpu.1.irq_exits.sum": 3,
    }
    assert parse_domstats(stats) == {"vcpu0": {"exits": 10}, "vcpu1": {"exits": 20, "irq_exits": 3}}


def test_a_trace_line_is_read_and_others_are_not() -> None:
    line = b"memory_region_ops_write cpu 0 mr 0x55b5 addr 0x80 value 0x0 size 1 name 'virtio pci'"
    assert parse_line(line) == ("virtio pci", "writes")
    assert parse_line(b"12@1795.1:" + line) == ("virtio pci", "writes"), "with a time stamp in front"
    assert parse_line(line.replace(b"_write", b"_read")) == ("virtio pci", "reads")
    assert parse_line(line.replace(b"cpu 0", b"cpu -1")) is None, "the monitor's own, not a vCPU's"
    assert parse_line(b"qemu: warning: something else") is None


@given(st.binary(max_size=200))
def test_no_line_of_qemus_log_upsets_the_reader(line: bytes) -> None:
    parse_line(line)


def stats_file(names: list[str], **lies: int) -> bytes:
    """A KVM stats file: header, id, descriptors, data."""
    name_size = lies.get("name_size", 48)
    count = lies.get("count", len(names))
    desc = b"".join(
        struct.pack("=IhHII", 0, 0, 1, 8 * i, 0) + n.encode().ljust(48, b"\0") for i, n in enumerate(names)
    )
    header = struct.pack("=6I", 0, name_size, count, 24, 72, 72 + len(desc))
    return header + b"kvm-1/vcpu-0".ljust(48, b"\0") + desc + bytes(8 * len(names))


def reader(data: bytes) -> Callable[[int, int], bytes]:
    def read(size: int, offset: int) -> bytes:
        if offset + size > len(data):
            raise ProtocolError("short")
        return data[offset : offset + size]

    return read


def test_the_stats_file_describes_itself() -> None:
    counters = parse_counters(reader(stats_file(["exits", "irq_exits"])))
    assert counters == [Counter("exits", 72 + 128), Counter("irq_exits", 72 + 128 + 8)]


@pytest.mark.parametrize("lie", [{"count": 2**32 - 1}, {"count": 3}, {"name_size": 0}, {"name_size": 2**31}])
def test_a_stats_file_that_lies_is_refused(lie: dict[str, int]) -> None:
    with pytest.raises(ProtocolError):
        parse_counters(reader(stats_file(["exits", "irq_exits"], **lie)))


def test_debugfs_sums_are_read_and_absent_files_named(tmp_path: Path) -> None:
    vm = tmp_path / "kvm" / "42-11"
    vm.mkdir(parents=True)
    (vm / "exits").write_text("7\n")
    source = Debugfs(42, tmp_path)
    assert source.read() == {"vm": {"exits": 7}}
    assert "irq_exits" in source.missing
    assert "exits" not in source.missing


def test_debugfs_without_this_vm_says_so(tmp_path: Path) -> None:
    (tmp_path / "kvm" / "4242-11").mkdir(parents=True)
    with pytest.raises(MissingError, match="nothing for process 42"):
        Debugfs(42, tmp_path)


def test_mount_points_are_found_where_they_are(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:21 / /proc rw - proc proc rw\n"
        "42 27 0:8 / /odd\\040place rw,relatime shared:1 - debugfs none rw\n"
    )
    assert mount_point("debugfs", table) == Path("/odd place")
    assert mount_point("tracefs", table) is None


@pytest.mark.parametrize(
    ("cmdline", "path"),
    [
        ("qemu -qmp unix:/run/a.sock,server=on,wait=off -m 1", "/run/a.sock"),
        ("qemu -m 1 -qmp unix:b.sock,server,nowait", "/cwd/b.sock"),
        ("qemu -qmp unix:path=/run/c.sock,server=on", "/run/c.sock"),
        ("qemu -qmp tcp:127.0.0.1:4444,server=on", None),
        ("qemu -qmp unix:/run/client.sock", None),
        (
            "qemu -chardev socket,id=c,path=/run/d.sock,server=on,wait=off -mon c,mode=control",
            "/run/d.sock",
        ),
        ("qemu -chardev socket,id=c,path=/run/d.sock,server=on -mon c,mode=readline", None),
        ("qemu -chardev socket,id=c,fd=21,server=on -mon chardev=c,id=m,mode=control", None),
        ("qemu -m 1", None),
    ],
)
def test_the_qmp_socket_is_found_on_the_command_line(cmdline: str, path: str | None) -> None:
    found = qmp_path_of(cmdline.split(), Path("/cwd"))
    assert found == (Path(path) if path else None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nonexistent/qmp.sock", "no such QMP socket"),
        ("qmp:/etc/passwd", "is not a socket"),
        ("pid:4194304999", "no process"),
    ],
)
def test_a_vm_that_is_not_there_is_named_with_a_next_step(name: str, message: str) -> None:
    with pytest.raises(NotFoundError, match=message) as caught:
        open_vm(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", " ", "qmp:", "pid:", "libvirt:"])
def test_an_empty_name_is_wrong_usage_and_no_vm_of_libvirts(name: str) -> None:
    with pytest.raises(UsageError, match="names no VM") as caught:
        open_vm(name)
    assert caught.value.hint


def test_a_qmp_socket_may_be_named_by_a_relative_path(
    old_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one without a slash, which would else be libvirt's; where it is looked for is said in full."""
    monkeypatch.chdir(old_qemu.parent)
    with pytest.raises(VptError, match="query-kvm"):  # all that this one lacks: it was spoken to
        open_vm(f"qmp:{old_qemu.name}")
    with pytest.raises(NotFoundError, match=f"^{re.escape(str(old_qemu.parent / 'absent'))}: no such QMP"):
        open_vm("qmp:absent")


@pytest.mark.native
@pytest.mark.parametrize(
    ("uri", "named"),
    [("test:///default", "test:///default"), ("test:///default?a=b", "'test:///default?a=b'")],
)
def test_a_hint_asks_the_libvirt_that_was_given(uri: str, named: str) -> None:
    """libvirt's own test driver has one VM, called test."""
    pytest.importorskip("libvirt")
    with pytest.raises(NotFoundError, match="has no VM 'absent'") as caught:
        open_vm("libvirt:absent", uri)
    assert f"virsh -c {named} list --all;" in str(caught.value.hint)


def test_a_pid_is_a_number() -> None:
    with pytest.raises(UsageError):
        open_vm("pid:qemu")


class OldQemu:
    """A QMP server that knows what QEMU 6.2 knew: no real one that old is at hand."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        version = {"qemu": {"major": 6, "minor": 2, "micro": 0}, "package": ""}
        answers = {"qmp_capabilities": {}, "query-version": version}
        with peer:
            peer.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\n")
            while data := peer.recv(65536):
                # qemu.qmp sends one object at a time and no newline behind it.
                request = json.loads(data)
                command = request["execute"]
                reply: dict[str, object] = {"return": answers.get(command)}
                if command not in answers:
                    reply = {"error": {"class": "CommandNotFound", "desc": f"{command} has not been found"}}
                reply |= {key: request[key] for key in ("id",) if key in request}
                peer.sendall(json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def old_qemu(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "qmp"
    server = OldQemu(path)
    yield path
    server.close()


def test_a_qemu_too_old_is_named_with_its_version(old_qemu: Path) -> None:
    from vpt.qemu.qmp import QmpSession

    with (
        QmpSession(old_qemu) as session,
        pytest.raises(MissingError, match=r"QEMU 6.2.0 is too old") as caught,
    ):
        QmpStats(session)
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_a_qemu_without_trace_events_lacks_them(old_qemu: Path) -> None:
    from vpt.exits.sources.qemu_trace import QemuTrace
    from vpt.qemu.qmp import QmpSession

    with (
        QmpSession(old_qemu) as session,
        pytest.raises(MissingError, match="without the trace events") as caught,
    ):
        QemuTrace(session, None)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(("uid", "said"), [(0, "CAP_SYS_PTRACE"), (1000, "or as root")])
def test_root_is_not_told_to_become_root(uid: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert said in look_hint()


def test_when_no_source_works_each_ones_reason_is_told() -> None:
    vm = Vm("vm1", Tier.KVM, "because", pid=os.getpid())
    with pytest.raises(MissingError) as caught:
        open_source(vm)
    for source in ("stats-fd", "qmp", "libvirt", "debugfs", "tracepoints"):
        assert f"{source}: " in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("source", ["auto", "qmp", "qemu-trace"])
def test_of_a_domain_under_tcg_it_is_said_what_can_be_counted_and_how(source: str) -> None:
    """libvirt's own QMP socket is taken, and no source of these begins to work for root."""
    vm = Vm("vm1", Tier.TCG, "domain type qemu", domain=cast("Domain", object()))
    with pytest.raises(MissingError) as caught:
        open_source(vm, source)
    hint = str(caught.value.hint)
    assert "as root" not in hint
    assert "-qmp unix:PATH,server=on,wait=off" in hint
    assert "qemu:commandline" in hint
    assert ("--source vpt" in hint) == (source != "qemu-trace")


@pytest.mark.parametrize("uid", [0, 1000])
def test_root_is_not_told_to_run_it_as_root(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(MissingError) as caught:
        open_source(Vm("vm1", Tier.KVM, "because"))
    assert ("or run as root" in str(caught.value.hint)) == (uid != 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_no_permission_is_said_and_not_taken_for_no_vm() -> None:
    """As nobody, looking at a process of root's."""
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            open_vm(f"pid:{os.getppid()}")
        except MissingError as exc:
            os._exit(0 if exc.hint and "no permission" in str(exc) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
