# SPDX-License-Identifier: BSD-2-Clause
"""Many changes as one: the method apply of the control socket. All of them are made, or none.

The steps are made under one lock and written to the journal once, at the end. Where one fails, those before
it are undone in reverse; so does a vptd that is killed meanwhile, for its journal is still the old one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from vpt.daemon import models
from vpt.daemon.inventory import Inventory
from vpt.daemon.models import Acknowledged, SwitchConfig
from vpt.daemon.port_methods import Ports, changed_port
from vpt.daemon.rpc import notify
from vpt.daemon.switch_methods import Switches, changed_switch
from vpt.errors import VptError

__all__ = ["Changes"]

_log = logging.getLogger("vpt.daemon")

# What takes a step back.
Undo = Callable[[], Awaitable[None]]


class Changes:
    """Makes steps with what makes single changes."""

    def __init__(self, there: Inventory, switches: Switches, ports: Ports) -> None:
        self._there = there
        self._switches = switches
        self._ports = ports
        self._make: dict[str, Callable[[Any], Awaitable[Undo]]] = {
            "add-switch": self._add_switch,
            "add-port": self._add_port,
            "set-switch": self._set_switch,
            "set-port": self._set_port,
            "del-port": self._del_port,
            "del-switch": self._del_switch,
        }

    async def apply(self, request: models.ApplyRequest) -> Acknowledged:
        async with self._there.change:
            undo: list[Undo] = []
            try:
                for number, step in enumerate(request.steps):
                    if request.progress:
                        await notify("progress", step=number, of=len(request.steps))
                    undo.append(await self._make[step.action](step))
                await self._there.save()
            except BaseException as error:
                await self._back(undo, error)
                raise
            for step in request.steps:
                _log.info("apply: %s %s", step.action, step.name)
            return Acknowledged(changed=bool(request.steps))

    async def _back(self, undo: list[Undo], error: BaseException) -> None:
        outcome = "so all that was changed has been changed back" if undo else "so nothing was changed"
        try:
            for take_back in reversed(undo):
                await take_back()
        except VptError as second:
            outcome = f"and what was done could not be undone ({second.message})"
            _log.error("apply: %s; %s", error, outcome)
            # Neither as it was nor as it was to be: what is there is what is to come back.
            with contextlib.suppress(VptError):
                await self._there.save()
        if isinstance(error, VptError):
            error.message = f"{error.message}; {outcome}"
            error.args = (error.message,)

    async def _add_switch(self, step: models.AddSwitch) -> Undo:
        config = SwitchConfig.model_validate(step.model_dump(exclude={"action"}))
        self._there.check_name(config.name)
        self._switches.bring_up(config)
        return partial(self._drop_switch, config.name)

    async def _drop_switch(self, name: str) -> None:
        self._there.switches.pop(name).switch.delete()

    async def _add_port(self, step: models.AddPort) -> Undo:
        managed = await self._ports.bring_up(step.config(), step.owner)
        return partial(self._ports.take_down, managed)

    async def _set_switch(self, step: models.SetSwitch) -> Undo:
        managed = self._there.switch(step.name)
        before = managed.config
        self._switches.alter(managed, changed_switch(before, step))

        async def undo() -> None:
            self._switches.alter(managed, before)

        return undo

    async def _set_port(self, step: models.SetPort) -> Undo:
        managed = self._ports.present(step.name)
        before = managed.config
        self._ports.alter(managed, changed_port(before, step))

        async def undo() -> None:
            self._ports.alter(managed, before)

        return undo

    async def _del_port(self, step: models.DelPort) -> Undo:
        managed = self._there.port(step.name)
        await self._ports.take_down(managed)

        async def undo() -> None:
            if managed.error is None:
                await self._ports.bring_up(managed.config, managed.owner)
            else:
                self._there.put_back(managed)

        return undo

    async def _del_switch(self, step: models.DelSwitch) -> Undo:
        managed = self._switches.empty(step.name)
        await self._drop_switch(step.name)

        async def undo() -> None:
            self._switches.bring_up(managed.config)

        return undo
