# SPDX-License-Identifier: BSD-2-Clause
"""plan() with the machines: made when their ports are there, removed before their ports go. Pure.

1  all that makes switches and ports, or changes them. Before a port is replaced by one that looks different
   to a machine that has it, the machine lets go of it: a domain by a detach, one that vpt made by going
2  machines that are to be replaced go; then those that are wanted are made, started, given their ports
3  machines that are not in the topology go
4  switches and ports that are not in the topology go
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vpt.daemon.models import PortConfig
from vpt.errors import ConflictError
from vpt.provision.config import VmConfig
from vpt.topology._plan import Actual, Plan, Step, Wanted
from vpt.topology._plan import plan as plan_ports

__all__ = ["plan"]


def plan(wanted: Wanted, actual: Actual, *, prune: bool = False) -> Plan:
    """The steps from `actual` to `wanted`; none if all is as wanted. prune: delete what it does not have.

    ConflictError: a machine that vpt made has a port that is to be replaced, and is not in the topology.
    """
    if not prune:
        wanted = replace(wanted, vms=tuple(_with_its_own(vm, wanted, actual) for vm in wanted.vms))
    base = plan_ports(wanted, actual, prune=prune)
    known = {vm.name for vm in wanted.vms}
    strangers = [vm for vm in actual.vms if vm.name not in known]
    lost = {
        vm.name: ports
        for vm in actual.vms
        if (vm.name in known or not prune) and (ports := _lost(vm, wanted, actual, base.steps))
    }
    # Their ports change under them, so they are touched, and have what they had in the end.
    touched = [vm for vm in strangers if vm.name in lost]
    for vm in touched:
        _require_domain(vm, lost[vm.name][0], wanted)
    alone = [vm for vm in strangers if vm.name not in lost]
    before, after, end = _parts(base.steps)
    rest = replace(actual, vms=tuple(_without(actual.vms, lost)))
    steps = [
        *before,
        *(_let_go(vm, lost[vm.name]) for vm in actual.vms if vm.name in lost),
        *after,
        *_changes((*wanted.vms, *touched), rest, pruned=_unwanted(wanted, actual) if prune else set()),
        *(_delete(vm, "not in the topology") for vm in alone if prune),
        *end,
    ]
    left = base.left_alone if prune else (*base.left_alone, *(f"vm {vm.name}" for vm in alone))
    return Plan(tuple(steps), left)


def _unwanted(wanted: Wanted, actual: Actual) -> set[str]:
    """Ports that the topology does not have."""
    return {port.name for port in actual.ports} - {port.name for port in wanted.ports}


def _with_its_own(vm: VmConfig, wanted: Wanted, actual: Actual) -> VmConfig:
    """With what `vpt attach` gave the domain beside the topology: as other ports not in it, that stays."""
    unwanted = _unwanted(wanted, actual) & actual.owners.keys()
    have = next((other for other in actual.vms if other.name == vm.name), vm)
    own = [port for port in have.ports if port.port in unwanted]
    return vm if vm.domain is None else vm.model_copy(update={"ports": [*vm.ports, *own]})


def _parts(steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Step, ...]]:
    """Of the ports' steps: until something goes, until all that is wanted is there, and what goes at last."""
    gone = ("del-port", "del-switch")
    first = next((number for number, step in enumerate(steps) if step.action in gone), len(steps))
    end = len(steps)
    while end > first and steps[end - 1].action in gone:
        end -= 1
    return steps[:first], steps[first:end], steps[end:]


# ---- ports that are replaced under a machine ----


def _lost(vm: VmConfig, wanted: Wanted, actual: Actual, steps: tuple[Step, ...]) -> list[str]:
    """Ports of a machine that are replaced, and with which its device does not go on."""
    replaced = {step.name for step in steps if step.action == "del-port"}
    replaced &= {step.name for step in steps if step.action == "add-port"}
    have = {port.name: port for port in actual.ports}
    want = have | {port.name: port for port in wanted.ports}
    return [
        name
        for name in vm.port_names
        if name in replaced and not _goes_on(vm, have[name], want[name], failed=name in actual.failed)
    ]


def _goes_on(vm: VmConfig, have: PortConfig, want: PortConfig, *, failed: bool) -> bool:
    """A vhost-user device connects again by itself; the region of passthrough is another one."""
    seen = {"kind", "mac", "pairs", "socket"} | ({"switch"} if vm.domain is not None else set())
    same = all(getattr(have, key) == getattr(want, key) for key in seen)
    return same and (failed or have.kind == "vhost-user")


