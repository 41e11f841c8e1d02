# SPDX-License-Identifier: BSD-2-Clause
"""What this host can do: each check tries the thing itself, and says what would mend it.

ok        works
note      works, or is not needed, but worth knowing
missing   vpt, or its virtual machines, can't do without
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vpt.doctor import _daemon, _dataplane, _host, _libvirt, _machines
from vpt.doctor._check import Check, guarded

if TYPE_CHECKING:
    from vpt.daemon.runtime import RuntimePaths

__all__ = ["Check", "examine"]


def examine(paths: RuntimePaths, *, boot: bool = True) -> Iterator[Check]:
    """All checks; one that fails explains those after it. boot: start guests too."""
    checks: list[tuple[str, Callable[[], Check | Iterator[Check]]]] = [
        ("Python", _host.python),
        ("data plane", _dataplane.data_plane),
        ("runtime dir", lambda: _daemon.runtime_dir(paths)),
        ("vptd", lambda: _daemon.vptd(paths)),
        ("sockets", lambda: _daemon.sockets(paths)),
        ("CPUs", _host.cpus),
        ("open files", _host.open_files),
        ("QEMU", _machines.qemu),
        ("QEMU faults", _machines.faults),
        ("ivshmem", _machines.ivshmem),
        ("guest kernel", _machines.guest_kernel),
        ("kernel headers", _machines.kernel_headers),
        ("busybox", _machines.busybox),
        ("guest image", _machines.guest_image if boot else _machines.skipped),
        ("KVM", _machines.kvm if boot else _machines.kvm_without_booting),
        ("libvirt", lambda: _libvirt.libvirt(paths)),
        ("libvirt hook", _libvirt.hook),
        ("tap", _host.tap),
        ("huge pages", _host.huge_pages),
        ("locked memory", _host.locked_memory),
    ]
    for name, check in checks:
        yield from guarded(name, check)
