# SPDX-License-Identifier: BSD-2-Clause
"""A domain of libvirt's as vpt changes it: its two descriptions, and its devices while it runs."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

from vpt.daemon.client import Client
from vpt.errors import ConflictError, GuestError
from vpt.hints import virsh, vpt
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._answers import SilentVmError, asked, within
from vpt.libvirt_plugin._connection import binding, find_domain, owner_of, translate
from vpt.libvirt_plugin._there import holder_of
from vpt.libvirt_plugin.metadata import (
    NAMESPACE,
    PREFIX,
    Plug,
    left_in,
    made_in,
    metadata_xml,
    plugs_in,
)
from vpt.libvirt_plugin.xml import alias_of, device_xml

__all__ = ["Target"]

_DEVICE_S = 15.0
_POLL_S = 0.1


class Target:
    """A domain, and which of its two descriptions a change is for."""

    def __init__(self, connection: Any, name: str) -> None:
        self.lib = binding()
        self.connection = connection
        self.name = name
        self.domain = within(find_domain(connection, name))
        with self.asking("look at it"):
            self.active = bool(self.domain.isActive())
            self.persistent = bool(self.domain.isPersistent())
            self.state = self.domain.state()[0]

    @property
    def owner(self) -> str:
        """What ports made for it are marked with in vptd."""
        return owner_of(self.connection, self.domain)

    def virsh(self, command: str, *more: str) -> str:
        """For a hint: what to type to have that done to it. more: what follows its name."""
        return virsh(self.connection.getURI(), command, self.name, *more)

    def detach(self, port: str) -> str:
        """For a hint: what to type to take that port out. Which vptd has it, the domain knows."""
        return vpt("detach", self.name, port, uri=self.connection.getURI())

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except self.lib.libvirtError as error:
            raise translate(error, self.name, what, self.connection.getURI()) from error
        except SilentVmError as error:
            raise SilentVmError(
                f"{error}, which was to {what} ({self.name})",
                hint=f"see what holds it: {self.virsh('domcontrol')}; one that was stopped: kill -CONT PID",
            ) from None

    def live_xml(self) -> str:
        with self.asking("read the running domain"):
            return str(self.domain.XMLDesc(0))

    def config_xml(self) -> str:
        flags = self.lib.VIR_DOMAIN_XML_INACTIVE | self.lib.VIR_DOMAIN_XML_SECURE
        with self.asking("read its configuration"):
            return str(self.domain.XMLDesc(flags))

    def qemu_version(self) -> int:
        """Of libvirt's QEMU: 7002022 for 7.2.22."""
        with self.asking("ask which QEMU there is"):
            return int(self.connection.getVersion())

    def define(self, xml: str) -> None:
        with self.asking("change its configuration"):
            # One that somebody has undefined meanwhile must not come back.
            if not self.domain.isPersistent():
                hint = virsh(self.connection.getURI(), "list", "--all")
                raise ConflictError(f"{self.name} has been undefined meanwhile", hint=hint)
            self.connection.defineXML(xml)

    def require_live(self) -> None:
        if not self.active:
            raise ConflictError(
                f"{self.name} does not run",
                hint=f"{self.virsh('start')}; or change its configuration: --config",
            )
        if self.state != self.lib.VIR_DOMAIN_RUNNING:
            # It could take a new device now, but never let one go.
            raise ConflictError(
                f"{self.name} is paused, and only a running guest takes or lets go of a device",
                hint=self.virsh("resume"),
            )

    def has_ended(self) -> bool:
        """Is it known that it does not run any more, though it did?"""
        if not self.active:
            return False
        try:
            return not self.domain.isActive()
        except self.lib.libvirtError as error:
            return bool(error.get_error_code() == self.lib.VIR_ERR_NO_DOMAIN)

    def require_config(self) -> None:
        if not self.persistent:
            raise ConflictError(
                f"{self.name} is transient: it has no configuration beside the running domain", hint="--live"
            )

    def plug_live(self, plug: Plug) -> None:
        # libvirt would put ivshmem, as conventional PCI, behind a bridge, whose window holds one region only.
        before = self.live_xml()
        free = rules.free_root_ports(before)
        bus = free[0] if free and plug.kind == "passthrough" else None
        with _changes(self) as changed:
            with self.asking("attach the device"):
                self.domain.attachDeviceFlags(device_xml(plug, bus), self.lib.VIR_DOMAIN_AFFECT_LIVE)
            if not changed(lambda: rules.alias_in(self.live_xml(), plug.name)):
                raise GuestError(
                    f"libvirt says that {plug.name} is attached, and {self.name} does not have it",
                    hint=self.virsh("dumpxml"),
                )
        others = [other for other in plugs_in(before) if other.name != plug.name]
        left = {port: eventfds for port, eventfds in left_in(before).items() if port != plug.name}
        self.note_live([*others, plug], left=left, spent=rules.is_spent(before))

    def unplug_live(self, name: str, vptd: Client) -> None:
        """Take a port's device out of the running domain, with what QEMU would keep of it, and its note."""
        xml = self.live_xml()
        leaves = rules.leaves_handlers(xml, name)
        eventfds = self._eventfds(name, vptd) if leaves else []
        if eventfds:
            # Now, for the guest may let go of it when nobody waits any more.
            self.note_live(plugs_in(xml), left={**left_in(xml), name: eventfds})
        with _changes(self) as changed:
            with self.asking("detach the device"):
                self.domain.detachDeviceAlias(alias_of(name), self.lib.VIR_DOMAIN_AFFECT_LIVE)
            if not changed(lambda: not rules.alias_in(self.live_xml(), name)):
                raise GuestError(
                    f"{self.name} did not let go of {name} within {_DEVICE_S:.0f} s, so the port stays",
                    hint="a guest must be up, with PCI hotplug, to eject a device: try again later, or shut"
                    f" it down after: {self.detach(name)} --config",
                )
        self.mend_late()
        others = [plug for plug in plugs_in(self.live_xml()) if plug.name != name]
        self.note_live(others, spent=leaves and not eventfds)

    def mend_late(self) -> list[str]:
        """Mend QEMU after devices that have gone since somebody began to unplug them. Returns their ports."""
        xml = self.live_xml()
        late = rules.gone_late(xml)
        if not late:
            return []
        # Not for attach to load, which is to be quick.
        from vpt.qemu.stale import mend

        clean = mend(self.monitor, self._pid(), chain(*late.values()))
        seen_to: dict[str, list[str]] = {port: [] for port in late}
        self.note_live(plugs_in(xml), left={**left_in(xml), **seen_to}, spent=not clean)
        return list(late)

    def _eventfds(self, name: str, vptd: Client) -> list[str]:
        from vpt.qemu.stale import eventfds

        pid = self._pid()
        return eventfds(pid, holder_of(vptd, name, pid))

    def _pid(self) -> int | None:
        from vpt.qemu import domain_pid

        return domain_pid(self.domain.UUIDString(), self.name)

    def note_live(
        self, plugs: list[Plug], *, left: Mapping[str, list[str]] | None = None, spent: bool = False
    ) -> None:
        """What the running domain has, in its metadata. left: as metadata.left_in(); None: what that has."""
        kind, xml = self.lib.VIR_DOMAIN_METADATA_ELEMENT, self.live_xml()
        if left is None:
            names = {plug.name for plug in plugs}
            left = {port: eventfds for port, eventfds in left_in(xml).items() if port in names}
        text = metadata_xml(plugs, made=made_in(xml), left=left, spent=spent or rules.is_spent(xml))
        with self.asking("note the port in its metadata"):
            self.domain.setMetadata(kind, text, PREFIX, NAMESPACE, self.lib.VIR_DOMAIN_AFFECT_LIVE)

    def monitor(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        """What QEMU answers to a QMP command. libvirt notes that the domain was asked behind its back."""
        qemu = importlib.import_module("libvirt_qemu")
        line = json.dumps({"execute": command, "arguments": arguments})
        with self.asking(f"ask QEMU to {command}"):
            if files:
                answer, _ = asked(qemu.qemuMonitorCommandWithFiles, self.domain, line, list(files), 0)
            else:
                answer = asked(qemu.qemuMonitorCommand, self.domain, line, 0)
        found = json.loads(answer)
        if "error" in found:
            raise GuestError(f"QEMU refused {command}: {found['error']['desc']}")
        return found["return"]


@contextmanager
def _changes(target: Target) -> Iterator[Callable[[Callable[[], bool]], bool]]:
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
