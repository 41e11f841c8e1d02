# SPDX-License-Identifier: BSD-2-Clause
"""A port and its device in a libvirt domain, made together or not at all.

The port comes first, because QEMU connects to its socket. Then the configuration, which can be put back, and
the running domain last. What libvirt says it did is read back: it reports a detach as done when the guest
never let go of the device.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from vpt.daemon.client import Client
from vpt.errors import ConflictError, GuestError, NotFoundError, UsageError, VptError
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._connection import binding, find_domain, translate
from vpt.libvirt_plugin.xml import (
    NAMESPACE,
    PREFIX,
    Plug,
    add_port,
    alias_of,
    device_xml,
    diff,
    domain_element,
    is_spent,
    metadata_xml,
    plugs_in,
    remove_port,
)

__all__ = ["Attached", "Detached", "Request", "attach", "detach", "free_name", "print_diff", "random_mac"]

_DEVICE_S = 15.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be plugged in.

    port:     its name, none: named after the VM
    settings: as `port.add` takes them, beside name, switch and kind

    Neither live nor config: the running domain if it runs, else its configuration.
    """

    vm: str
    switch: str
    kind: Literal["vhost-user", "passthrough"]
    port: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    live: bool = False
    config: bool = False


@dataclass(frozen=True, slots=True)
class Attached:
    """A port in a VM. where: "live", "config" or both."""

    vm: str
    plug: Plug
    where: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Detached:
    """A port taken out. deleted: the port itself is gone, because no part of the VM names it any more."""

    vm: str
    port: str
    where: tuple[str, ...]
    deleted: bool


class _Target:
    """A domain, and which of its two descriptions a change is for."""

    def __init__(self, connection: Any, name: str) -> None:
        self.lib = binding()
        self.connection = connection
        self.name = name
        self.domain = find_domain(connection, name)
        with self.asking("look at it"):
            self.active = bool(self.domain.isActive())
            self.persistent = bool(self.domain.isPersistent())
            self.state = self.domain.state()[0]

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except self.lib.libvirtError as error:
            raise translate(error, self.name, what) from error

    def live_xml(self) -> str:
        with self.asking("read the running domain"):
            return str(self.domain.XMLDesc(0))

    def config_xml(self) -> str:
        flags = self.lib.VIR_DOMAIN_XML_INACTIVE | self.lib.VIR_DOMAIN_XML_SECURE
        with self.asking("read its configuration"):
            return str(self.domain.XMLDesc(flags))

    def define(self, xml: str) -> None:
        with self.asking("change its configuration"):
            # One that somebody has undefined meanwhile must not come back.
            if not self.domain.isPersistent():
                raise ConflictError(f"{self.name} has been undefined meanwhile", hint="virsh list --all")
            self.connection.defineXML(xml)

    def require_live(self) -> None:
        if not self.active:
            raise ConflictError(
                f"{self.name} does not run",
                hint=f"virsh start {self.name}; or change its configuration: --config",
            )
        if self.state != self.lib.VIR_DOMAIN_RUNNING:
            # It could take a new device now, but never let one go.
            raise ConflictError(
                f"{self.name} is paused, and only a running guest takes or lets go of a device",
                hint=f"virsh resume {self.name}",
            )

    def require_config(self) -> None:
        if not self.persistent:
            raise ConflictError(
                f"{self.name} is transient: it has no configuration beside the running domain", hint="--live"
            )

    def plug_live(self, plug: Plug) -> None:
        # libvirt would put ivshmem, as conventional PCI, behind a bridge, whose window holds one region only.
        free = rules.free_root_ports(self.live_xml())
        bus = free[0] if free and plug.kind == "passthrough" else None
        with _watch(self) as changed:
            with self.asking("attach the device"):
                self.domain.attachDeviceFlags(device_xml(plug, bus), self.lib.VIR_DOMAIN_AFFECT_LIVE)
            if not changed(lambda: rules.alias_in(self.live_xml(), plug.name)):
                raise GuestError(
                    f"libvirt says that {plug.name} is attached, and {self.name} does not have it",
                    hint=f"virsh dumpxml {self.name}",
                )
        self.note_live([*plugs_in(self.live_xml()), plug])

    def unplug_live(self, name: str) -> None:
        with _watch(self) as changed:
            with self.asking("detach the device"):
                self.domain.detachDeviceAlias(alias_of(name), self.lib.VIR_DOMAIN_AFFECT_LIVE)
            if not changed(lambda: not rules.alias_in(self.live_xml(), name)):
                raise GuestError(
                    f"{self.name} did not let go of {name} within {_DEVICE_S:.0f} s, so the port stays",
                    hint="a guest must be up, with PCI hotplug, to eject a device: try again later, or shut"
                    " it down after vpt detach --config",
                )

    def note_live(self, plugs: list[Plug], *, spent: bool = False) -> None:
        """What the running domain has, in its metadata."""
        kind = self.lib.VIR_DOMAIN_METADATA_ELEMENT
        text = metadata_xml(plugs, spent=spent or is_spent(self.live_xml()))
        with self.asking("note the port in its metadata"):
            self.domain.setMetadata(kind, text, PREFIX, NAMESPACE, self.lib.VIR_DOMAIN_AFFECT_LIVE)


