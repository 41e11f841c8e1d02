# SPDX-License-Identifier: BSD-2-Clause
"""From what a user calls a VM to what can be asked about it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vpt.closing import Closing
from vpt.errors import GuestError, MissingError, NotFoundError, UsageError
from vpt.exits.model import Tier
from vpt.exits.tier import kvm_tier, read_host_evidence
from vpt.qemu import names_a_socket, split_name

if TYPE_CHECKING:
    from vpt.exits.sources.libvirt_domstats import Domain
    from vpt.qemu.qmp import QmpSession

__all__ = [
    "Vm",
    "cpu_ms",
    "is_stopped",
    "look_hint",
    "open_vm",
    "qmp_path_of",
    "require_awake",
    "require_running",
    "require_there",
]

_RUNNING = {"running", "inmigrate"}


@dataclass(slots=True)
class Vm(Closing):
    """A VM that is there, with the handles through which it can be asked. Close it."""

    name: str
    tier: Tier
    tier_evidence: str
    pid: int | None = None
    qmp: QmpSession | None = None
    domain: Domain | None = None
    qemu: str | None = None
    notes: list[str] = field(default_factory=list)
    # When its process began: another one may be given the number of one that ended.
    began: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.began = _began(self.pid)

    def close(self) -> None:
        """Give the handles back; the VM goes on."""
        if self.qmp:
            self.qmp.close()
        if self.domain:
            self.domain.close()


def open_vm(name: str, connect: str | None = None) -> Vm:
    """Find a VM by pid (digits), QMP socket (a path) or libvirt name; `pid:`, `qmp:`, `libvirt:` in front
    decide.

    connect: libvirt's URI, None for libvirt's own default.
    NotFoundError: no such VM. MissingError: no permission, or libvirt's Python binding is not installed.
    """
    how, what = split_name(name, ("pid", "qmp", "libvirt"))
    if how is None:
        how = "pid" if _is_number(name) else "qmp" if names_a_socket(name) else "libvirt"
    if how == "pid":
        if not _is_number(what):
            raise UsageError(f"{what!r} is not a process id", hint="write pid:1234")
        return _by_pid(name, int(what))
    if how == "qmp":
        return _by_qmp(name, Path(what), pid=None)
    return _by_libvirt(name, what, connect)


def cpu_ms(pid: int | None) -> int | None:
    """CPU time that a process has used, all its threads together; None if it can't be said."""
    fields = _stat(pid)
    if not fields:
        return None
    return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")


def qmp_path_of(cmdline: list[str], cwd: Path) -> Path | None:
    """QMP socket that a QEMU command line opens as server, if it is one that can be connected to.

    Both spellings: -qmp unix:PATH,server=on, and -chardev socket,... with -mon ...,mode=control.
    """
    options = [("-" + name.lstrip("-"), value) for name, value in itertools.pairwise(cmdline)]
    for option, value in options:
        if option in ("-qmp", "-qmp-pretty") and value.startswith("unix:"):
            parts = value.removeprefix("unix:").split(",")
            if _is_server(parts):
                return cwd / parts[0].removeprefix("path=")
    monitors = [value.split(",") for option, value in options if option == "-mon"]
    wanted = {parts[0].removeprefix("chardev=") for parts in monitors if "mode=control" in parts}
    for option, value in options:
        parts = value.split(",")
        path = next((p.removeprefix("path=") for p in parts if p.startswith("path=")), None)
        named = {p.removeprefix("id=") for p in parts if p.startswith("id=")}
        is_qmp = option == "-chardev" and parts[0] == "socket" and named & wanted
        if is_qmp and path and _is_server(parts):
            return cwd / path
    return None


def _is_server(parts: list[str]) -> bool:
    return not {"server", "server=on", "server=yes"}.isdisjoint(parts)


def look_hint() -> str:
    """What to do where a process may not be looked at."""
    if os.geteuid() == 0:
        return "root needs CAP_SYS_PTRACE for it, which containers lack: run it where the VM was started"
    return "run as the same user as the VM, or as root"


def require_running(vm: Vm) -> None:
    """GuestError if QEMU, or libvirt, says that the VM does not run, with the reason it gives."""
    status = _status(vm)
    if status is None or status in _RUNNING:
        return
    if status == "internal-error":
        raise GuestError(
            "KVM stopped this VM (internal-error): this host's KVM can't run its code",
            hint="run it with -accel tcg, or measure with the micro guest: vpt bench run exits",
        )
    resume = vm.domain.resume if vm.domain else "resume it (QMP: cont)"
    raise GuestError(f"the VM does not run: its status is {status}", hint=f"{resume}, then measure")


def is_stopped(vm: Vm) -> bool:
    """Has a signal stopped the VM's process, or is the VM paused? False if it can't be said."""
    return _is_stopped(vm.pid) or (_status(vm) or "running") not in _RUNNING


