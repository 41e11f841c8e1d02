# SPDX-License-Identifier: BSD-2-Clause
"""A port and its device in a libvirt domain, made together or not at all.

The port comes first, because QEMU connects to its socket. Then the configuration, which can be put back, and
the running domain last. What libvirt says it did is read back: it reports a detach as done when the guest
never let go of the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.errors import (
    ConflictError,
    DaemonError,
    ExistsError,
    GuestError,
    NotFoundError,
    UsageError,
    VptError,
)
from vpt.hints import vpt
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._answers import SilentVmError
from vpt.libvirt_plugin._connection import which
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin._there import (
    device_settings,
    require_common,
    require_free,
    require_usable,
)
from vpt.libvirt_plugin._turns import in_turn
from vpt.libvirt_plugin.metadata import Plug, plugs_in
from vpt.libvirt_plugin.reconnect import SAYS_NO_RECONNECT
from vpt.libvirt_plugin.watch import is_watched
from vpt.libvirt_plugin.xml import add_port, alias_of, diff, remove_port

__all__ = [
    "Attached",
    "Detached",
    "Request",
    "attach",
    "detach",
    "free_name",
    "make_plug",
    "print_diff",
    "random_mac",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be plugged in.

    port:     its name, none: named after the VM
    settings: as `port.add` takes them, beside name, switch and kind
    existing: the port is there already, as settings say, and stays whatever happens
    packed:   vhost-user: offer the guest packed virtqueues

    Neither live nor config: the running domain if it runs, else its configuration.
    """

    vm: str
    switch: str
    kind: Literal["vhost-user", "passthrough"]
    port: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    live: bool = False
    config: bool = False
    existing: bool = False
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Attached:
    """A port in a VM. where: "live", "config" or both. changed: False if it was there already."""

    vm: str
    plug: Plug
    where: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    changed: bool = True


@dataclass(frozen=True, slots=True)
class Detached:
    """A port taken out. kept: why the port itself is still there; "": it is gone, for nothing else has it."""

    vm: str
    port: str
    where: tuple[str, ...]
    kept: str = ""


