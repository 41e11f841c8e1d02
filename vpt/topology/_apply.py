# SPDX-License-Identifier: BSD-2-Clause
"""Carrying a plan out on a running vptd, and back to what was there if a step fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from vpt.daemon.client import Client
from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.errors import ConflictError, VptError
from vpt.topology._plan import Actual, Needs, Plan, Step, Wanted, plan

__all__ = ["actual", "perform", "require_options"]

_METHODS = {
    "add-switch": "switch.add",
    "add-port": "port.add",
    "set-port": "port.set",
    "del-port": "port.del",
    "del-switch": "switch.del",
}
_BECAUSE = {
    "replace": "to be deleted and added again, so that a guest that is plugged in loses its link",
    "prune": "in the way and not in the topology",
}


class Connect(Protocol):
    """A new connection to vptd: one that broke off can't be used for the way back."""

    def __call__(self) -> Client: ...


def actual(vptd: Client) -> Actual:
    """What runs."""
    found = vptd.call("config")
    return Actual(
        tuple(SwitchConfig.model_validate(switch) for switch in found["switches"]),
        tuple(PortConfig.model_validate(port) for port in found["ports"]),
        found["failed"],
    )


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


def perform(
    todo: Plan, before: Actual, connect: Connect, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Do all the steps, or none: where one fails, what was touched is brought back to what it was `before`.

    Raises what the step raised, with what became of the way back. What can't come back is the link of a guest
    whose port was deleted: that port is there again, and the guest has to be plugged in again.
    """
    begun: list[Step] = []
    try:
        with connect() as vptd:
            for step in todo.steps:
                progress(str(step))
                begun.append(step)
                _do(step, vptd)
    except (VptError, KeyboardInterrupt) as error:
        _back(before, {step.name for step in begun}, connect, progress, error)
        raise


def _do(step: Step, vptd: Client) -> None:
    vptd.call(_METHODS[step.action], name=step.name, **step.params)


def _back(
    before: Actual,
    touched: set[str],
    connect: Connect,
    progress: Callable[[str], None],
    error: VptError | KeyboardInterrupt,
) -> None:
    """Plan and do the way back, from what is really there: the step that failed may have been done."""
    try:
        with connect() as vptd:
            back = plan(_only(before, touched), _only(actual(vptd), touched), prune=True)
            for step in back.steps:
                progress(f"back: {replace(step, why='')}")
                _do(step, vptd)
    except VptError as second:
        outcome = f"and what was done could not be undone ({second.message})"
    else:
        outcome = "so all that was changed has been changed back" if back.steps else "so nothing was changed"
    if isinstance(error, VptError):
        error.message = f"{error.message}; {outcome}"
        error.args = (error.message,)


def _only(state: Wanted, names: set[str]) -> Actual:
    """The part of `state` with these names. Failed ports count as what they were asked to be."""
    return Actual(
        tuple(switch for switch in state.switches if switch.name in names),
        tuple(port for port in state.ports if port.name in names),
    )
