# SPDX-License-Identifier: BSD-2-Clause
"""A guest as a libvirt domain: its XML, and its life through libvirt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from vpt.errors import ConflictError, GuestError, NotFoundError
from vpt.hints import virsh, vpt
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._connection import binding, find_domain, open_libvirt, translate
from vpt.libvirt_plugin.metadata import Plug
from vpt.libvirt_plugin.xml import add_port
from vpt.provision.machine import Port
from vpt.provision.record import Folder, Record
from vpt.qemu import Drive, Machine, Qemu, find_qemu, kernel_arguments, user_net

__all__ = ["domain_xml", "is_running", "remove", "start", "stop"]

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# Far behind the slots that libvirt gives to devices by itself.
_MANAGEMENT_SLOT = "bus=pci.0,addr=0x1e"


def domain_xml(record: Record, machine: Machine, ports: list[Port], qemu: Qemu, folder: Folder) -> str:
    """The definition. Its ports are put in as `vpt attach` does it, so that `vpt detach` takes them out."""
    cpus = machine.cpus
    # With one possible CPU, QEMU drops the guest's memory barriers under TCG.
    vcpu = f"<vcpu current='{cpus}'>{max(2, cpus)}</vcpu>"
    kind, cpu = ("kvm", "host-passthrough") if machine.accel == "kvm" else ("qemu", "maximum")
    lines = [
        f"<domain type='{kind}' xmlns:qemu='{_QEMU}'>",
        f"  <name>{escape(record.name)}</name>",
        f"  <memory unit='MiB'>{machine.memory_mib}</memory>",
        f"  {vcpu}",
        "  <os>",
        "    <type arch='x86_64' machine='pc'>hvm</type>",
        *_boot(machine),
        "  </os>",
        "  <features><acpi/></features>",
        f"  <cpu mode='{cpu}'/>",
        "  <devices>",
        f"    <emulator>{escape(str(qemu.path))}</emulator>",
        *(_disk(drive, number) for number, drive in enumerate(machine.drives)),
        "    <controller type='usb' model='none'/>",
        f"    <serial type='file'><source path={quoteattr(str(folder.console))}/><target port='0'/></serial>",
        "    <memballoon model='none'/>",
        "  </devices>",
        "  <qemu:commandline>",
        *(f"    <qemu:arg value={quoteattr(value)}/>" for value in _arguments(machine, qemu)),
        "  </qemu:commandline>",
        "</domain>",
    ]
    xml = "\n".join(lines) + "\n"
    for port in ports:
        settings = {"mac": record.macs[port.name]} | ({"pairs": port.pairs} if port.pairs > 1 else {})
        plug = Plug(port.name, port.switch, port.kind, port.socket, record.runtime_dir, settings)
        rules.check_config(xml, plug, qemu.number)
        xml = add_port(xml, plug)
    return xml


def _boot(machine: Machine) -> list[str]:
    if machine.kernel is None:
        return ["    <boot dev='hd'/>"]
    lines = [f"    <kernel>{escape(str(machine.kernel))}</kernel>"]
    if machine.initrd is not None:
        lines.append(f"    <initrd>{escape(str(machine.initrd))}</initrd>")
    return [*lines, f"    <cmdline>{escape(kernel_arguments(machine))}</cmdline>"]


def _disk(drive: Drive, number: int) -> str:
    readonly = "<readonly/>" if drive.readonly else ""
    return (
        f"    <disk type='file' device='disk'><driver name='qemu' type='{drive.format}'/>"
        f"<source file={quoteattr(str(drive.path))}/>"
        f"<target dev='vd{chr(ord('a') + number)}' bus='virtio'/>{readonly}</disk>"
    )


def _arguments(machine: Machine, qemu: Qemu) -> Iterator[str]:
    """What libvirt has no words for: forwarding a TCP port to the guest."""
    if machine.accel == "tcg" and not qemu.tcg_vhost_msix:
        yield from ("-global", "virtio-net-pci.vectors=0")
    if machine.management is not None:
        netdev, device = user_net(machine.management, machine.accel)
        yield from ("-netdev", netdev, "-device", f"{device},{_MANAGEMENT_SLOT}")


# ---- its life ----


@contextlib.contextmanager
def _domain(record: Record, folder: Folder) -> Iterator[Any]:
    """The domain. NotFoundError: there is none, or it is somebody else's."""
    with open_libvirt(record.config.connect) as connection:
        domain = find_domain(connection, record.name)
        if not _is_ours(domain, folder):
            raise NotFoundError(f"the domain {record.name} is not the guest of that name")
        yield domain


@contextlib.contextmanager
def _asking(record: Record, what: str) -> Iterator[None]:
    libvirt = binding()
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, record.name, what, record.config.connect) from error


def start(record: Record, machine: Machine, ports: list[Port], folder: Folder) -> None:
    """Define the domain and start it. If it does not start, it is not defined either."""
    with open_libvirt(record.config.connect) as connection:
        with contextlib.suppress(NotFoundError):
            found = find_domain(connection, record.name)
            if not _is_ours(found, folder):
                words = ("attach", record.name, "--switch", "SWITCH")
                attach = vpt(*words, runtime=record.runtime_dir, uri=record.config.connect)
                raise ConflictError(
                    f"libvirt has a domain {record.name!r} already, which is not this guest",
                    hint=f"choose another name; to give that domain a port: {attach}",
                )
            with _asking(record, "define it anew"):
                found.undefine()
        xml = domain_xml(record, machine, ports, find_qemu(), folder)
        with _asking(record, "define it"):
            domain = connection.defineXML(xml)
        try:
            with _asking(record, "start it"):
                domain.create()
        except BaseException:
            with contextlib.suppress(Exception):
                domain.undefine()
            raise


def _is_ours(domain: Any, folder: Folder) -> bool:
    """Does it write its console into the guest's folder?"""
    return str(folder.console) in str(domain.XMLDesc(0))


def is_running(record: Record, folder: Folder) -> bool:
    """Also false if libvirt has no such domain any more."""
    with contextlib.suppress(NotFoundError), _domain(record, folder) as domain, _asking(record, "look at it"):
        return bool(domain.isActive())
    return False


def stop(record: Record, folder: Folder, *, grace_s: float) -> None:
    """As _qemu.stop()."""
    with contextlib.suppress(NotFoundError), _domain(record, folder) as domain, _asking(record, "stop it"):
        if not domain.isActive():
            return
        if grace_s > 0:
            domain.shutdown()
            end = time.monotonic() + grace_s
            while domain.isActive() and time.monotonic() < end:
                time.sleep(0.2)
        if domain.isActive():
            domain.destroy()
        if domain.isActive():
            hint = virsh(record.config.connect, "domstate", record.name)
            raise GuestError(f"libvirt did not stop {record.name}", hint=hint)


def remove(record: Record, folder: Folder) -> None:
    """Undefine it, once it is stopped."""
    with (
        contextlib.suppress(NotFoundError),
        _domain(record, folder) as domain,
        _asking(record, "undefine it"),
    ):
        if domain.isPersistent():
            domain.undefine()
