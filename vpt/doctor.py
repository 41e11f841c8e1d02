# SPDX-License-Identifier: BSD-2-Clause
"""What this host can do: each check tries the thing itself, and says what would mend it.

ok        works
note      works, or is not needed, but worth knowing
missing   vpt, or its virtual machines, can't do without
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vpt.errors import MissingError, TimeoutExpired, VptError

if TYPE_CHECKING:
    from vpt.daemon.runtime import RuntimePaths
    from vpt.dataplane import App, Engine, Port

__all__ = ["Check", "examine"]

_PACKETS = 1000
_SELF_TEST_S = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line. fix: a command, or advice, that helps; empty where there is nothing to do."""

    name: str
    verdict: Literal["ok", "note", "missing"]
    what: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(paths: RuntimePaths, *, boot: bool = True) -> Iterator[Check]:
    """All checks; one that fails explains those after it. boot: start a guest too."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("Python", _python),
        ("data plane", _data_plane),
        ("runtime dir", lambda: _runtime_dir(paths)),
        ("vptd", lambda: _vptd(paths)),
        ("CPUs", _cpus),
        ("open files", _open_files),
        ("QEMU", _qemu),
        ("ivshmem", _ivshmem),
        ("guest kernel", _guest_kernel),
        ("busybox", _busybox),
        ("guest image", _guest_image if boot else _skipped),
        ("KVM", _kvm if boot else _kvm_without_booting),
        ("tap", _tap),
        ("huge pages", _huge_pages),
        ("locked memory", _locked_memory),
    ]
    for name, check in checks:
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except VptError as error:
        return Check(name, "missing", error.message, error.hint or "")
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Check(name, "missing", f"{type(error).__name__}: {error}")


def _skipped() -> Check:
    return Check("guest image", "note", "not tried", "vpt doctor, without --no-boot")


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")


# ---- the data plane, by using it ----


def _data_plane() -> Check:
    try:
        import vpt.dataplane  # noqa: F401
    except ImportError as error:
        raise MissingError(
            f"the C extension does not load: {error}", hint="build it: pip install ."
        ) from None
    seconds = _self_test()
    what = f"{_PACKETS} packets through a switch, none lost, {seconds * 1e3:.0f} ms"
    return Check("data plane", "ok", what)


def _self_test() -> float:
    """Two app ports on a switch in this process, packets from one to the other. Seconds that they took."""
    from vpt.dataplane import Engine

    with Engine(workers=1) as engine, ExitStack() as undo:
        switch = engine.add_switch("doctor")
        (port_a, app_a), (port_b, app_b) = (_end(switch, name, undo) for name in ("end-a", "end-b"))
        ports = {port.id: port for port in (port_a, port_b)}
        deadline = time.monotonic() + _SELF_TEST_S
        waiting = [app_a, app_b]
        while waiting:
            waiting = [app for app in waiting if not app.step()]
            _act_on_status(engine, ports)
            _check_deadline(deadline, "the handshake over the rings")
        begin = time.monotonic()
        _exchange(app_a, app_b, deadline)
        return time.monotonic() - begin


def _end(switch: Any, name: str, undo: ExitStack) -> tuple[Port, App]:
    from vpt.daemon.transports.ring import create_bundle
    from vpt.dataplane import App, Kind, RegionOptions

    options = RegionOptions(name=name)
    bundle = create_bundle(options)
    undo.callback(bundle.close)
    port = switch.add_port(name, Kind.APP)
    port.ring_attach(bundle.memory, options, bundle.kicks, bundle.interrupts)
    app = undo.enter_context(App(bundle.memory, bundle.kicks, bundle.interrupts))
    return port, app


def _act_on_status(engine: Engine, ports: dict[int, Port]) -> None:
    for event in engine.events():
        ports[event.port_id].ring_status()


def _exchange(sender: App, receiver: App, deadline: float) -> None:
    sent = received = 0
    while received < _PACKETS:
        if sent < _PACKETS and sent - received < 64 and sender.send(0, _frame(sent)):
            sent += 1
            continue
        frame = receiver.recv(0)
        if frame is None:
            receiver.wait(0, timeout=0.1)
            _check_deadline(deadline, f"packet {received} of {_PACKETS}")
        elif frame != _frame(received):
            raise MissingError("a packet arrived that is not what was sent", hint="report this as a bug")
        else:
            received += 1


def _frame(number: int) -> bytes:
    return b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(42)


def _check_deadline(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutExpired(f"waited {_SELF_TEST_S:.0f} s for {what}", hint="report this as a bug")


# ---- the daemon ----


def _runtime_dir(paths: RuntimePaths) -> Check:
    nearest = paths.runtime
    while not nearest.exists():
        nearest = nearest.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        state = "is there" if nearest == paths.runtime else "can be made"
        return Check("runtime dir", "ok", f"{paths.runtime} {state}")
    return Check(
        "runtime dir",
        "missing",
        f"user {os.geteuid()} may not write to {nearest}",
        "sudo vpt doctor, or choose a folder of yours: export VPT_RUNTIME_DIR=$HOME/.vpt",
    )


def _vptd(paths: RuntimePaths) -> Check:
    from vpt import __version__
    from vpt.daemon.launch import running

    status = running(paths)
    if status is None:
        return Check("vptd", "note", "not running", "vpt daemon start")
    what = f"version {status['version']}, process {status['pid']}, {status['ports']} ports"
    if status["version"] != __version__:
        return Check("vptd", "note", f"{what}; this is {__version__}", "vpt daemon stop && vpt daemon start")
    return Check("vptd", "ok", what)


def _cpus() -> Check:
    usable = len(os.sched_getaffinity(0))
    if usable < 3:
        return Check(
            "CPUs",
            "note",
            f"{usable} usable: guests and workers take turns on them",
            "leave the policy at adaptive; poll wants a CPU for each worker",
        )
    return Check("CPUs", "ok", f"{usable} usable")


def _open_files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{hard} per process"
    if hard != resource.RLIM_INFINITY and hard < 4096:
        return Check("open files", "note", f"{what}; a port takes 14 and more", "ulimit -Hn 65536, as root")
    return Check("open files", "ok", what)


# ---- virtual machines ----


def _qemu() -> Check:
    from vpt.qemu import find_qemu

    qemu = find_qemu()
    if not qemu.tcg_vhost_msix:
        return Check(
            "QEMU",
            "ok",
            f"{qemu}, {qemu.path}; without KVM it crashes on vhost-user with MSI-X, which vpt avoids",
            "in your own command lines without KVM: -device virtio-net-pci,vectors=0",
        )
    return Check("QEMU", "ok", f"{qemu}, {qemu.path}")


def _ivshmem() -> Check:
    from vpt.qemu import find_qemu

    argv = [str(find_qemu().path), "-device", "help"]
    devices = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout
    if "ivshmem-doorbell" in devices:
        return Check("ivshmem", "ok", "this QEMU has ivshmem-doorbell, which passthrough ports use")
    return Check(
        "ivshmem",
        "missing",
        "this QEMU is built without ivshmem-doorbell: no passthrough ports",
        "apt-get install qemu-system-x86, or use vhost-user ports",
    )


def _guest_kernel() -> Check:
    from vpt.guest import find_kernel

    kernel = find_kernel()
    return Check("guest kernel", "ok", f"Linux {kernel.release} with modules and headers")


def _busybox() -> Check:
    from vpt.guest import find_busybox

    return Check("busybox", "ok", f"{find_busybox()}, static")


def _guest_image() -> Check:
    from vpt.guest import build_image

    return Check("guest image", "ok", f"built, with vpt_net: {build_image().initrd}")


def _kvm_device() -> Check | None:
    """What is wrong with /dev/kvm, if anything."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        what, fix = "no /dev/kvm: guests run slowly, under TCG", "modprobe kvm_intel || modprobe kvm_amd"
    except PermissionError:
        user = os.environ.get("USER", "USER")
        what, fix = (
            "no permission for /dev/kvm: guests run under TCG",
            f"sudo adduser {user} kvm; log in again",
        )
    except OSError as error:
        what, fix = f"/dev/kvm: {error.strerror}: guests run slowly, under TCG", "dmesg | grep kvm"
    else:
        return None
    return Check("KVM", "note", what, fix)


