# SPDX-License-Identifier: BSD-2-Clause
"""Virtual machines: QEMU, its faults, guests' kernels and images, and KVM by running something under it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vpt.doctor._check import Check
from vpt.errors import MissingError, VptError
from vpt.qemu import Qemu

__all__ = [
    "busybox",
    "faults",
    "guest_image",
    "guest_kernel",
    "ivshmem",
    "kernel_headers",
    "kvm",
    "kvm_without_booting",
    "qemu",
    "skipped",
]


def qemu() -> Check:
    from vpt.qemu import find_qemu

    found = find_qemu()
    return Check("QEMU", "ok", f"{found}, {found.path}")


@dataclass(frozen=True, slots=True)
class _Fault:
    """A fault of QEMU's that a VM with vpt ports can meet. has: whether this one has it."""

    name: str
    has: Callable[[Qemu], bool]
    what: str
    avoided: str
    by_hand: str


# The last three were seen in 7.2 and 10.0, and no version is known to be without them.
_FAULTS = (
    _Fault(
        "MSI-X",
        lambda found: not found.tcg_vhost_msix,
        "without KVM it crashes when a guest uses vhost-user with MSI-X",
        "vpt's guests do without, and attach refuses domains that do not",
        "-global virtio-net-pci.vectors=0",
    ),
    _Fault(
        "barriers",
        lambda _: True,
        "without KVM and with one possible CPU it drops the guest's memory barriers",
        "vpt's guests have two, and attach warns of domains that have not",
        "-smp 1,maxcpus=2",
    ),
    _Fault(
        "eventfds",
        lambda _: True,
        "without KVM it goes on polling the eventfds of an ivshmem device that was unplugged",
        "detach has QEMU forget them, and attach refuses where that could not be done",
        "restart the VM in between",
    ),
    _Fault(
        "reconnect",
        lambda _: True,
        "it hangs or aborts when an ivshmem device's socket has reconnect",
        "vpt never sets it: the keeper holds the socket while vptd is away",
        "no reconnect= on the chardev of an ivshmem-doorbell",
    ),
)


def faults() -> Iterator[Check]:
    """Those of the QEMU that is here, and what vpt does about each."""
    from vpt.qemu import find_qemu

    try:
        found = find_qemu()
    except VptError:
        return  # that was said
    for fault in _FAULTS:
        if fault.has(found):
            yield Check(
                f"QEMU {fault.name}",
                "ok",
                f"{fault.what}; {fault.avoided}",
                f"in command lines of your own: {fault.by_hand}",
            )


def ivshmem() -> Check:
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


def guest_kernel() -> Check:
    from vpt.guest import find_kernel

    return Check("guest kernel", "ok", f"Linux {find_kernel().release} with its modules")


def kernel_headers() -> Check:
    """By preprocessing a file with them, as building vpt_net for a guest does."""
    from vpt.guest import find_kernel

    kernel = find_kernel()
    version = kernel.build / "include/generated/uapi/linux/version.h"
    argv = ["gcc", "-E", "-P", "-include", str(version), "-xc", "-"]
    try:
        done = subprocess.run(
            argv, input="LINUX_VERSION_CODE", capture_output=True, text=True, timeout=20, check=False
        )
    except FileNotFoundError:
        raise MissingError(
            "gcc is not installed, so vpt_net can't be built", hint="apt-get install gcc make"
        ) from None
    if done.returncode or not done.stdout.strip().isdigit():
        raise MissingError(
            f"the headers in {kernel.build} are incomplete",
            hint=f"apt-get install --reinstall linux-headers-{kernel.release}",
        )
    return Check("kernel headers", "ok", f"{kernel.build}, complete enough to build vpt_net")


def busybox() -> Check:
    from vpt.guest import find_busybox

    return Check("busybox", "ok", f"{find_busybox()}, static")


def skipped() -> Check:
    return Check("guest image", "note", "not tried", "vpt doctor, without --no-boot")


def guest_image() -> Check:
    from vpt.guest import build_image

    return Check("guest image", "ok", f"built, with vpt_net: {build_image().initrd}")


def _kvm_device() -> Check | None:
    """What is wrong with /dev/kvm, if anything."""
    from vpt.qemu import kvm_fault

    fault = kvm_fault()
    if fault is None:
        return None
    return Check("KVM", "note", f"{fault.what}: guests run slowly, under TCG", fault.fix)


def kvm_without_booting() -> Check:
    return _kvm_device() or Check(
        "KVM",
        "note",
        "/dev/kvm opens; nothing was run to see whether it works",
        "vpt doctor, without --no-boot",
    )


def kvm() -> Check:
    from vpt.bench.micro import choose_accel
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
    payload = choose_accel()
    if payload.name == "kvm":
        return Check(
            "KVM",
            "note",
            f"runs unprivileged code only: the micro guest runs, Linux guests run under TCG ({verdict.why})",
            "measure exits with it: vpt bench run exits; fast Linux guests need a host with VT-x or SVM",
        )
    return Check(
        "KVM", "note", f"guests run slowly, under TCG: {verdict.why}; {payload.why}", "dmesg | grep -i kvm"
    )
