# SPDX-License-Identifier: BSD-2-Clause
"""Switches: the methods switch.* of the control socket."""

from __future__ import annotations

import logging

from vpt.daemon import models
from vpt.daemon.inventory import Inventory, ManagedSwitch, check_same
from vpt.daemon.models import Acknowledged, SwitchConfig, SwitchView
from vpt.daemon.ports import rules_of
from vpt.errors import ConflictError

__all__ = ["Switches", "changed_switch"]

_log = logging.getLogger("vpt.daemon")


class Switches:
    """Adds, deletes, changes and shows switches."""

    def __init__(self, there: Inventory) -> None:
        self._there = there

    def bring_up(self, config: SwitchConfig) -> None:
        switch = self._there.engine.add_switch(config.name, config.mac_entries, config.mac_age_s)
        self._there.switches[config.name] = ManagedSwitch(config, switch)

    def alter(self, managed: ManagedSwitch, config: SwitchConfig) -> None:
        """Change what can be changed while packets flow."""
        if config.mac_age_s != managed.config.mac_age_s:
            managed.switch.set_mac_age(config.mac_age_s)
        before, managed.config = managed.config, config
        if config.isolation == before.isolation:
            return
        for port in (self._there.ports[name] for name in managed.ports):
            if port.port is not None and port.config.isolated is None:
                port.port.set_rules(rules_of(port.config.on(config)))

    async def change(self, request: models.SwitchSet) -> SwitchView:
        async with self._there.change:
            managed = self._there.switch(request.name)
            before = managed.config
            self.alter(managed, changed_switch(before, request))
            try:
                await self._there.save()
            except BaseException:
                self.alter(managed, before)
                raise
            return self._view(managed)

    def empty(self, name: str) -> ManagedSwitch:
        """A switch that may be deleted."""
        managed = self._there.switch(name)
        if managed.ports:
            names = ", ".join(sorted(managed.ports)[:5])
            raise ConflictError(
                f"switch {name!r} still has ports: {names}",
                hint=f"delete them first: {self._there.typed('port', 'del', min(managed.ports))}",
            )
        return managed

    async def add(self, request: models.SwitchAdd) -> Acknowledged:
        async with self._there.change:
            config = request.config()
            existing = self._there.switches.get(config.name)
            if existing is not None and request.may_exist:
                check_same(existing.config, config)
                return Acknowledged(changed=False)
            self._there.check_name(config.name)
            self.bring_up(config)
            try:
                await self._there.save()
            except BaseException:
                self._there.switches.pop(config.name).switch.delete()
                raise
            _log.info("switch=%s added", config.name)
            return Acknowledged(changed=True)

    async def remove(self, request: models.SwitchRemove) -> Acknowledged:
        async with self._there.change:
            if request.name not in self._there.switches and request.if_exists:
                return Acknowledged(changed=False)
            managed = self.empty(request.name)
            del self._there.switches[request.name]
            try:
                await self._there.save()
            except BaseException:
                self._there.switches[request.name] = managed
                raise
            managed.switch.delete()
            _log.info("switch=%s deleted", request.name)
            return Acknowledged(changed=True)

    async def list_all(self, _request: models.Empty) -> models.SwitchList:
        return models.SwitchList(switches=self.views())

    async def macs(self, request: models.SwitchName) -> models.MacList:
        managed = self._there.switch(request.name)
        macs = [
            models.MacView(
                mac=entry.mac,
                vlan=entry.vlan,
                port=self._there.names_by_id.get(entry.port_id, "?"),
                age_s=entry.age_s,
            )
            for entry in managed.switch.macs()
        ]
        return models.MacList(switch=request.name, macs=macs)

    def views(self) -> list[SwitchView]:
        return [self._view(managed) for _, managed in sorted(self._there.switches.items())]

    def _view(self, managed: ManagedSwitch) -> SwitchView:
        return SwitchView(
            **managed.config.model_dump(),
            macs=managed.switch.mac_count(),
            ports=sorted(managed.ports),
        )


def changed_switch(config: SwitchConfig, request: models.SwitchSet) -> SwitchConfig:
    """The settings after a change."""
    return config.model_copy(update=request.model_dump(exclude={"name", "action"}, exclude_none=True))
