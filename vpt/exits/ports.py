# SPDX-License-Identifier: BSD-2-Clause
"""Which of vptd's ports belong to a VM."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from vpt.daemon.client import Client
from vpt.daemon.owners import domain_of, of_qmp
from vpt.daemon.runtime import RuntimePaths, command
from vpt.errors import NotFoundError, UsageError, VptError
from vpt.exits.target import Vm

__all__ = ["ports_of", "ports_of_others"]

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
        hint=f"{command(stats.parent, 'ls')} shows the ports; name those that carry its packets: --port NAME",
    )


def ports_of_others(vm: Vm, stats: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Those among the named ports that are known to be another VM's, and what shows it."""
    others = {}
    # Without a vptd that answers us nothing is known.
    with contextlib.suppress(VptError), Client(RuntimePaths(stats.parent, stats.parent).control) as vptd:
        for name in names:
            with contextlib.suppress(NotFoundError):  # who reads its counters says so
                why = _is_of_another(vm, vptd.call("port.show", name=name))
                if why:
                    others[name] = why
    return others


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
    # A peer in a PID namespace that is hidden from vptd has the number 0.
    pid = _peer_pid(port)
    if vm.pid is not None and pid != 0:
        return pid == vm.pid
    return False if port["owner"] else None


def _is_of_another(vm: Vm, port: dict[str, Any]) -> str | None:
    """What shows that a port is another VM's; None: it is not, or that can't be known."""
    owner = port["owner"] or ""
    if port["kind"] not in _OF_VMS or _made_for(vm, owner):
        return None
    pid = _peer_pid(port)
    if pid and vm.pid is not None:
        return f"process {pid} is connected to it" if pid != vm.pid else None
    if vm.domain is not None and domain_of(owner):
        return f"it was made for {owner}"
    return None


def _peer_pid(port: dict[str, Any]) -> int | None:
    pid: int | None = port["peer"]["pid"] if port["peer"] else None
    return pid


def _made_for(vm: Vm, owner: str) -> bool:
    """As vpt attach and libvirt's hook mark them."""
    if vm.qmp and owner == of_qmp(vm.qmp.path):
        return True
    domain = domain_of(owner)
    return vm.domain is not None and domain is not None and domain[1] == vm.domain.uuid


def _counted(stats: Path) -> list[str]:
    from vpt.exits.sources.vpt_counters import open_counters

    with open_counters(stats) as reader:
        return [queue.port for queue in reader.read().queues if queue.kind.label in _OF_VMS]
