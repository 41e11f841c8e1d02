# SPDX-License-Identifier: BSD-2-Clause
"""Sources of exit counts, one file each. `open_source` makes one; each is imported only when tried."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vpt.errors import MissingError, UsageError
from vpt.exits.model import Tier
from vpt.exits.sources.base import Source, Units
from vpt.exits.target import Vm

if TYPE_CHECKING:
    from vpt.qemu.qmp import QmpSession

__all__ = ["NAMES", "Source", "Units", "open_source"]


def _stats_fd(vm: Vm) -> Source:
    from vpt.exits.sources.stats_fd import StatsFd

    return StatsFd(_pid(vm))


def _qmp(vm: Vm) -> Source:
    from vpt.exits.sources.qmp_stats import QmpStats

    return QmpStats(_session(vm))


def _libvirt(vm: Vm) -> Source:
    from vpt.exits.sources.libvirt_domstats import LibvirtDomstats

    if vm.domain is None:
        raise MissingError("the VM was not named through libvirt", hint="name it libvirt:NAME")
    return LibvirtDomstats(vm.domain)


def _debugfs(vm: Vm) -> Source:
    from vpt.exits.sources.debugfs import Debugfs

    return Debugfs(_pid(vm))


def _tracepoints(vm: Vm) -> Source:
    from vpt.exits.sources.tracepoints import Tracepoints

    return Tracepoints(_pid(vm), vm.tier)


def _qemu_trace(vm: Vm) -> Source:
    from vpt.exits.sources.qemu_trace import QemuTrace

    return QemuTrace(_session(vm), vm.pid)


# From the one that disturbs the VM least to the one that says least.
_KVM: dict[str, Callable[[Vm], Source]] = {
    "stats-fd": _stats_fd,
    "qmp": _qmp,
    "libvirt": _libvirt,
    "debugfs": _debugfs,
    "tracepoints": _tracepoints,
}
_ANY: dict[str, Callable[[Vm], Source]] = {"qemu-trace": _qemu_trace}

NAMES = ("auto", *_KVM, *_ANY, "vpt")


def open_source(vm: Vm, name: str = "auto", stats: Path | None = None, ports: tuple[str, ...] = ()) -> Source:
    """The named source of a VM's counts, or the best that works.

    MissingError: it does not work here; for "auto", what each one lacked.
    """
    if name == "vpt":
        from vpt.exits.sources.vpt_counters import VptCounters

        if stats is None:
            raise UsageError("the source vpt is a file of vptd's counters", hint="name it with --stats")
        return VptCounters(stats, ports)
    if name in _KVM and vm.tier is Tier.TCG:
        raise MissingError(
            f"{name} counts exits of KVM, and this VM has none: {vm.tier_evidence}",
            hint=f"--source qemu-trace counts dispatches to the device model instead, {_kicks(vm)}",
        )
    if name != "auto":
        return {**_KVM, **_ANY}[name](vm)
    lacking = []
    for candidate, make in (_ANY if vm.tier is Tier.TCG else _KVM).items():
        try:
            return make(vm)
        except MissingError as exc:
            lacking.append(f"{candidate}: {exc}")
    raise MissingError(
        "no source of exit counts works for this VM:\n  " + "\n  ".join(lacking),
        hint=_kicks(vm) if vm.tier is Tier.TCG else f"{_own_qmp(vm)} (QEMU 7.1 or newer){_or_as_root()}",
    )


def _kicks(vm: Vm) -> str:
    """What can be counted of a VM that has neither exits nor, as it is, dispatches."""
    kicks = "--source vpt counts the kicks of its vpt ports"
    return kicks if vm.qmp is not None else f"{kicks}; for dispatches {_own_qmp(vm)}"


def _own_qmp(vm: Vm) -> str:
    """libvirt leaves no room beside itself on the QMP socket that it made."""
    where = "" if vm.domain is None else " (qemu:commandline in its XML; libvirt needs its own socket itself)"
    return f"start QEMU with -qmp unix:PATH,server=on,wait=off{where}, and name the VM by PATH"


def _or_as_root() -> str:
    return ", or run as root" if os.geteuid() else ""


def _session(vm: Vm) -> QmpSession:
    if vm.qmp is None:
        raise MissingError("; ".join(vm.notes) or "the VM's QMP socket is not known", hint=_own_qmp(vm))
    return vm.qmp


def _pid(vm: Vm) -> int:
    if vm.pid is None:
        raise MissingError("the VM's process id is not known", hint="name the VM by pid: pgrep -a qemu")
    return vm.pid