@contextmanager
def _watch(target: _Target) -> Iterator[Callable[[Callable[[], bool]], bool]]:
    """changed(condition): wait until it holds. Looks when libvirt reports a device, and now and then."""
    lib, wake = target.lib, threading.Event()

    def on_event(*_args: Any) -> None:
        wake.set()

    kinds = (lib.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, lib.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED)

    def changed(condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + _DEVICE_S
        while not condition():
            if time.monotonic() > end:
                return False
            wake.wait(_POLL_S)
            wake.clear()
        return True

    with ExitStack() as undo:
        with target.asking("follow its events"):
            for kind in kinds:
                handle = target.connection.domainEventRegisterAny(target.domain, kind, on_event, None)
                undo.callback(target.connection.domainEventDeregisterAny, handle)
        yield changed


# ---- attach ----


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that can be known before anything is changed."""

    target: _Target
    plug: Plug
    live: bool
    config: bool
    before: str
    after: str


def _plan(connection: Any, vptd: Client, request: Request) -> _Plan:
    target = _Target(connection, request.vm)
    live = request.live or (target.active and not request.config)
    config = request.config or not live
    if live:
        target.require_live()
    if config:
        target.require_config()
    plug = _make_plug(vptd, request, small=live and rules.is_express(target.live_xml()))
    if live:
        version = int(connection.getVersion())
        rules.check_live(target.live_xml(), plug, version)
        rules.check_domain(add_port(target.live_xml(), plug))
    before = target.config_xml() if config else target.live_xml()
    after = add_port(before, plug)
    rules.check_domain(after)
    return _Plan(target, plug, live, config, before, after)


def _make_plug(vptd: Client, request: Request, *, small: bool) -> Plug:
    status, everything = vptd.call("daemon.status"), vptd.call("port.list")
    taken = {port["name"] for port in everything["ports"]}
    name = request.port or free_name(request.vm, taken)
    settings = {"mac": random_mac(), **request.settings}
    if small and request.kind == "passthrough":
        settings.setdefault("slots", rules.live_slots(int(settings.get("pairs", 1))))
    runtime = status["runtime_dir"]
    return Plug(name, request.switch, request.kind, f"{runtime}/ports/{name}.sock", runtime, settings)


def free_name(vm: str, taken: set[str]) -> str:
    """A port's name for a VM: its own, as far as that is one, and a number if need be."""
    base = "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "-" for char in vm)
    base = base.lstrip("_.-")[:27] or "vm"
    numbered = (f"{base}-{number}" for number in range(2, len(taken) + 3))
    return base if base not in taken else next(name for name in numbered if name not in taken)


def random_mac() -> str:
    """In the range that QEMU and libvirt use for their own."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def print_diff(connection: Any, vptd: Client, request: Request) -> str:
    """The change to the domain's XML as a diff; nothing is done."""
    plan = _plan(connection, vptd, request)
    return diff(plan.before, plan.after, request.vm)


def attach(connection: Any, vptd: Client, request: Request) -> Attached:
    """Make the port, plug it into the domain, and see that it is there. On any failure all is as before."""
    plan = _plan(connection, vptd, request)
    target, plug = plan.target, plan.plug
    with ExitStack() as undo:
        add_to_vptd(vptd, plug)
        undo.callback(_quietly, lambda: vptd.call("port.del", name=plug.name, if_exists=True))
        if plan.config:
            if _is_valid(plan.before):
                rules.validate(plan.after)
            target.define(plan.after)
            undo.callback(_quietly, lambda: target.define(plan.before))
            if plug not in plugs_in(target.config_xml()):
                raise GuestError(
                    f"libvirt did not keep {plug.name} in {target.name}", hint=f"virsh dumpxml {target.name}"
                )
        if plan.live:
            undo.callback(_quietly, lambda: _unplug_again(target, plug.name))
            target.plug_live(plug)
        undo.pop_all()
    where = tuple(name for name, wanted in (("live", plan.live), ("config", plan.config)) if wanted)
    return Attached(target.name, plug, where, tuple(rules.warnings(plan.before)))


def add_to_vptd(vptd: Client, plug: Plug) -> None:
    """Make the port in vptd, as the plug has it."""
    settings = dict(plug.settings)
    if "policy" in settings:
        settings["policy"] = {"kind": settings["policy"]}
    vptd.call("port.add", name=plug.name, switch=plug.switch, kind=plug.kind, **settings)


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


def _unplug_again(target: _Target, name: str) -> None:
    if rules.alias_in(target.live_xml(), name):
        target.unplug_live(name)
    left = plugs_in(target.live_xml())
    if any(plug.name == name for plug in left):
        target.note_live([plug for plug in left if plug.name != name])


# ---- detach ----


def detach(
    connection: Any,
    open_vptd: Callable[[str], Client],
    vm: str,
    port: str | None = None,
    *,
    live: bool = False,
    config: bool = False,
) -> Detached:
    """Take a port out of a domain, wait until the guest has let go of it, and delete the port.

    port: none is needed if the domain has one only. Neither live nor config: wherever it is.
    open_vptd: gives the client for a runtime dir.
    """
    target = _Target(connection, vm)
    in_live = plugs_in(target.live_xml()) if target.active else []
    in_config = plugs_in(target.config_xml()) if target.persistent else []
    plug = _choose(vm, port, [*in_live, *in_config])
    has_live = target.active and rules.alias_in(target.live_xml(), plug.name)
    has_config = any(found.name == plug.name for found in in_config)
    anywhere = not live and not config
    do_live, do_config = has_live and (live or anywhere), has_config and (config or anywhere)
    if not (do_live or do_config):
        where = "its configuration" if config else "the running domain"
        raise NotFoundError(f"{vm} has no port {plug.name!r} in {where}", hint=f"vpt detach {vm} {plug.name}")
    if do_live:
        target.require_live()
    with ExitStack() as stack:
        vptd = stack.enter_context(open_vptd(plug.runtime_dir))
        _take_out(target, plug, live=do_live, config=do_config)
        deleted = not ((has_live and not do_live) or (has_config and not do_config))
        if deleted:
            vptd.call("port.del", name=plug.name, if_exists=True)
    where_done = tuple(name for name, done in (("live", do_live), ("config", do_config)) if done)
    return Detached(vm, plug.name, where_done, deleted)


def _choose(vm: str, port: str | None, found: list[Plug]) -> Plug:
    plugs = {plug.name: plug for plug in found}
    if port is not None:
        if port not in plugs:
            names = ", ".join(plugs) or "none"
            raise NotFoundError(f"{vm} has no port {port!r}", hint=f"its vpt ports: {names}")
        return plugs[port]
    if not plugs:
        raise NotFoundError(f"{vm} has no vpt port", hint=f"plug one in: vpt attach {vm} --switch SWITCH")
    if len(plugs) > 1:
        raise UsageError(
            f"{vm} has several vpt ports: say which", hint=f"vpt detach {vm} {next(iter(plugs))}"
        )
    return next(iter(plugs.values()))


def _take_out(target: _Target, plug: Plug, *, live: bool, config: bool) -> None:
    with ExitStack() as undo:
        if config:
            before = target.config_xml()
            target.define(remove_port(before, plug.name))
            undo.callback(_quietly, lambda: target.define(before))
        if live:
            target.unplug_live(plug.name)
            tcg = domain_element(target.live_xml())[1].attrs.get("type") == "qemu"
            left = [other for other in plugs_in(target.live_xml()) if other.name != plug.name]
            target.note_live(left, spent=tcg and plug.kind == "passthrough")
        undo.pop_all()