def _require_domain(vm: VmConfig, port: str, wanted: Wanted) -> None:
    """What vpt made would be made anew with new disks: not without being in the topology."""
    if vm.domain is None:
        place = f"{wanted.places[port]}: " if port in wanted.places else ""
        raise ConflictError(
            f"{place}port {port!r} would be replaced, and the machine {vm.name!r}, which has it, is not in"
            " the topology",
            hint=f"add the machine, as vpt export has it, or remove it: vpt guest rm {vm.name}",
        )


def _let_go(vm: VmConfig, ports: list[str]) -> Step:
    names = ", ".join(ports)
    if vm.domain is None:
        return _delete(vm, f"{names} is replaced", anew=True)
    rest = _without_ports(vm, ports).model_dump(mode="json", exclude_defaults=True)
    params = {"add": [], "drop": ports, "config": rest}
    return Step("set-vm", vm.name, params, f"detach {names}, to be replaced", "replace")


def _without(vms: tuple[VmConfig, ...], lost: dict[str, list[str]]) -> Iterator[VmConfig]:
    """What there is when they have let go."""
    for vm in vms:
        if vm.name not in lost:
            yield vm
        elif vm.domain is not None:
            yield _without_ports(vm, lost[vm.name])


def _without_ports(vm: VmConfig, names: list[str]) -> VmConfig:
    return vm.model_copy(update={"ports": [port for port in vm.ports if port.port not in names]})


# ---- machines ----


def _delete(vm: VmConfig, why: str, *, anew: bool = False) -> Step:
    """anew: it comes back, so that ports made for it stay for vptd's own steps, or for its successor."""
    what = f"the domain {vm.domain} only loses its ports" if vm.domain is not None else ""
    params = {"keep_ports": True} if anew else {}
    return Step("del-vm", vm.name, params, ", ".join(filter(None, (why, what))), "replace" if anew else None)


def _changes(wanted: tuple[VmConfig, ...], actual: Actual, *, pruned: set[str]) -> Iterator[Step]:
    """Deletions first: a new machine may take over the port of one that is replaced.

    pruned: ports that go anyway.
    """
    have = {vm.name: vm for vm in actual.vms}
    replaced = {
        vm.name: _differences(have[vm.name], vm)
        for vm in wanted
        if vm.name in have and have[vm.name] != vm and not _only_ports_differ(have[vm.name], vm)
    }
    for name, why in replaced.items():
        yield _delete(have[name], why, anew=True)
    for vm in wanted:
        if vm.name not in have:
            yield _add(vm)
        elif vm.name in replaced:
            yield replace(_add(vm), needs="replace")
        elif vm != have[vm.name]:
            yield _change_ports(have[vm.name], vm, pruned)
        elif vm.name in actual.stopped and vm.domain is None:
            yield Step("start-vm", vm.name, {}, "it was stopped")


def _add(vm: VmConfig) -> Step:
    return Step("add-vm", vm.name, vm.model_dump(mode="json", exclude_defaults=True), vm.in_words())


def _only_ports_differ(have: VmConfig, want: VmConfig) -> bool:
    """A domain that is libvirt's takes ports and lets them go while it runs; what vpt makes is made anew."""
    return want.domain is not None and have.model_copy(update={"ports": want.ports}) == want


def _change_ports(have: VmConfig, want: VmConfig, pruned: set[str]) -> Step:
    """Taking a port away costs the guest a link, so that it needs to be allowed, unless the port goes."""
    add = [name for name in want.port_names if name not in have.port_names]
    drop = [name for name in have.port_names if name not in want.port_names]
    words = [f"attach {', '.join(add)}"] if add else []
    words += [f"detach {', '.join(drop)}"] if drop else []
    params = {"add": add, "drop": drop, "config": want.model_dump(mode="json", exclude_defaults=True)}
    why = "; ".join(words) or "in another order"
    return Step("set-vm", want.name, params, why, "replace" if set(drop) - pruned else None)


def _differences(have: VmConfig, want: VmConfig) -> str:
    old, new = have.model_dump(mode="json"), want.model_dump(mode="json")
    return ", ".join(f"{key} {_word(old[key])} -> {_word(new[key])}" for key in new if old[key] != new[key])


def _word(value: object) -> str:
    if value in (None, "", []):
        return "none"
    if isinstance(value, list):
        return " ".join(item["port"] if isinstance(item, dict) else str(item) for item in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