# ---- attach ----


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that can be known before anything is changed.

    where: what was asked for. live, config: what of that is to be done. port_there: vptd has the port.
    """

    target: Target
    plug: Plug
    where: tuple[str, ...]
    live: bool
    config: bool
    port_there: bool
    before: str
    after: str


def _plan(target: Target, vptd: Client, request: Request) -> _Plan:
    live = _means_live(target, request)
    config = request.config or not live
    where = tuple(name for name, wanted in (("live", live), ("config", config)) if wanted)
    live_plugs, config_plugs = _plugs_of(target, plugs_in)
    plug = _plugged_in(target, request, [*config_plugs, *live_plugs])
    ports = {port["name"]: port for port in vptd.call("port.list")["ports"]}
    if plug is None:
        if request.port in ports and not request.existing:
            require_common(vptd, ports[request.port], request.switch, request.kind, request.settings)
            request = replace(request, existing=True)
        small = live and rules.is_express(target.live_xml())
        names = {other.name for other in (*config_plugs, *live_plugs)}
        plug = make_plug(vptd, request, request.vm, small=small, has=names)
    else:
        in_live, in_config = _plugs_of(target, rules.plugged_in)
        live, config = live and plug not in in_live, config and plug not in in_config
    there = ports.get(plug.name)
    if there is not None:
        has = any(other.name == plug.name for other in (*config_plugs, *live_plugs))
        require_usable(there, plug, target, has=has)
        if live and there["owner"] is None:
            require_free(vptd, there)
    # Last, for what was asked for may be wrong whatever state the domain is in.
    if "live" in where:
        target.require_live()
    if "config" in where:
        target.require_config()
    if live:
        rules.check_live(target.live_xml(), plug, target.qemu_version())
        rules.check_domain(_with_port(target.live_xml(), plug))
    if config:
        rules.check_config(target.config_xml(), plug, target.qemu_version())
    before = target.config_xml() if config or not live else target.live_xml()
    after = _with_port(before, plug) if live or config else before
    rules.check_domain(after)
    return _Plan(target, plug, where, live, config, there is not None, before, after)


def _means_live(target: Target, request: Request) -> bool:
    return request.live or (target.active and not request.config)


def _with_port(xml: str, plug: Plug) -> str:
    """The domain with the port, of which it may have the note only: the device has gone without us."""
    noted = any(other.name == plug.name for other in plugs_in(xml))
    if noted and not rules.alias_in(xml, plug.name):
        xml = remove_port(xml, plug.name)
    return add_port(xml, plug)


def _plugged_in(target: Target, request: Request, plugs: list[Plug]) -> Plug | None:
    """The port, if part of the VM has it already: the other part gets the same one."""
    found = next((plug for plug in plugs if plug.name == request.port), None)
    if found is None:
        return None
    same = (found.switch, found.kind) == (request.switch, request.kind)
    if (
        not same
        or (request.packed and not found.packed)
        or not request.settings.items() <= found.settings.items()
    ):
        raise ConflictError(
            f"{request.vm} has a port {found.name!r} already, with other settings",
            hint=f"another name: --port; or take that one out first: {target.detach(found.name)}",
        )
    return found


def make_plug(vptd: Client, request: Request, vm: str, *, small: bool, has: Collection[str] = ()) -> Plug:
    """The port that is to be made, and that vptd would make.

    vm: to name it after; small: a region that fits a running q35 guest.
    has: ports that the VM has, whether vptd has them or not.
    """
    rules.check_packed(request.kind, packed=request.packed)
    status, everything = vptd.call("daemon.status"), vptd.call("port.list")
    taken = {found["name"]: "switch" for found in vptd.call("switch.list")["switches"]}
    taken |= {port["name"]: "port" for port in everything["ports"]}
    name = request.port or free_name(vm, {*taken, *has})
    if name in taken and not request.existing:
        raise ExistsError(
            f"there is a {taken[name]} {name!r} already",
            hint=f"choose another name: --port; see whose it is: {vptd.typed('show', name)}",
        )
    there = device_settings(vptd, name) if request.existing and name in taken else {}
    settings = {"mac": random_mac(), **request.settings, **there}
    if small and request.kind == "passthrough" and not request.existing:
        settings.setdefault("slots", rules.live_slots(int(settings.get("pairs", 1))))
    runtime = status["runtime_dir"]
    # What is there already may have been told where its socket is to be.
    socket = f"{runtime}/ports/{name}.sock"
    if request.existing:
        socket = _port_there(vptd, everything, name)["socket"]
    plug = Plug(name, request.switch, request.kind, socket, runtime, settings, request.packed)
    if not request.existing:
        _ask(vptd, "port.check", plug)
    return plug


def _port_there(vptd: Client, everything: dict[str, Any], name: str) -> dict[str, Any]:
    for port in everything["ports"]:
        if port["name"] == name:
            return dict(port)
    raise NotFoundError(f"there is no port {name!r}", hint=f"see those that there are: {vptd.typed('ls')}")


def free_name(vm: str, taken: set[str]) -> str:
    """A port's name for a VM: its own, as far as that is one, and a number if need be."""
    base = "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "-" for char in vm)
    base = base.lstrip("_.-")[:27] or "vm"
    numbered = (f"{base}-{number}" for number in range(2, len(taken) + 3))
    return base if base not in taken else next(name for name in numbered if name not in taken)


def random_mac() -> str:
    """In the range that QEMU and libvirt use for their own."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in os.urandom(3))


def print_diff(connection: Any, vptd: Client, request: Request) -> str:
    """The change to the domain's XML as a diff; nothing is done."""
    plan = _plan(Target(connection, request.vm), vptd, request)
    return diff(plan.before, plan.after, request.vm)


def attach(connection: Any, vptd: Client, request: Request) -> Attached:
    """Make the port, plug it into the domain, and see that it is there. On any failure all is as before.

    What is there already stays as it is: a port that one part of the domain has is given to the other.
    """
    with in_turn(vptd.call("daemon.status")["runtime_dir"]):
        return _attach(connection, vptd, request)


def _attach(connection: Any, vptd: Client, request: Request) -> Attached:
    target = Target(connection, request.vm)
    if target.active and _means_live(target, request):
        target.mend_late()
    plan = _plan(target, vptd, request)
    plug = plan.plug
    with ExitStack() as undo:
        if not plan.port_there:
            add_to_vptd(vptd, plug, target.owner)
            undo.callback(_quietly, lambda: vptd.call("port.del", name=plug.name, if_exists=True))
        if plan.config:
            if _is_valid(plan.before):
                rules.validate(plan.after)
            target.define(plan.after)
            undo.callback(_quietly, lambda: target.define(plan.before))
            if plug not in rules.plugged_in(target.config_xml()):
                raise GuestError(
                    f"libvirt did not keep {plug.name} in {target.name}", hint=target.virsh("dumpxml")
                )
        if plan.live:
            before = plugs_in(target.live_xml())
            undo.callback(_quietly, lambda: _unplug_again(target, vptd, plug.name, before))
            try:
                target.plug_live(plug)
            except (SilentVmError, KeyboardInterrupt) as error:
                # It may go on, and would wait forever, with its VM, for a port that has gone meanwhile.
                undo.pop_all()
                raise _left_in(plan, str(error) or "interrupted") from error
        undo.pop_all()
    return Attached(target.name, plug, plan.where, tuple(_warnings(plan)), changed=plan.live or plan.config)


