# SPDX-License-Identifier: BSD-2-Clause
"""/dev/kvm: whether this user may open it, and what helps where not.

One that opens is no promise: `probe_accel` runs Linux under it, the micro guest's `choose_accel` that guest.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

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
    user, group, members = _user(), *_group(device.st_gid)
    in_it = device.st_gid in (os.getegid(), *os.getgroups())
    if os.geteuid() == 0 or (in_it and device.st_mode & _GROUP_MAY == _GROUP_MAY):
        return "a container needs the device: --device /dev/kvm"
    # To be in root's group would allow more than that.
    if device.st_gid == 0 or device.st_mode & _GROUP_MAY != _GROUP_MAY:
        return f"sudo setfacl -m u:{user}:rw /dev/kvm"
    if user in members:
        return f"log in again: {user} is in the group {group} by now"
    return f"sudo adduser {user} {group}; log in again"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group(gid: int) -> tuple[str, list[str]]:
    """Its name and who is in it; its number where nobody has named it."""
    try:
        found = grp.getgrgid(gid)
    except KeyError:
        return str(gid), []
    return found.gr_name, found.gr_mem
