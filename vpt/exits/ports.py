# SPDX-License-Identifier: BSD-2-Clause
"""Which of vptd's ports belong to a VM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpt.daemon.client import Client
from vpt.daemon.runtime import RuntimePaths
from vpt.errors import NotFoundError, UsageError, VptError
from vpt.exits.target import Vm

__all__ = ["ports_of"]

_OF_VMS = ("passthrough", "vhost-user")


def ports_of(vm: Vm, stats: Path) -> tuple[str, ...]:
    """The VM's ports: those made for it, and those that its QEMU is connected to.

    stats: vptd's counters; its control socket lies beside them.
    NotFoundError: it has none. UsageError: there are several, and nothing says which are the VM's.
    """
    try:
        with Client(RuntimePaths(stats.parent, stats.parent).control) as vptd:
            belongs = _ask(vptd, vm)
    except VptError:
        # One that does not answer, or not us; its counters can be read all the same, and hold names.
        belongs = dict.fromkeys(_counted(stats))
    ours = sorted(name for name, is_ours in belongs.items() if is_ours)
    if ours:
        return tuple(ours)
    unknown = sorted(name for name, is_ours in belongs.items() if is_ours is None)
    if len(unknown) == 1:
        return tuple(unknown)
    if unknown:
        raise UsageError(
            f"which of the ports {', '.join(unknown)} are {vm.name}'s can't be known",
            hint=f"name them: --port {unknown[0]}",
        )
    raise NotFoundError(
        f"no port of vptd belongs to {vm.name}: QEMU is connected to none, and none was made for it",
        hint="vpt ls shows the ports; name those that carry its packets: --port NAME",
    )


def _ask(vptd: Client, vm: Vm) -> dict[str, bool | None]:
    """By name of a port: is it the VM's? None: can't be known."""
    belongs = {}
    for port in vptd.call("port.list")["ports"]:
        name = port["name"]
        try:
            belongs[name] = _is_of(vm, vptd.call("port.show", name=name))
        except NotFoundError:
            continue  # deleted meanwhile
    return belongs


def _is_of(vm: Vm, port: dict[str, Any]) -> bool | None:
    if port["kind"] not in _OF_VMS:
        return False
    if _made_for(vm, port["owner"] or ""):
        return True
    peer = port["transport"].get("front_end") or port["transport"].get("peer") or {}
    # A peer in a PID namespace that is hidden from vptd has the number 0.
    if vm.pid is not None and peer.get("pid") != 0:
        return peer.get("pid") == vm.pid
    return False if port["owner"] else None


def _made_for(vm: Vm, owner: str) -> bool:
    """As vpt attach and libvirt's hook mark them: qmp:PATH, libvirt:WHICH:UUID."""
    if vm.qmp and owner == f"qmp:{vm.qmp.path.absolute()}":
        return True
    return vm.domain is not None and owner.startswith("libvirt:") and owner.endswith(f":{vm.domain.uuid}")


def _counted(stats: Path) -> list[str]:
    from vpt.exits.sources.vpt_counters import open_counters

    with open_counters(stats) as reader:
        return [queue.port for queue in reader.read().queues if queue.kind.label in _OF_VMS]
