# SPDX-License-Identifier: BSD-2-Clause
"""/dev/kvm: whether this user may open it, and what helps where not.

One that opens is no promise: `probe_accel` runs Linux under it, the micro guest's `choose_accel` that guest.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vpt.groups import joining, user_name

__all__ = ["KvmFault", "kvm_fault"]

_KVM = Path("/dev/kvm")
_LOAD = "modprobe kvm_intel || modprobe kvm_amd"
_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class KvmFault:
    """What is wrong, and what to do about it."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})"


def kvm_fault() -> KvmFault | None:
    """Why this user can't open /dev/kvm; None: it opens."""
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return KvmFault("no /dev/kvm", _LOAD)
    except PermissionError:
        return KvmFault("no permission for /dev/kvm", _permit(_KVM.stat()))
    except OSError as error:
        no_kvm = error.errno in (errno.ENODEV, errno.ENXIO)
        return KvmFault(f"/dev/kvm: {error.strerror}", _LOAD if no_kvm else "dmesg | grep -i kvm")
    return None


def _permit(device: os.stat_result) -> str:
    """By the group that the device has here; `kvm` is only what udev's rules mostly give it."""
    in_it = device.st_gid in (os.getegid(), *os.getgroups())
    if os.geteuid() == 0 or (in_it and device.st_mode & _GROUP_MAY == _GROUP_MAY):
        return "a container needs the device: --device /dev/kvm"
    return joining(device, _GROUP_MAY) or f"sudo setfacl -m u:{user_name()}:rw /dev/kvm"
