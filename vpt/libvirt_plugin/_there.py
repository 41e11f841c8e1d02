# SPDX-License-Identifier: BSD-2-Clause
"""Ports that vptd has already: whose they are, and whether a domain can be plugged into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vpt.daemon.client import Client
from vpt.errors import ConflictError, ExistsError, NotFoundError, UsageError
from vpt.hints import vpt
from vpt.libvirt_plugin.metadata import Plug

if TYPE_CHECKING:
    from vpt.libvirt_plugin._domain import Target

__all__ = [
    "device_settings",
    "differing",
    "holder_of",
    "require_common",
    "require_free",
    "require_usable",
]

# Of a port's settings, those that its device or the guest's window for it depends on.
_OF_DEVICE = ("mac", "pairs", "slots", "buf_size")


def device_settings(vptd: Client, name: str) -> dict[str, Any]:
    """What the device of a port that is there must be told, as far as it is not the default."""
    config = _config(vptd, name)
    return {
        key: config[key]
        for key in _OF_DEVICE
        if config[key] is not None and (key, config[key]) != ("pairs", 1)
    }


def holder_of(vptd: Client, name: str, qemu: int | None) -> int | None:
    """The process that has the eventfds of a passthrough port as that QEMU has them. None: not known."""
    try:
        peer = vptd.call("port.show", name=name)["peer"]
    except NotFoundError:
        return None
    if peer is None or peer["pid"] != qemu:
        return None
    status = vptd.call("daemon.status")
    keeper: dict[str, int | None] = status["keeper"] or {"pid": status["pid"]}
    return keeper["pid"]


def _config(vptd: Client, name: str) -> dict[str, Any]:
    return next(dict(port) for port in vptd.call("config")["ports"] if port["name"] == name)


def differing(vptd: Client, port: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What it has otherwise than these settings would have it."""
    config = _config(vptd, port["name"])
    has = {**config, "mtu": port["mtu"], "policy": config["policy"]["kind"]}
    return [f"{key} {has[key]}" for key, value in settings.items() if has[key] != value]


def require_common(
    vptd: Client, port: Mapping[str, Any], switch: str, kind: str, settings: Mapping[str, Any]
) -> None:
    """Is the port nobody's (a topology's, or made by hand), what was asked for, and free?"""
    name = port["name"]
    if port["owner"] is not None:
        raise ExistsError(
            f"there is a port {name!r} already, and it was made for another VM",
            hint=f"choose another name: --port; see whose it is: {vptd.typed('show', name)}",
        )
    if (port["switch"], port["kind"]) != (switch, kind):
        raise ConflictError(
            f"there is a port {name!r} already, of kind {port['kind']} on the switch {port['switch']}",
            hint=f"to plug it in: --switch {port['switch']} --kind {port['kind']};"
            " or choose another name: --port",
        )
    if other := differing(vptd, port, settings):
        raise ConflictError(
            f"there is a port {name!r} already, with other settings: {', '.join(other)}",
            hint="to plug it in as it is, leave out what it has already; or choose another name: --port",
        )
    if kind == "passthrough" and _config(vptd, name)["mac"] is None:
        raise UsageError(
            f"the passthrough port {name} has no MAC address to know its interface by in the guest",
            hint=f"make it anew with one: {vptd.typed('port', 'del', name)};"
            f" {vptd.typed('port', 'add', switch, name, '--kind', 'passthrough', '--mac', 'MAC')}",
        )
    require_free(vptd, port)


def require_free(vptd: Client, port: Mapping[str, Any]) -> None:
    """A port takes one peer."""
    name = port["name"]
    if port["state"] in ("failed", "broken"):
        raise ConflictError(
            f"port {name} is {port['state']}: {port['reason']}", hint=vptd.typed("show", name)
        )
    if vptd.call("port.show", name=name)["transport"].get("connected"):
        raise ConflictError(
            f"somebody is plugged into port {name} already",
            hint=f"see which process: {vptd.typed('show', name)}; or choose another name: --port",
        )


def require_usable(port: Mapping[str, Any], plug: Plug, target: Target, *, has: bool) -> None:
    """Is vptd's port the one that the VM's device means, and no other VM's? has: the VM names it already."""
    other = f"; to have another one: {target.detach(plug.name)}, then attach with --port" if has else ""
    hint = f"see whose it is: {vpt('show', plug.name, runtime=plug.runtime_dir)}{other}"
    if port["owner"] not in (None, target.owner):
        raise ConflictError(f"port {plug.name!r} was made for another VM than {target.name}", hint=hint)
    if (port["kind"], port["socket"]) != (plug.kind, plug.socket):
        raise ConflictError(
            f"port {plug.name!r} is another one than {target.name} has: {port['kind']} at {port['socket']}",
            hint=hint,
        )
