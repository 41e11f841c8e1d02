# SPDX-License-Identifier: BSD-2-Clause
"""Carrying a plan out on a running vptd and on machines, and back to what was there if a step fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

from vpt.daemon.client import Client
from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.errors import ConflictError, VptError
from vpt.provision.config import VmConfig
from vpt.topology._plan import Actual, Needs, Plan, Step, Wanted
from vpt.topology._vms import plan

__all__ = ["Connect", "Doer", "Machines", "actual", "check_machines", "perform", "require_options"]

_BECAUSE = {
    "replace": "to be deleted and added again, so that a guest that is plugged in loses its link",
    "prune": "in the way and not in the topology",
}


class Connect(Protocol):
    """A new connection to vptd."""

    def __call__(self) -> Client: ...


class Machines(Protocol):
    """What is done with virtual machines; vpt.provision.guests.Guests does it."""

    def configs(
        self, ports: Mapping[str, str | None], named: Sequence[VmConfig] = ()
    ) -> tuple[tuple[VmConfig, ...], tuple[str, ...]]:
        """Of those that there are, and what could not be found out; a domain's with the ports that it has.

        ports: all of vptd, with their owners. named: what a topology calls domains.
        """

    def check(self, config: VmConfig) -> None:
        """Raises what can be said against it before anything is done."""

    def is_stopped(self, name: str) -> bool: ...

    def boot(self, config: VmConfig) -> object: ...

    def start(self, name: str) -> object: ...

    def stop(self, name: str, grace_s: float) -> object: ...

    def remove(self, name: str, *, keep_ports: bool = False) -> None: ...

    def change_ports(self, config: VmConfig, add: list[str], drop: list[str]) -> None: ...

    def wait(self, name: str, timeout_s: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Doer:
    """What steps are done with.

    connect:   to vptd
    machines:  none: there are none, and none are wanted
    progress:  told each step
    wait:      until each machine that is started is up
    timeout_s: seconds for each of them; none: what its image usually takes
    places:    of Wanted, for errors
    """

    connect: Connect
    machines: Machines | None = None
    progress: Callable[[str], None] = lambda _: None
    wait: bool = True
    timeout_s: float | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def actual(vptd: Client, machines: Machines | None = None, named: Sequence[VmConfig] = ()) -> Actual:
    """What runs. named: what a topology calls domains that vpt has no record of."""
    found = vptd.call("config")
    vms: tuple[VmConfig, ...] = ()
    unknown: tuple[str, ...] = ()
    if machines is not None:
        ports = {port["name"]: found["owners"].get(port["name"]) for port in found["ports"]}
        vms, unknown = machines.configs(ports, named)
    return Actual(
        tuple(SwitchConfig.model_validate(switch) for switch in found["switches"]),
        tuple(PortConfig.model_validate(port) for port in found["ports"]),
        vms,
        owners=found["owners"],
        failed=found["failed"],
        stopped=frozenset(vm.name for vm in vms if machines and machines.is_stopped(vm.name)),
        unknown=unknown,
    )


def check_machines(wanted: Wanted, machines: Machines) -> None:
    """Raises what can be said against the machines before anything is done, with the place in the file."""
    for vm in wanted.vms:
        try:
            machines.check(vm)
        except VptError as error:
            _place(error, wanted.places, f"vm {vm.name}")
            raise


def require_options(todo: Plan, given: Iterable[Needs]) -> None:
    """ConflictError if the plan has steps that need an option that was not given."""
    missing: list[Needs] = [need for need in ("replace", "prune") if need not in given and todo.needing(need)]
    if not missing:
        return
    said = []
    for need in missing:
        names = todo.needing(need)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        said.append(f"{_BECAUSE[need]}: {', '.join(names[:3])}{more}")
    options = " ".join(f"--{need}" for need in missing)
    raise ConflictError(
        f"nothing was changed: {'; '.join(said)}", hint=f"see the steps with vpt diff; to allow it: {options}"
    )


def perform(todo: Plan, before: Actual, doer: Doer) -> None:
    """Do all the steps, or none. Those that are vptd's, side by side, are one change there, undone there.

    Where a later one fails, what was touched is brought back to what it was `before`. Raises what the step
    raised, with what became of the way back. What can't come back is the link of a guest whose port was
    deleted, and what was on the disks of a machine that was: port and machine are there again.
    """
    begun: list[Step] = []
    starting: list[str] = []
    groups = [list(group) for _, group in groupby(todo.steps, key=lambda step: step.is_vm)]
    try:
        for group in groups:
            if group[0].is_vm:
                _do_machines(group, begun, starting, doer)
                # What nobody can give back comes behind: it waits until all that may fail has not.
                _wait(starting, doer)
            else:
                _do_ports(group, doer)
                begun += group
    except (VptError, KeyboardInterrupt) as error:
        if begun:
            _back(before, begun, doer, error)
        raise


def _do_ports(steps: Sequence[Step], doer: Doer) -> None:
    request = [{"action": step.action, "name": step.name, **step.params} for step in steps]
    name = ""

    def begun(told: dict[str, Any]) -> None:
        nonlocal name
        name = steps[told["step"]].name
        doer.progress(str(steps[told["step"]]))

    try:
        with doer.connect() as vptd:
            vptd.follow("apply", {"steps": request, "progress": True}, begun)
    except VptError as error:
        _place(error, doer.places, name)
        raise


def _do_machines(steps: Sequence[Step], begun: list[Step], starting: list[str], doer: Doer) -> None:
    for step in steps:
        if step.action == "del-vm" and not step.needs:
            _wait(starting, doer)
        doer.progress(str(step))
        begun.append(step)
        try:
            assert doer.machines is not None, "who plans for machines has some"
            _do_machine(step, doer.machines)
        except VptError as error:
            _place(error, doer.places, f"vm {step.name}")
            raise
        starting += [step.name] if step.action in ("add-vm", "start-vm") else []


def _place(error: VptError, places: Mapping[str, str], name: str) -> None:
    """Put where in the file it comes from in front of what is wrong."""
    if name in places:
        _say(error, f"{places[name]}: {error.message}")


def _say(error: VptError, message: str) -> None:
    error.message = message
    error.args = (message,)


def _do_machine(step: Step, machines: Machines) -> None:
    if step.action == "add-vm":
        machines.boot(VmConfig.model_validate(step.params))
    elif step.action == "set-vm":
        config = VmConfig.model_validate(step.params["config"])
        machines.change_ports(config, step.params["add"], step.params["drop"])
    elif step.action == "start-vm":
        machines.start(step.name)
    elif step.action == "stop-vm":
        machines.stop(step.name, 0.0)
    else:
        machines.remove(step.name, **step.params)


def _wait(starting: list[str], doer: Doer) -> None:
    """They boot side by side."""
    while starting:
        name = starting.pop(0)
        if doer.wait and doer.machines is not None:
            doer.progress(f"wait until vm {name} is up")
            try:
                doer.machines.wait(name, doer.timeout_s)
            except VptError as error:
                _place(error, doer.places, f"vm {name}")
                raise


# ---- back ----


def _back(before: Actual, begun: list[Step], doer: Doer, error: VptError | KeyboardInterrupt) -> None:
    """Plan and do the way back, from what is really there: the step that failed may have been done."""
    try:
        with doer.connect() as vptd:
            now = actual(vptd, doer.machines, before.vms)
        back = _way_back(before, now, begun)
        for is_vm, group in groupby(back, key=lambda step: step.is_vm):
            steps = [replace(step, why="") for step in group]
            back_doer = replace(
                doer, progress=lambda text: doer.progress(f"back: {text}"), wait=False, places={}
            )
            if is_vm:
                _do_machines(steps, [], [], back_doer)
            else:
                _do_ports(steps, back_doer)
    except VptError as second:
        outcome = f"and what was done could not be undone ({second.message})"
    else:
        outcome = "so all that was changed has been changed back" if back else "so nothing was changed"
    if isinstance(error, VptError):
        _say(error, f"{error.message}; {outcome}")


def _way_back(before: Actual, now: Actual, begun: list[Step]) -> list[Step]:
    names = {step.name for step in begun if not step.is_vm}
    vms = {step.name for step in begun if step.is_vm}
    steps = plan(_only(before, names, vms), _only(now, names, vms), prune=True).steps
    started = vms & before.stopped - now.stopped
    return [
        *(step for step in steps if step.action != "start-vm" or step.name not in before.stopped),
        *(Step("stop-vm", name) for name in sorted(started)),
    ]


def _only(state: Wanted, names: set[str], vms: set[str]) -> Actual:
    """The part of `state` with these names. Failed ports count as what they were asked to be."""
    return Actual(
        tuple(switch for switch in state.switches if switch.name in names),
        tuple(port for port in state.ports if port.name in names),
        tuple(vm for vm in state.vms if vm.name in vms),
        owners=state.owners,
    )