def require_there(vm: Vm) -> None:
    """GuestError if the VM ended, whatever its source says: counters that are not QEMU's stay readable.

    A QMP session needs no such look: asked for the VM's status, it fails.
    """
    if vm.qmp is not None:
        return
    # libvirt would not tell a domain that was started again.
    if vm.began is not None and _began(vm.pid) != vm.began:
        raise GuestError(
            f"the VM {vm.name!r} ended while it was measured (process {vm.pid})",
            hint=vm.domain.again if vm.domain else "start it, and measure again while it runs",
        )
    if vm.began is None and vm.domain is not None:
        vm.domain.require_there()


def require_awake(pid: int | None) -> None:
    """GuestError if the process was stopped by a signal: it would answer nothing, and nothing in it moves."""
    if _is_stopped(pid):
        raise GuestError(f"process {pid} is stopped (by SIGSTOP or the like)", hint=f"kill -CONT {pid}")


def _is_number(text: str) -> bool:
    """Digits of a process id: not of another script, as ², and no more than int() takes."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def _is_stopped(pid: int | None) -> bool:
    return _stat(pid)[:1] == ["T"]


def _status(vm: Vm) -> str | None:
    """What QEMU says of the VM, or libvirt; None where neither can be asked."""
    if vm.qmp:
        status: str = vm.qmp.execute("query-status")["status"]
        return status
    return vm.domain.status() if vm.domain else None


def _stat(pid: int | None) -> list[str]:
    """What the kernel says of a process from its state on (proc(5), field 3); empty if it can't be said."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _began(pid: int | None) -> str | None:
    """The kernel's time at which a process began; None: there is none, or it has ended and is a zombie."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in ("Z", "X") else None


def _by_pid(name: str, pid: int) -> Vm:
    proc = Path(f"/proc/{pid}")
    if not proc.is_dir():
        raise NotFoundError(f"there is no process {pid}", hint="pgrep -a qemu lists the VMs of this host")
    require_awake(pid)
    try:
        cmdline = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
        links = _fd_links(proc)
        cwd = Path(os.readlink(proc / "cwd"))
    except PermissionError:
        raise MissingError(f"no permission to look at process {pid}", hint=look_hint()) from None
    except FileNotFoundError:
        raise NotFoundError(
            f"process {pid} has just ended", hint="pgrep -a qemu lists the VMs of this host"
        ) from None
    path = qmp_path_of(cmdline, cwd)
    if any("kvm-vcpu" in link for link in links):
        vm = Vm(name, *kvm_tier(read_host_evidence()), pid=pid)
        if path is not None:
            _try_qmp(vm, path)
        return vm
    if "qemu" not in os.path.basename(cmdline[0]):
        raise NotFoundError(
            f"process {pid} ({os.path.basename(cmdline[0]) or 'a kernel thread'}) is not a VM: "
            "it has no KVM vCPU and is not QEMU",
            hint="pgrep -a qemu lists the VMs of this host",
        )
    if path is None:
        return Vm(name, Tier.TCG, "QEMU without a KVM vCPU", pid=pid)
    return _by_qmp(name, path, pid)


def _try_qmp(vm: Vm, path: Path) -> None:
    """QMP is one more way to ask a VM named by pid; that it is taken is no reason to fail."""
    from vpt.errors import VptError
    from vpt.qemu.qmp import QmpSession

    try:
        vm.qmp = QmpSession(path)
    except VptError as exc:
        vm.notes.append(f"QMP not used: {exc}")
    else:
        vm.qemu = _version(vm.qmp)


def _by_qmp(name: str, path: Path, pid: int | None) -> Vm:
    from vpt.qemu.qmp import QmpMuteError, QmpSession, listener_pid

    try:
        session = QmpSession(path)
    except QmpMuteError as error:
        require_awake(pid or error.pid)
        raise
    try:
        kvm = session.execute("query-kvm")["enabled"]
        tier = kvm_tier(read_host_evidence()) if kvm else (Tier.TCG, "QEMU says that it does not use KVM")
        return Vm(name, *tier, pid=pid or listener_pid(path), qmp=session, qemu=_version(session))
    except BaseException:
        session.close()
        raise


def _by_libvirt(name: str, domain_name: str, connect: str | None) -> Vm:
    from vpt.exits.sources.libvirt_domstats import Domain

    domain = Domain(domain_name, connect)
    try:
        tier = (
            kvm_tier(read_host_evidence())
            if domain.type == "kvm"
            else (Tier.TCG, f"domain type {domain.type}")
        )
        return Vm(name, *tier, pid=domain.pid, domain=domain)
    except BaseException:
        domain.close()
        raise


def _fd_links(proc: Path) -> list[str]:
    links = []
    for entry in os.scandir(proc / "fd"):
        try:
            links.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue  # closed meanwhile
    return links


def _version(session: QmpSession) -> str:
    return ".".join(str(part) for part in session.version)
