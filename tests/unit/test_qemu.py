# SPDX-License-Identifier: BSD-2-Clause
"""QEMU command lines, versions, the accelerator's verdict, console text."""

from __future__ import annotations

import errno
import stat
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from vpt.errors import MissingError
from vpt.qemu import (
    Ivshmem,
    KvmFault,
    Machine,
    Qemu,
    VhostUser,
    command_line,
    console_text,
    find_qemu,
    kvm_fault,
    probe_accel,
)
from vpt.qemu import _kvm as kvm_module
from vpt.qemu._binary import parse_version

OLD = Qemu(Path("/usr/bin/qemu-system-x86_64"), (7, 2, 22))
NEW = Qemu(Path("/usr/bin/qemu-system-x86_64"), (10, 0, 2))
MAC = "52:54:00:00:00:01"


def machine(*nics, accel="tcg", **more) -> Machine:
    return Machine(kernel=Path("/k"), initrd=Path("/i"), accel=accel, nics=nics, **more)


def options(argv: list[str], name: str) -> list[str]:
    return [value for key, value in pairwise(argv) if key == name]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", (7, 2, 22)),
        ("QEMU emulator version 10.0.2", (10, 0, 2)),
        ("bash: no such thing", None),
    ],
)
def test_version_is_read_from_the_first_line(text, version):
    assert parse_version(text) == version


def test_more_than_one_cpu_is_always_possible():
    """With maxcpus=1, QEMU drops the guest's memory barriers under TCG, and wake-ups get lost."""
    for accel in ("tcg", "kvm"):
        assert options(command_line(machine(accel=accel), OLD), "-smp") == ["1,maxcpus=2"]


def test_memory_is_shared_for_vhost_user():
    argv = command_line(machine(memory_mib=300), OLD)
    (memory,) = [value for value in options(argv, "-object") if value.startswith("memory-backend-memfd")]
    assert "share=on" in memory
    assert "size=300M" in memory
    assert options(argv, "-m") == ["300M"]


@pytest.mark.parametrize(
    ("qemu", "accel", "without_msix"),
    [(OLD, "tcg", True), (OLD, "kvm", False), (NEW, "tcg", False), (NEW, "kvm", False)],
)
def test_vhost_user_has_no_msix_where_qemu_would_crash(qemu, accel, without_msix):
    argv = command_line(machine(VhostUser(Path("/s"), MAC), accel=accel), qemu)
    (device,) = [value for value in options(argv, "-device") if value.startswith("virtio-net-pci")]
    assert ("vectors=0" in device) is without_msix


@pytest.mark.parametrize(("qemu", "option"), [(OLD, "reconnect=1"), (NEW, "reconnect-ms=1000")])
def test_vhost_user_reconnects_and_ivshmem_never_does(qemu, option):
    argv = command_line(machine(VhostUser(Path("/v"), MAC), Ivshmem(Path("/i"), 3)), qemu)
    vhost, ivshmem = [value for value in options(argv, "-chardev") if value.startswith("socket")]
    assert option in vhost.split(",")
    assert "reconnect" not in ivshmem
    assert "ivshmem-doorbell,id=ivs1,vectors=3,chardev=chr1" in options(argv, "-device")


def test_a_comma_in_a_path_does_not_end_the_option():
    argv = command_line(machine(Ivshmem(Path("/a,b"), 3)), OLD)
    assert any("path=/a,,b" in value for value in options(argv, "-chardev"))


def test_several_queues_bring_their_vectors():
    argv = command_line(machine(VhostUser(Path("/s"), MAC, queues=4), accel="kvm"), OLD)
    (device,) = [value for value in options(argv, "-device") if value.startswith("virtio-net-pci")]
    assert {"mq=on", "vectors=10"} <= set(device.split(","))


def test_a_device_has_the_properties_that_it_is_given():
    argv = command_line(machine(VhostUser(Path("/s"), MAC, properties="packed=on,csum=off")), OLD)
    (device,) = [value for value in options(argv, "-device") if value.startswith("virtio-net-pci")]
    assert {"packed=on", "csum=off"} <= set(device.split(","))


def test_missing_qemu_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.delenv("VPT_QEMU", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingError) as raised:
        find_qemu()
    assert "qemu-system" in raised.value.message
    assert "apt-get install" in raised.value.hint


def test_a_variable_that_names_no_qemu_is_what_has_to_change(monkeypatch):
    monkeypatch.setenv("VPT_QEMU", "/nonexistent/qemu")
    with pytest.raises(MissingError) as raised:
        find_qemu()
    assert "VPT_QEMU is /nonexistent/qemu" in raised.value.message
    assert "unset VPT_QEMU" in raised.value.hint


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/bin/sh\necho something else", "something else"),
        ("#!/bin/sh\nexit 1", "it said nothing"),
        ("x", "format"),
    ],
    ids=["other", "silent", "no program"],
)
def test_a_program_that_is_no_qemu_is_named_with_the_way_to_another(tmp_path, monkeypatch, script, said):
    path = tmp_path / "qemu"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("VPT_QEMU", str(path))
    with pytest.raises(MissingError, match=f"{path} is no QEMU that works: .*{said}") as raised:
        find_qemu()
    assert "VPT_QEMU" in raised.value.hint


