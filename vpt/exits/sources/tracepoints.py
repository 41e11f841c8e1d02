# SPDX-License-Identifier: BSD-2-Clause
"""KVM's tracepoints, counted by the kernel with perf_event_open(2): no trace buffer, no perf binary.

`kvm_exit` counts exits where it fires. Under PVM it exists and never does; exits to user space are counted
there instead, which is another quantity and is named so.
"""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path

from vpt.errors import GuestError, MissingError, NotFoundError
from vpt.exits.model import Quantity, Tier
from vpt.exits.sources.base import Source, Units
from vpt.exits.sources.debugfs import mount_point
from vpt.perf_event import EventType, open_counter, read_counter

__all__ = ["Tracepoints"]

# Tracepoint -> the name it has here. One per line of `perf stat`, were it asked.
_EVENTS = {
    "kvm_userspace_exit": "userspace_exits",
    "kvm_pio": "pio",
    "kvm_mmio": "mmio",
    "kvm_fast_mmio": "fast_mmio",
    "kvm_msi_set_irq": "msi_set_irq",
    "kvm_emulate_insn": "emulate_insn",
}
_IOC_SET_FILTER = 0x40082406
# An exit by an external interrupt: reason 1 on VT-x (isa 1), 0x60 on SVM (isa 2).
_IRQ_FILTER = b"(isa == 1 && exit_reason == 1) || (isa == 2 && exit_reason == 0x60)"


class Tracepoints(Source):
    """Counts by tracepoint over all threads that the VM has when this opens."""

    name = "tracepoints"

    def __init__(self, pid: int, tier: Tier) -> None:
        fires = tier is Tier.KVM
        self.quantity = Quantity.EXITS if fires else Quantity.USERSPACE_EXITS
        self.missing = () if fires else ("exits", "irq_exits")
        self._pid = pid
        self._fds: dict[str, list[int]] = {}
        root = _events_dir()
        try:
            threads = [int(t) for t in os.listdir(f"/proc/{pid}/task")]
            for event, name in _EVENTS.items():
                self._count(root, event, name, threads)
            if fires:
                self._count(root, "kvm_exit", "exits", threads)
                if platform.machine() == "x86_64":
                    self._count(root, "kvm_exit", "irq_exits", threads, _IRQ_FILTER)
                else:
                    self.missing += ("irq_exits",)
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no process {pid}", hint="pgrep -a qemu lists the VMs of this host"
            ) from None
        except ProcessLookupError:
            self.close()
            raise GuestError("the VM ended", hint="start it again and keep it running") from None
        except BaseException:
            self.close()
            raise

    def _count(
        self, root: Path, event: str, name: str, threads: list[int], only: bytes | None = None
    ) -> None:
        number = _event_id(root, event)
        if number is None:
            self.missing += (name,)
            return
        fds = self._fds[name] = []
        for tid in threads:
            fds.append(_open_counter(number, tid))
            if only is not None:
                fcntl.ioctl(fds[-1], _IOC_SET_FILTER, only + b"\0")

    def read(self) -> Units:
        """One unit, "vm"."""
        if not os.path.exists(f"/proc/{self._pid}"):
            raise GuestError("the VM ended while it was measured", hint="start it again and keep it running")
        return {"vm": {name: sum(map(read_counter, fds)) for name, fds in self._fds.items()}}

    def close(self) -> None:
        """Remove the counters from the kernel."""
        for fds in self._fds.values():
            for fd in fds:
                os.close(fd)
        self._fds = {}


def _events_dir() -> Path:
    for fstype, below in (("tracefs", "events/kvm"), ("debugfs", "tracing/events/kvm")):
        root = mount_point(fstype)
        try:
            if root is not None and (root / below).is_dir():
                return root / below
        except PermissionError:
            raise MissingError(f"no permission to look into {root}", hint="run as root") from None
    raise MissingError(
        "KVM's tracepoints are not to be seen: tracefs is not mounted, or this kernel has none",
        hint="mount -t tracefs nodev /sys/kernel/tracing",
    )


def _event_id(root: Path, event: str) -> int | None:
    try:
        return int((root / event / "id").read_text())
    except FileNotFoundError:
        return None
    except PermissionError:
        raise MissingError(f"no permission to read {root / event}", hint="run as root") from None


def _open_counter(number: int, tid: int) -> int:
    """A counter of one tracepoint in one thread, running."""
    try:
        return open_counter(EventType.TRACEPOINT, number, tid)
    except MissingError as error:
        raise MissingError(
            error.message,
            hint=f"{error.hint}, or use --source qmp" if error.hint else "use --source qmp or stats-fd",
        ) from None
