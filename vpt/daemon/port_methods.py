# SPDX-License-Identifier: BSD-2-Clause
"""Ports: the methods port.* of the control socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from vpt.daemon import models
from vpt.daemon.inventory import Inventory, check_same
from vpt.daemon.keeping import Keeping
from vpt.daemon.models import Acknowledged, PortConfig, PortDetail, PortView
from vpt.daemon.ports import (
    Context,
    ManagedPort,
    bring_up,
    is_ours,
    policy_of,
    rules_of,
    settings_of,
    socket_path,
)
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.sockets import check_free
from vpt.dataplane import Feature, Reason
from vpt.errors import ConflictError, ExistsError, UsageError, VptError

__all__ = ["Ports", "changed_port"]

_log = logging.getLogger("vpt.daemon")


# What PortSet calls the parts of a policy.
_POLICY = {"kind": "policy", "spin_us": "spin_us", "sleep_us": "sleep_us"}
# Null is a setting of these, and not the absence of a wish.
_MAY_BE_NONE = ("mtu", "vlan", "isolated")


class Ports:
    """Adds, deletes, changes and shows ports.

    workers: how many the engine has
    group:   id of the group that sockets belong to, none: the process's own
    on_added: called with each port that is up
    """

    def __init__(
        self,
        there: Inventory,
        keeping: Keeping,
        *,
        workers: int,
        group: int | None,
        on_added: Callable[[ManagedPort], None],
    ) -> None:
        self._there = there
        self._keeping = keeping
        self._workers = workers
        self._group = group
        self._on_added = on_added

    async def restore(self, config: PortConfig, owner: str | None) -> None:
        try:
            await self._bring_up(config, restoring=True)
        except VptError as error:
            log = PortLog(_log, config.name)
            log.error("could not be restored: %s%s", error, f" ({error.hint})" if error.hint else "")
            self._there.put_back(ManagedPort(config, log, error=str(error)))
        self._there.ports[config.name].owner = owner

    async def leave_peers(self) -> None:
        """The daemon ends: what a keeper holds stays with its peers, the rest is taken down."""
        for managed in self._there.ports.values():
            if managed.ring is not None and self._keeping.keeper is not None:
                managed.ring.leave()
            elif managed.transport is not None:
                await managed.transport.stop()
                if managed.ring is not None:
                    managed.ring.leave()

    async def _bring_up(self, config: PortConfig, *, restoring: bool) -> None:
        switch = self._there.switch(config.switch)
        self._check_worker(config)
        if config.kind in models.RING_KINDS:
            await self._keeping.need()
        context = Context(self._there.paths, self._keeping.holder, self._group, restoring)
        managed = await bring_up(config, switch.switch, switch.config, context)
        assert managed.port is not None
        self._there.ports[config.name] = managed
        self._there.names_by_id[managed.port.id] = config.name
        switch.ports.add(config.name)
        self._on_added(managed)

    async def bring_up(self, config: PortConfig, owner: str | None) -> ManagedPort:
        """A new port. The journal does not know it yet."""
        self._check_new(config)
        await self._bring_up(config, restoring=False)
        managed = self._there.ports[config.name]
        managed.owner = owner
        return managed

    async def take_down(self, managed: ManagedPort) -> None:
        """Undo bring_up(); a transport that fails in this is logged, the port goes all the same."""
        name = managed.config.name
        self._there.ports.pop(name, None)
        self._there.switches[managed.config.switch].ports.discard(name)
        if managed.transport is not None:
            try:
                await managed.transport.stop()
            except VptError as error:
                managed.log.warning("not stopped cleanly: %s", error)
        if managed.port is not None:
            self._there.names_by_id.pop(managed.port.id, None)
            managed.port.delete()
        if managed.ring is not None:
            managed.ring.leave()
        self._there.paths.negotiated(name).unlink(missing_ok=True)

    async def add(self, request: models.PortAdd) -> PortView:
        async with self._there.change:
            config = request.config()
            existing = self._there.ports.get(config.name)
            if existing is not None and request.may_exist:
                switch = self._there.switch(config.switch).config
                check_same(existing.config.on(switch), config.on(switch))
                _check_owner(existing, request.owner)
                return self._view(existing)
            managed = await self.bring_up(config, request.owner)
            try:
                await self._there.save()
            except BaseException:
                await self.take_down(managed)
                raise
            _log.info("port=%s added kind=%s switch=%s", config.name, config.kind, config.switch)
            return self._view(managed)

    async def check(self, request: models.PortCheck) -> Acknowledged:
        config = request.config()
        self._check_new(config)
        self._check_worker(config)
        path = socket_path(config, self._there.paths)
        if path is not None:
            check_free(path, owned=is_ours(path, self._there.paths))
        return Acknowledged(changed=False)

    async def remove(self, request: models.PortRemove) -> Acknowledged:
        async with self._there.change:
            if request.name not in self._there.ports and request.if_exists:
                return Acknowledged(changed=False)
            managed = self._there.port(request.name)
            del self._there.ports[request.name]
            try:
                await self._there.save()
            except BaseException:
                self._there.ports[request.name] = managed
                raise
            await self.take_down(managed)
            _log.info("port=%s deleted", request.name)
            return Acknowledged(changed=True)

    async def change(self, request: models.PortSet) -> PortView:
        async with self._there.change:
            managed = self.present(request.name)
            before = managed.config
            self.alter(managed, changed_port(before, request))
            try:
                await self._there.save()
            except BaseException:
                self.alter(managed, before)
                raise
            return self._view(managed)

    def present(self, name: str) -> ManagedPort:
        """A port that did not fail."""
        managed = self._there.port(name)
        if managed.port is None:
            raise ConflictError(
                f"port {name!r} is not there: {managed.error}",
                hint=f"delete it and add it again: {self._there.typed('port', 'del', name)}",
            )
        return managed

    def alter(self, managed: ManagedPort, config: PortConfig) -> None:
        """Change what can be changed while packets flow."""
        assert managed.port is not None
        switch = self._there.switch(config.switch).config
        before, after = managed.config.on(switch), config.on(switch)
        if before.mtu != after.mtu:
            managed.port.set_mtu(self._live_mtu(after))
        if rules_of(before) != rules_of(after):
            managed.port.set_rules(rules_of(after))
        if config.policy != managed.config.policy:
            managed.port.set_policy(policy_of(config.policy))
        if config.link != managed.config.link:
            managed.port.set_link(config.link == "up")
        if managed.transport is not None and settings_of(before) != settings_of(after):
            managed.transport.adapt(settings_of(after))
        managed.config = config

    async def list_all(self, request: models.NullableName) -> models.PortList:
        if request.switch is not None:
            self._there.switch(request.switch)
        return models.PortList(ports=self.views(request.switch))

    async def show(self, request: models.PortName) -> PortDetail:
        managed = self._there.port(request.name)
        features, counters = 0, {}
        if managed.port is not None:
            features = managed.port.state().features
            counters = dict(self._there.stats.read().port(managed.port.id))
        peer = managed.transport.peer if managed.transport else None
        return PortDetail(
            **self._view(managed).model_dump(),
            lossless=managed.config.lossless,
            max_macs=managed.config.max_macs,
            features=_feature_names(features),
            peer=models.PeerView(pid=peer.pid, uid=peer.uid) if peer else None,
            transport=managed.transport.describe() if managed.transport else {},
            counters=counters,
        )

    def views(self, switch: str | None = None) -> list[PortView]:
        return [
            self._view(managed)
            for _, managed in sorted(self._there.ports.items())
            if switch is None or managed.config.switch == switch
        ]

    def _view(self, managed: ManagedPort) -> PortView:
        config = managed.config.on(self._there.switches[managed.config.switch].config)
        assert config.mtu is not None
        view = PortView(
            name=config.name,
            switch=config.switch,
            kind=config.kind,
            id=None,
            state="failed",
            reason=managed.error,
            link=config.link,
            pairs=config.pairs,
            mac=config.mac,
            mtu=config.mtu,
            policy=config.policy,
            vlan=config.vlan,
            isolated=bool(config.isolated),
            anti_spoofing=config.anti_spoofing,
            rate=config.rate,
            storm=config.storm,
            workers=[],
            driver=None,
            socket=socket_path(config, self._there.paths),
            owner=managed.owner,
        )
        if managed.port is None:
            return view
        state = managed.port.state()
        view.id = managed.port.id
        view.workers = list(state.workers)
        view.driver = state.driver or None
        if state.reason != Reason.NONE:
            view.state, view.reason = "broken", state.reason.label
        else:
            view.state, view.reason = "up" if state.up else "down", None
        return view

    def _live_mtu(self, config: PortConfig) -> int:
        assert config.mtu is not None
        if config.kind in models.RING_KINDS:
            raise ConflictError(
                f"the mtu of a port of kind {config.kind} is written down in its region, which a peer maps",
                hint="delete the port and add it again with the other: "
                + self._there.typed("port", "del", config.name),
            )
        return config.mtu

    def _check_new(self, config: PortConfig) -> None:
        self._there.check_name(config.name)
        self._check_socket(config)
        self._check_mac(config)

    def _check_worker(self, config: PortConfig) -> None:
        if config.worker is not None and config.worker >= self._workers:
            raise ConflictError(
                f"port {config.name!r} asks for worker {config.worker}, and this vptd has"
                f" {self._workers}, counted from 0",
                hint="leave worker out, or start vptd with more: "
                + self._there.typed("daemon", "start", "--workers", "NUMBER"),
            )

    def _check_mac(self, config: PortConfig) -> None:
        switch = self._there.switch(config.switch)
        for other in (self._there.ports[name] for name in sorted(switch.ports)):
            if config.mac is not None and other.config.mac == config.mac:
                raise ExistsError(
                    f"port {other.config.name!r} on the same switch has the mac {config.mac}",
                    hint="give each port an address of its own, or none",
                )

    def _check_socket(self, config: PortConfig) -> None:
        path = socket_path(config, self._there.paths)
        for other in self._there.ports.values():
            if path is not None and socket_path(other.config, self._there.paths) == path:
                raise ExistsError(
                    f"port {other.config.name!r} uses the socket {path}", hint="choose another path"
                )


def _check_owner(existing: ManagedPort, owner: str | None) -> None:
    """A port serves one VM. One that is nobody's is for whoever comes."""
    if owner is not None and existing.owner not in (None, owner):
        name = existing.config.name
        raise ExistsError(
            f"port {name!r} belongs to another VM, {existing.owner}",
            hint="each VM needs a port of its own; a libvirt domain's name: virsh domname UUID",
        )


def changed_port(config: PortConfig, request: models.PortSet) -> PortConfig:
    """The settings after a change. UsageError if they do not go together."""
    asked = request.model_dump(exclude={"name", "action"}, exclude_unset=True)
    policy = {key: asked.pop(field, None) for key, field in _POLICY.items()}
    update: dict[str, Any] = _given(asked) | {key: asked[key] for key in _MAY_BE_NONE if key in asked}
    update["policy"] = config.policy.model_dump() | _given(policy)
    update["rate"] = config.rate.model_dump() | (asked.get("rate") or {})
    update["storm"] = config.storm.model_dump() | _given(asked.get("storm") or {})
    try:
        return PortConfig.model_validate(config.model_dump() | update)
    except ValidationError as error:
        what = f"port {config.name!r}: {models.explain(error)}"
        raise UsageError(what, hint="see vpt port set --help") from None


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _feature_names(features: int) -> str:
    known = [flag.name.lower() for flag in Feature if features & flag and flag.name]
    rest = features & ~sum(Feature)
    return " ".join([*known, *([hex(rest)] if rest else [])])
