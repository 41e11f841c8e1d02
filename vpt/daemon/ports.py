# SPDX-License-Identifier: BSD-2-Clause
"""From a port's configuration to a port with a transport: one builder per kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt.daemon.models import SOCKET_KINDS, PolicyConfig, PortConfig, PortKind, SwitchConfig
from vpt.daemon.port_rules import RateConfig, VlanConfig, vids
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.runtime import RuntimePaths
from vpt.daemon.shelf import Holder, Record
from vpt.daemon.sockets import check_free
from vpt.daemon.transports.base import Settings, Transport
from vpt.daemon.transports.ring import RingTransport, record_meta
from vpt.daemon.transports.tap import TapTransport
from vpt.daemon.transports.vhost import Memory
from vpt.daemon.transports.vhost_user import VhostUserTransport
from vpt.dataplane import (
    PEER_STATUS_OFS,
    Event,
    Kind,
    Policy,
    PolicyKind,
    Port,
    Rate,
    RegionOptions,
    Rules,
    Switch,
)
from vpt.errors import UsageError

__all__ = [
    "Context",
    "ManagedPort",
    "bring_up",
    "is_ours",
    "policy_of",
    "rules_of",
    "settings_of",
    "socket_path",
]

_log = logging.getLogger("vpt.daemon")


@dataclass(frozen=True, slots=True)
class Context:
    """What builders need to know of the daemon.

    restoring: the port is in the journal, so a stale socket at its path is ours.
    """

    paths: RuntimePaths
    holder: Holder
    group: int | None
    restoring: bool


@dataclass(slots=True)
class ManagedPort:
    """A port that exists, or (error set, port and transport None) one that could not be restored.

    owner: the VM that it was made for, as port.add was told
    """

    config: PortConfig
    log: PortLog
    port: Port | None = None
    transport: Transport | None = None
    error: str | None = None
    owner: str | None = None

    @property
    def ring(self) -> RingTransport | None:
        return self.transport if isinstance(self.transport, RingTransport) else None


class _NullTransport:
    """A null port has no peer."""

    peer = None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def on_event(self, event: Event) -> None:
        pass

    def adapt(self, settings: Settings) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"protocol": "none"}


async def bring_up(asked: PortConfig, switch: Switch, on: SwitchConfig, context: Context) -> ManagedPort:
    """Add the port to the data plane and start its transport. All of it or nothing."""
    config = asked.on(on)
    assert config.mtu is not None
    log = PortLog(_log, config.name)
    port = switch.add_port(
        config.name,
        Kind.parse(config.kind),
        pairs=config.pairs,
        policy=policy_of(config.policy),
        worker=-1 if config.worker is None else config.worker,
        lossless=config.lossless,
        touch=config.touch,
        max_macs=config.max_macs,
        mtu=config.mtu,
        mac=config.mac,
    )
    try:
        port.set_rules(rules_of(config))
        transport = _BUILDERS[config.kind](config, port, context, log)
        await transport.start()
        if config.link == "down":
            port.set_link(False)
    except BaseException:
        port.delete()
        raise
    return ManagedPort(asked, log, port, transport)


def policy_of(config: PolicyConfig) -> Policy:
    """Only the time that belongs to the kind counts."""
    return Policy(
        PolicyKind.parse(config.kind),
        spin_us=config.spin_us if config.kind == "adaptive" else 0,
        sleep_us=config.sleep_us if config.kind == "sleep" else 0,
    )


def settings_of(config: PortConfig) -> Settings:
    """What a transport is told of a port that is PortConfig.on()'s."""
    assert config.mtu is not None
    return Settings(mtu=config.mtu, link_up=config.link == "up", polls=config.policy.kind == "poll")


def rules_of(config: PortConfig) -> Rules:
    """As the data plane has them; `config` is PortConfig.on()'s."""
    vlan, storm = config.vlan or VlanConfig.model_construct(), config.storm
    return Rules(
        isolated=bool(config.isolated),
        anti_spoofing=config.anti_spoofing,
        access=vlan.access or 0,
        trunk=None if vlan.trunk is None else vids(vlan.trunk),
        native=vlan.native or 0,
        tx=_rate_of(config.rate.tx),
        rx=_rate_of(config.rate.rx),
        broadcast=storm.broadcast,
        multicast=storm.multicast,
        unknown=storm.unknown,
    )


def _rate_of(rate: RateConfig | None) -> Rate:
    return Rate() if rate is None else Rate(**{key: value or 0 for key, value in rate.model_dump().items()})


def socket_path(config: PortConfig, paths: RuntimePaths) -> str | None:
    """Where the port's peer connects; None for kinds without socket."""
    if config.kind not in SOCKET_KINDS:
        return None
    return config.socket or str(paths.port_socket(config.name))


def is_ours(path: str, paths: RuntimePaths) -> bool:
    """Can only vptd have left a socket there?"""
    return Path(path).parent == paths.ports


def _owned(path: str, context: Context) -> bool:
    return context.restoring or is_ours(path, context.paths)


def _ring(config: PortConfig, port: Port, context: Context, log: PortLog) -> Transport:
    options = RegionOptions(
        name=config.name,
        pairs=config.pairs,
        num_slots=config.slots or 0,
        buf_size=config.buf_size or 0,
        mtu=config.mtu or 0,
        mac=config.mac,
    )
    path = socket_path(config, context.paths)
    assert path is not None
    record = Record(
        name=config.name,
        protocol="app" if config.kind == "app" else "ivshmem",
        socket=path,
        status_ofs=PEER_STATUS_OFS,
        mode=int(config.socket_mode, 8),
        group=context.group,
        owned=_owned(path, context),
        meta=record_meta(options),
    )
    return RingTransport(port, options=options, record=record, holder=context.holder, log=log)


def _vhost_user(config: PortConfig, port: Port, context: Context, log: PortLog) -> Transport:
    path = socket_path(config, context.paths)
    assert path is not None
    check_free(path, owned=_owned(path, context))
    return VhostUserTransport(
        port,
        socket_path=path,
        log=log,
        max_pairs=config.pairs,
        settings=settings_of(config),
        mac=bytes.fromhex(config.mac.replace(":", "")) if config.mac else None,
        socket_mode=int(config.socket_mode, 8),
        group=context.group,
        replace_stale=_owned(path, context),
        memory=Memory(context.paths.negotiated(config.name)),
    )


def _tap(config: PortConfig, port: Port, _context: Context, log: PortLog) -> Transport:
    ifname = config.ifname or config.name
    if len(ifname) > 15:
        raise UsageError(
            f"{ifname!r} is too long for the name of an interface (15 characters)",
            hint="give one with --ifname",
        )
    return TapTransport(port, ifname=ifname, log=log)


def _null(_config: PortConfig, _port: Port, _context: Context, _log: PortLog) -> Transport:
    return _NullTransport()


_BUILDERS: dict[PortKind, Callable[[PortConfig, Port, Context, PortLog], Transport]] = {
    "passthrough": _ring,
    "app": _ring,
    "vhost-user": _vhost_user,
    "tap": _tap,
    "null": _null,
}