def test_console_text_keeps_lines_and_drops_what_moves_a_terminal():
    raw = b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1)\r\nBooting\x07 \xff\tlinux\r\n"
    assert console_text(raw) == "SeaBIOS (version 1)\nBooting �\tlinux\n"


# ---- the accelerator's verdict ----


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """pretend(SCRIPT): a /dev/kvm that opens, and a "QEMU" that is this shell script. Returns the probe."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm_module, "_KVM", tmp_path / "kvm")
    kernel = tmp_path / "kernel"
    kernel.touch()

    def make(script: str):
        binary = tmp_path / "qemu"
        binary.write_text(f"#!/bin/sh\necho run >>{tmp_path}/runs\n{script}\n")
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        qemu = Qemu(binary, (7, 2, 0))
        return lambda: probe_accel(
            kernel, kernel, qemu, marker=b"UP", cache=tmp_path / "cache", timeout_s=0.5
        )

    return make


def test_no_kvm_device_means_tcg(monkeypatch, tmp_path):
    monkeypatch.setattr(kvm_module, "_KVM", tmp_path / "absent")
    verdict = probe_accel(tmp_path, tmp_path, OLD, marker=b"UP", cache=tmp_path)
    assert verdict.name == "tcg"
    assert verdict.why == "no /dev/kvm (modprobe kvm_intel || modprobe kvm_amd)"


@pytest.mark.parametrize(
    ("mode", "gid", "ours", "members", "fix"),
    [
        (0o660, 78, (), [], "sudo adduser eve virt; log in again"),
        (0o660, 78, (), ["eve"], "log in again: eve is in the group virt by now"),
        (0o660, 79, (), [], "sudo adduser eve 79; log in again"),
        (0o660, 78, (78,), ["eve"], "a container needs the device: --device /dev/kvm"),
        (0o600, 78, (78,), ["eve"], "sudo setfacl -m u:eve:rw /dev/kvm"),
        (0o660, 0, (), [], "sudo setfacl -m u:eve:rw /dev/kvm"),
    ],
)
def test_who_may_not_open_kvm_is_told_what_helps(
    mode: int, gid: int, ours: tuple[int, ...], members: list[str], fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is the one that the device has here; root's own is none to join."""

    def group(number: int) -> SimpleNamespace:
        return {0: SimpleNamespace(gr_name="root", gr_mem=[]),
                78: SimpleNamespace(gr_name="virt", gr_mem=members)}[number]  # fmt: skip

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(
        kvm_module, "_KVM", SimpleNamespace(stat=lambda: SimpleNamespace(st_mode=mode, st_gid=gid))
    )
    for name, value in (("open", refuse), ("geteuid", lambda: 1000), ("getegid", lambda: 1000)):
        monkeypatch.setattr(kvm_module.os, name, value)
    monkeypatch.setattr(kvm_module.os, "getgroups", lambda: ours)
    monkeypatch.setattr("grp.getgrgid", group)
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="eve"))
    assert kvm_fault() == KvmFault("no permission for /dev/kvm", fix)


def test_a_kvm_without_its_module_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(kvm_module.os, "open", refuse)
    assert str(kvm_fault()) == "/dev/kvm: No such device (modprobe kvm_intel || modprobe kvm_amd)"


def test_kvm_is_used_when_a_guest_came_up_under_it(pretend):
    assert pretend("echo booting; echo UP; exec sleep 60")().name == "kvm"


def test_kvm_that_hangs_means_tcg(pretend):
    verdict = pretend("echo stuck here; exec sleep 60")()
    assert verdict.name == "tcg"
    assert "stuck here" in verdict.why


def test_kvm_that_fails_means_tcg_and_says_why(pretend):
    verdict = pretend("echo 'qemu-system-x86_64: no such luck' >&2; exit 1")()
    assert verdict.name == "tcg"
    assert verdict.why.endswith("saying: no such luck")


def test_the_verdict_is_found_out_once(pretend, tmp_path):
    probe = pretend("echo UP; exec sleep 60")
    assert probe() == probe()
    assert (tmp_path / "runs").read_text() == "run\n"
    (tmp_path / "cache" / "accel.json").write_text("{broken")
    assert probe().name == "kvm"


def test_spare_slots_are_behind_everything_else_and_move_nothing() -> None:
    plain, spare = command_line(machine(), OLD), command_line(machine(spare_slots=2), OLD)
    assert spare[: len(plain)] == plain
    assert options(spare[len(plain) :], "-device") == [
        "pcie-root-port,id=spare1,chassis=1,slot=1",
        "pcie-root-port,id=spare2,chassis=2,slot=2",
    ]
