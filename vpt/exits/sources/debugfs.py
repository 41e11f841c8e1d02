# SPDX-License-Identifier: BSD-2-Clause
"""KVM's counters from debugfs: sums over a VM's vCPUs. Needs root, and a kernel that is not locked down."""

from __future__ import annotations

from pathlib import Path

from vpt.errors import GuestError, MissingError
from vpt.exits.meter import COUNTERS
from vpt.exits.sources.base import Source, Units

__all__ = ["Debugfs", "mount_point"]


class Debugfs(Source):
    """<debugfs>/kvm/PID-FD/: one file per counter, of the one VM that this process runs."""

    name = "debugfs"

    def __init__(self, pid: int, root: Path | None = None) -> None:
        root = root or mount_point("debugfs")
        if root is None:
            raise MissingError("debugfs is not mounted", hint="mount -t debugfs none /sys/kernel/debug")
        try:
            found = sorted((root / "kvm").glob(f"{pid}-*"))
        except PermissionError:
            found = []
        if not found:
            raise MissingError(
                f"{root}/kvm has nothing for process {pid}",
                hint="run as root; or this VM does not run under KVM: pgrep -a qemu",
            )
        self._dir = found[0]
        self.missing = tuple(n for n in COUNTERS if not (self._dir / n).exists())
        self._names = tuple(n for n in COUNTERS if n not in self.missing)
        self.read()

    def read(self) -> Units:
        """One unit, "vm"."""
        try:
            return {"vm": {n: int((self._dir / n).read_text()) for n in self._names}}
        except PermissionError:
            raise MissingError(
                f"{self._dir} can't be read: no permission, even for root where the kernel is locked down",
                hint="use --source qmp or stats-fd",
            ) from None
        except (FileNotFoundError, OSError) as exc:
            raise GuestError(
                f"the VM ended while it was measured ({exc.strerror})",
                hint="start it again and keep it running",
            ) from exc


def mount_point(fstype: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> Path | None:
    """Where a file system of this type is mounted, in this mount namespace."""
    for line in mountinfo.read_text().splitlines():
        mount, _, tail = line.partition(" - ")
        if tail.split()[0] == fstype:
            return Path(mount.split()[4].replace("\\040", " "))
    return None