def _kvm_without_booting() -> Check:
    return _kvm_device() or Check(
        "KVM", "note", "/dev/kvm opens; no guest was booted to see whether it works"
    )


def _kvm() -> Check:
    from vpt.guest import READY_MARK, build_image, cache_dir
    from vpt.qemu import find_qemu, probe_accel

    bad = _kvm_device()
    if bad is not None:
        return bad
    image = build_image()
    verdict = probe_accel(
        image.kernel.vmlinuz, image.initrd, find_qemu(), marker=READY_MARK, cache=cache_dir()
    )
    if verdict.name == "kvm":
        return Check("KVM", "ok", verdict.why)
    return Check("KVM", "note", f"guests run slowly, under TCG: {verdict.why}")


# ---- what some ports use ----


def _tap() -> Check:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        fix = "ls -l /dev/net/tun" if error.errno == errno.EACCES else "modprobe tun"
        return Check("tap", "note", f"/dev/net/tun: {error.strerror}; no tap ports", fix)
    os.close(fd)
    if _effective_capability(12):
        return Check("tap", "ok", "interfaces can be made (CAP_NET_ADMIN)")
    return Check(
        "tap",
        "note",
        "only interfaces that were made for this user can be used",
        f"sudo ip tuntap add dev tap0 mode tap vnet_hdr user {os.environ.get('USER', 'USER')}",
    )


def _effective_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _huge_pages() -> Check:
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(info.get("HugePages_Total", "0"))
    what = f"{total} reserved; vpt needs none" if total else "none reserved; vpt needs none"
    return Check("huge pages", "ok", what)


def _locked_memory() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    return Check("locked memory", "ok", f"{limit}; vpt locks none")