def _left_in(plan: _Plan, why: str) -> SilentVmError:
    vm, port = plan.target.name, plan.plug.name
    again = plan.target.detach(port)
    if not plan.config:
        # Nothing else knows of the device yet.
        device = plan.target.virsh("detach-device-alias", alias_of(port), "--live")
        again = f"{device}; {vpt('port', 'del', port, runtime=plan.plug.runtime_dir)}"
    return SilentVmError(
        f"{why}; the port {port} stays, for {vm} may get it yet",
        hint=f"once QEMU goes on (kill -CONT PID, if it was stopped), take it out again: {again}",
    )


def _warnings(plan: _Plan) -> list[str]:
    target, plug = plan.target, plan.plug
    found = [*rules.warnings(plan.before), *rules.plug_warnings(plug)]
    if (
        plan.live
        and plug.kind == "vhost-user"
        and int(target.connection.getLibVersion()) in SAYS_NO_RECONNECT
        and not is_watched(locate(plug.runtime_dir), which(target.connection))
    ):
        found.append(
            "this libvirt keeps QEMU from connecting again when vptd is restarted; to have that done, run:"
            f" {vpt('libvirt', 'watch', runtime=plug.runtime_dir, uri=target.connection.getURI())}"
        )
    return found


def add_to_vptd(vptd: Client, plug: Plug, owner: str) -> None:
    """Make the port in vptd, as the plug has it. owner: the VM that it must not outlive."""
    _ask(vptd, "port.add", plug, owner=owner)


def _ask(vptd: Client, method: str, plug: Plug, **more: str) -> None:
    settings = dict(plug.settings)
    if "policy" in settings:
        settings["policy"] = {"kind": settings["policy"]}
    try:
        vptd.call(method, name=plug.name, switch=plug.switch, kind=plug.kind, **settings, **more)
    except UsageError as error:
        # Of what the method takes, which is for programs, people see the options.
        if "daemon methods" in (error.hint or ""):
            raise UsageError(error.message, hint="vpt attach --help") from None
        raise


def _is_valid(xml: str) -> bool:
    """A domain that libvirt's schema does not take as it is need not conform with a port either."""
    try:
        rules.validate(xml)
    except VptError:
        return False
    return True


def _quietly(action: Callable[[], object]) -> None:
    """For undoing: what made us undo is what the user must hear of."""
    with suppress(Exception):
        action()


def _unplug_again(target: Target, vptd: Client, name: str, before: list[Plug]) -> None:
    if rules.alias_in(target.live_xml(), name):
        target.unplug_live(name, vptd)
    elif plugs_in(target.live_xml()) != before:
        target.note_live(before)


# ---- detach ----


def detach(
    connection: Any,
    open_vptd: Callable[[str], Client],
    vm: str,
    port: str | None = None,
    *,
    live: bool = False,
    config: bool = False,
    keep_port: bool = False,
    runtime: Path | None = None,
) -> Detached:
    """Take a port out of a domain, wait until the guest has let go of it, and delete the port.

    port: none is needed if the domain has one only. Neither live nor config: wherever it is.
    open_vptd: gives the client for a runtime dir. keep_port: the port itself is somebody else's, and stays.
    runtime: that of the vptd which a hint is to name where the domain has no port that would say.
    A vptd that is not there keeps nobody from taking a port out of a configuration.
    """
    found = Target(connection, vm)
    plug = _choose(found, port, list(chain(*_plugs_of(found, plugs_in))), runtime)
    with in_turn(plug.runtime_dir):
        return _detach(
            Target(connection, vm), open_vptd, vm, plug.name, live=live, config=config, keep_port=keep_port
        )


