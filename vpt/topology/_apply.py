# SPDX-License-Identifier: BSD-2-Clause
"""Carrying a plan out on a running vptd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from vpt.daemon.client import Client
from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.errors import ConflictError, VptError
from vpt.topology._plan import Actual, Needs, Plan

__all__ = ["actual", "perform", "require_options"]

_BECAUSE = {
    "replace": "to be deleted and added again, so that a guest that is plugged in loses its link",
    "prune": "in the way and not in the topology",
}


class Connect(Protocol):
    """A new connection to vptd."""

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
    todo: Plan,
    connect: Connect,
    progress: Callable[[str], None] = lambda _: None,
    places: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Do all the steps, or none: vptd makes them one change, and undoes it where a step fails.

    Raises what the step raised, with what became of those before it, and where in the file the step comes
    from, if `places` has its name. What can't come back is the link of a guest whose port was deleted: that
    port is there again, and the guest has to be plugged in again.
    """
    if not todo.steps:
        return
    request = {
        "steps": [{"action": step.action, "name": step.name, **step.params} for step in todo.steps],
        "progress": True,
    }
    name = ""

    def begun(told: dict[str, Any]) -> None:
        nonlocal name
        step = todo.steps[told["step"]]
        name = step.name
        progress(str(step))

    try:
        with connect() as vptd:
            vptd.follow("apply", request, begun)
    except VptError as error:
        if name in places:
            error.message = f"{places[name]}: {error.message}"
            error.args = (error.message,)
        raise
