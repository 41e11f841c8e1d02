# SPDX-License-Identifier: BSD-2-Clause
"""plan() with the machines: made when their ports are there, removed before their ports go. Pure.

1  all that makes switches and ports, or changes them
2  machines that are to be replaced go; then those that are wanted are made, started, given their ports
3  machines that are not in the topology go
4  switches and ports that are not in the topology go
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vpt.provision.config import VmConfig
from vpt.topology._plan import Actual, Plan, Step, Wanted
from vpt.topology._plan import plan as plan_ports

__all__ = ["plan"]


def plan(wanted: Wanted, actual: Actual, *, prune: bool = False) -> Plan:
    """The steps from `actual` to `wanted`; none if all is as wanted. prune: delete what it does not have."""
    base = plan_ports(wanted, actual, prune=prune)
    end = len(base.steps)
    while end and base.steps[end - 1].action in ("del-port", "del-switch"):
        end -= 1
    known = {vm.name for vm in wanted.vms}
    strangers = [vm for vm in actual.vms if vm.name not in known]
    pruned = [_delete(vm, "not in the topology") for vm in strangers] if prune else []
    steps = [*base.steps[:end], *_changes(wanted, actual), *pruned, *base.steps[end:]]
    alone = base.left_alone if prune else (*base.left_alone, *(f"vm {vm.name}" for vm in strangers))
    return Plan(tuple(steps), alone)


def _delete(vm: VmConfig, why: str) -> Step:
    what = f"the domain {vm.domain} only loses its ports" if vm.domain is not None else ""
    return Step("del-vm", vm.name, {}, ", ".join(filter(None, (why, what))))


def _changes(wanted: Wanted, actual: Actual) -> Iterator[Step]:
    """Deletions first: a new machine may take over the port of one that is replaced."""
    have = {vm.name: vm for vm in actual.vms}
    replaced = {
        vm.name: _differences(have[vm.name], vm)
        for vm in wanted.vms
        if vm.name in have and have[vm.name] != vm and not _only_ports_differ(have[vm.name], vm)
    }
    for name, why in replaced.items():
        yield replace(_delete(have[name], why), needs="replace")
    for vm in wanted.vms:
        if vm.name not in have:
            yield _add(vm)
        elif vm.name in replaced:
            yield replace(_add(vm), needs="replace")
        elif vm != have[vm.name]:
            yield _change_ports(have[vm.name], vm)
        elif vm.name in actual.stopped and vm.domain is None:
            yield Step("start-vm", vm.name, {}, "it was stopped")


def _add(vm: VmConfig) -> Step:
    return Step("add-vm", vm.name, vm.model_dump(mode="json", exclude_defaults=True), vm.in_words())


def _only_ports_differ(have: VmConfig, want: VmConfig) -> bool:
    """A domain that is libvirt's takes ports and lets them go while it runs; what vpt makes is made anew."""
    return want.domain is not None and have.model_copy(update={"ports": want.ports}) == want


def _change_ports(have: VmConfig, want: VmConfig) -> Step:
    """Taking a port away costs the guest a link, so that it needs to be allowed."""
    add = [name for name in want.port_names if name not in have.port_names]
    drop = [name for name in have.port_names if name not in want.port_names]
    words = [f"attach {', '.join(add)}"] if add else []
    words += [f"detach {', '.join(drop)}"] if drop else []
    params = {"add": add, "drop": drop, "config": want.model_dump(mode="json", exclude_defaults=True)}
    why = "; ".join(words) or "in another order"
    return Step("set-vm", want.name, params, why, "replace" if drop else None)


def _differences(have: VmConfig, want: VmConfig) -> str:
    old, new = have.model_dump(mode="json"), want.model_dump(mode="json")
    return ", ".join(f"{key} {_word(old[key])} -> {_word(new[key])}" for key in new if old[key] != new[key])


def _word(value: object) -> str:
    if value in (None, "", []):
        return "none"
    if isinstance(value, list):
        return " ".join(item["port"] if isinstance(item, dict) else str(item) for item in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