def _plugs_of(target: Target, look: Callable[[str], list[Plug]]) -> tuple[list[Plug], list[Plug]]:
    """What look finds in the running domain, and in its configuration."""
    return (
        look(target.live_xml()) if target.active else [],
        look(target.config_xml()) if target.persistent else [],
    )


def _detach(
    target: Target,
    open_vptd: Callable[[str], Client],
    vm: str,
    port: str,
    *,
    live: bool,
    config: bool,
    keep_port: bool,
) -> Detached:
    in_live, in_config = _plugs_of(target, plugs_in)
    plug = _choose(target, port, [*in_live, *in_config])
    has_device = target.active and rules.alias_in(target.live_xml(), plug.name)
    # Once the device is gone, the port that was made for it is left, and the note of it.
    has_live = has_device or any(found.name == plug.name for found in in_live)
    has_config = any(found.name == plug.name for found in in_config)
    anywhere = not live and not config
    do_live, do_config = has_live and (live or anywhere), has_config and (config or anywhere)
    if not (do_live or do_config):
        where = "its configuration" if config else "the running domain"
        raise NotFoundError(f"{vm} has no port {plug.name!r} in {where}", hint=target.detach(plug.name))
    if do_live and has_device:
        target.require_live()
    delete = vpt("port", "del", plug.name, runtime=plug.runtime_dir)
    delete_if_there = f"{delete} --if-exists"
    with ExitStack() as stack:
        vptd = _client(stack, open_vptd, plug.runtime_dir, needed=do_live)
        try:
            _take_out(target, plug, vptd if do_live else None, config=do_config)
        except (ConflictError, GuestError, NotFoundError) as error:
            if not (do_live and target.has_ended()):
                raise
            again = target.detach(plug.name) if has_config else delete_if_there
            raise ConflictError(
                f"{vm} ended while {plug.name} was taken out of it; the port is still there",
                hint=f"to be rid of it: {again}",
            ) from error
        kept = ""
        if (has_live and not do_live) or (has_config and not do_config):
            kept = "the rest of the VM has it"
        elif vptd is None:
            kept = f"vptd does not run; once it does: {delete_if_there}"
        elif keep_port or _is_anothers(vptd, plug.name, target.owner):
            kept = f"it was not made for {vm}; to be rid of it: {delete}"
        else:
            vptd.call("port.del", name=plug.name, if_exists=True)
    where_done = tuple(name for name, done in (("live", do_live), ("config", do_config)) if done)
    return Detached(vm, plug.name, where_done, kept)


def _is_anothers(vptd: Client, name: str, owner: str) -> bool:
    """Is the port there, and was made for no VM (a topology's, or made by hand), or for another one?"""
    return any(port["name"] == name and port["owner"] != owner for port in vptd.call("port.list")["ports"])


def _client(
    stack: ExitStack, open_vptd: Callable[[str], Client], runtime_dir: str, *, needed: bool
) -> Client | None:
    """The vptd of a port; None: it is not there, and can be done without."""
    try:
        return stack.enter_context(open_vptd(runtime_dir))
    except DaemonError as error:
        if needed or error.code != "not-running":
            raise
        return None


def _choose(target: Target, port: str | None, found: list[Plug], runtime: Path | None = None) -> Plug:
    vm, plugs = target.name, {plug.name: plug for plug in found}
    if port is not None:
        if port not in plugs:
            names = ", ".join(plugs) or "none"
            raise NotFoundError(f"{vm} has no port {port!r}", hint=f"its vpt ports: {names}")
        return plugs[port]
    if not plugs:
        words = ("attach", vm, "--switch", "SWITCH")
        attach_one = vpt(*words, runtime=runtime, uri=target.connection.getURI())
        raise NotFoundError(f"{vm} has no vpt port", hint=f"plug one in: {attach_one}")
    if len(plugs) > 1:
        raise UsageError(f"{vm} has several vpt ports: say which", hint=target.detach(next(iter(plugs))))
    return next(iter(plugs.values()))


def _take_out(target: Target, plug: Plug, vptd: Client | None, *, config: bool) -> None:
    """vptd: out of the running domain as well."""
    with ExitStack() as undo:
        if config:
            before = target.config_xml()
            target.define(remove_port(before, plug.name))
            undo.callback(_quietly, lambda: target.define(before))
        if vptd is not None:
            if rules.alias_in(target.live_xml(), plug.name):
                target.unplug_live(plug.name, vptd)
            else:
                target.mend_late()
                target.note_live([other for other in plugs_in(target.live_xml()) if other.name != plug.name])
        undo.pop_all()
