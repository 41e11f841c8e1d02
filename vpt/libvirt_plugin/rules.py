# SPDX-License-Identifier: BSD-2-Clause
"""What must hold for a vpt port to work in a domain, and what libvirt does not check by itself.

Seen on libvirt 9.0: it starts a vhost-user interface on memory that nobody else can map, takes two interfaces
with one MAC address or one socket, and its schema lets an interface without model and an ivshmem-doorbell
without server through.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vpt.daemon.sockets import unix_path
from vpt.errors import ConflictError, MissingError, UsageError
from vpt.libvirt_plugin import _ram_folder
from vpt.libvirt_plugin._document import Element, domain_element
from vpt.libvirt_plugin.metadata import Kind, Plug, is_marked_spent, left_in, plugs_in
from vpt.libvirt_plugin.xml import alias_of

__all__ = [
    "LIVE_WINDOW",
    "check_config",
    "check_domain",
    "check_live",
    "check_packed",
    "check_plug",
    "check_spent",
    "check_window",
    "gone_late",
    "is_spent",
    "leaves_handlers",
    "live_slots",
    "plug_warnings",
    "plugged_in",
    "validate",
    "warnings",
]

LIVE_WINDOW = 2 << 20
"""Bytes of prefetchable memory that firmware keeps free behind each hotplug port of a PCI Express machine."""

_SCHEMAS = ("/usr/share/libvirt/schemas/domain.rng", "/usr/local/share/libvirt/schemas/domain.rng")
_BUF_SIZE = 2112
# As libvirt counts versions. An earlier QEMU crashes under TCG when a guest's driver sets up MSI-X on a
# vhost-user device.
_TCG_MSIX_WORKS = 10_000_000
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_NO_VECTORS = "virtio-net-pci.vectors=0"


def check_plug(plug: Plug) -> None:
    """UsageError: vptd would not make such a port, whatever it has. For those who do not ask it."""
    from pydantic import ValidationError

    from vpt.daemon.models import PortConfig, explain

    check_packed(plug.kind, packed=plug.packed)
    settings = {**plug.settings, "socket": plug.socket}
    try:
        PortConfig.model_validate({"name": plug.name, "switch": plug.switch, "kind": plug.kind, **settings})
    except ValidationError as error:
        raise UsageError(explain(error), hint="vpt libvirt render --help") from None
    unix_path(plug.socket)


def check_packed(kind: Kind, *, packed: bool) -> None:
    """UsageError: only a virtio device has virtqueues."""
    if packed and kind != "vhost-user":
        raise UsageError("packed virtqueues are for vhost-user ports", hint="leave out --packed or --kind")


def check_domain(xml: str) -> None:
    """The domain as it would be, with its vpt ports. ConflictError: the first rule that is broken."""
    _, domain = domain_element(xml)
    devices = domain.find("devices")
    children = [] if devices is None else devices.children
    interfaces = [child for child in children if child.name == "interface"]
    vhost_user = [child for child in interfaces if child.attrs.get("type") == "vhostuser"]
    if vhost_user:
        check_memory(
            domain,
            "the domain's memory",
            "in the domain: <memoryBacking><source type='memfd'/><access mode='shared'/>"
            "</memoryBacking>, in effect from its next start; or --kind passthrough, which does without",
        )
    macs = [(child.attr("mac", "address") or "").lower() for child in interfaces]
    _unique(macs, "MAC address", "choose another: --mac")
    sockets = [child.attr("source", "path") or "" for child in vhost_user]
    sockets += [child.attr("server", "path") or "" for child in children if child.name == "shmem"]
    _unique(sockets, "socket", "a socket serves one device: vpt ls; vpt show PORT")
    for child in vhost_user:
        if child.attr("model", "type") is None:
            raise ConflictError(
                "a vhostuser interface of the domain has no model", hint="<model type='virtio'/>"
            )
    for child in children:
        doorbell = child.name == "shmem" and child.attr("model", "type") == "ivshmem-doorbell"
        if doorbell and child.find("server") is None:
            raise ConflictError(
                "an ivshmem-doorbell of the domain has no server", hint="<server path='...'/>"
            )


def _unique(values: list[str], what: str, hint: str) -> None:
    for value, count in Counter(values).items():
        if value and count > 1:
            raise ConflictError(f"the domain would have two devices with the {what} {value}", hint=hint)


def check_memory(domain: Element, what: str, hint: str) -> None:
    """ConflictError: vptd could not map the guest's memory, or would not. hint: for what is not shared."""
    if not has_shared_memory(domain):
        raise ConflictError(f"{what} is not shared, and a vhost-user port must map it", hint=hint)
    if domain.attr("memoryBacking/source", "type") != "memfd" and not _only_huge_pages(domain):
        if _ram_folder.is_memory():
            return
        raise ConflictError(
            f"{what} is in files on a disk, which could keep vptd waiting, and a vhost-user port must map it",
            hint="in its <memoryBacking>: <source type='memfd'/>, in effect from its next start;"
            " or --kind passthrough, which does without",
        )


def has_shared_memory(domain: Element) -> bool:
    """Can another process map the guest's memory: as a whole, or every NUMA cell of it?"""
    access = domain.attr("memoryBacking/access", "mode")
    cells = list(domain.all("cpu/numa/cell"))
    if cells:
        return all(cell.attrs.get("memAccess", access) == "shared" for cell in cells)
    backed = domain.attr("memoryBacking/source", "type") in ("memfd", "file")
    return access == "shared" and (backed or domain.find("memoryBacking/hugepages") is not None)


def _only_huge_pages(domain: Element) -> bool:
    """For all of the memory, and not for some NUMA cells."""
    pages = list(domain.all("memoryBacking/hugepages/page"))
    asked = domain.find("memoryBacking/hugepages") is not None
    return asked and (not pages or any("nodeset" not in page.attrs for page in pages))


def check_config(xml: str, plug: Plug, qemu_version: int) -> None:
    """A configuration, before the port is put into it. qemu_version: as of check_live()."""
    if plug.kind == "vhost-user":
        _check_tcg_msix(domain_element(xml)[1], plug, qemu_version)


def check_live(xml: str, plug: Plug, qemu_version: int) -> None:
    """A running domain, before the port is plugged into it. qemu_version: 7002022 for 7.2.22."""
    _, domain = domain_element(xml)
    if plug.kind == "vhost-user":
        check_memory(
            domain,
            "the running domain's memory",
            "attach with --config and restart the domain, or now with --kind passthrough",
        )
        _check_tcg_msix(domain, plug, qemu_version)
    has_vhost_user = any(nic.attrs.get("type") == "vhostuser" for nic in domain.all("devices/interface"))
    check_spent(is_spent(xml), vhost_user=plug.kind == "vhost-user" or has_vhost_user)
    if not _is_express(domain):
        return
    if not free_root_ports(xml):
        raise ConflictError(
            "the running domain has no spare pcie-root-port to plug a device into",
            hint="attach with --config and restart it, with another <controller type='pci'"
            " model='pcie-root-port'/>",
        )
    check_window(plug, "attach with --config and restart the domain")


def check_window(plug: Plug, instead: str) -> None:
    """Does the port's region fit what a running PCI Express guest has left? instead: what takes any."""
    slots = int(plug.settings.get("slots", 1024))
    need = 2 * plug.pairs * slots * int(plug.settings.get("buf_size", _BUF_SIZE))
    if plug.kind == "passthrough" and need >= LIVE_WINDOW:
        raise ConflictError(
            f"{plug.pairs} x {slots} slots do not fit the {LIVE_WINDOW >> 20} MiB that a running q35 guest"
            " has left for a device",
            hint=f"--slots {live_slots(plug.pairs)}, or {instead}",
        )


def live_slots(pairs: int) -> int:
    """Slots of a ring so that the region fits LIVE_WINDOW."""
    slots = 256
    while slots > 64 and 2 * pairs * slots * _BUF_SIZE >= LIVE_WINDOW:
        slots //= 2
    return slots


def is_express(xml: str) -> bool:
    """Is it a PCI Express machine, where only a root port of its own takes a device while the guest runs?"""
    return _is_express(domain_element(xml)[1])


def _check_tcg_msix(domain: Element, plug: Plug, qemu_version: int) -> None:
    """Refuse what would crash the VM as soon as the guest's driver starts.

    A device with several queue pairs is told its vectors by libvirt, whatever -global says.
    """
    if domain.attrs.get("type") != "qemu" or qemu_version >= _TCG_MSIX_WORKS:
        return
    if plug.pairs > 1:
        raise ConflictError(
            "this QEMU crashes under TCG when a guest uses virtio-net with MSI-X on vhost-user, which libvirt"
            " gives to a port with several queue pairs",
            hint="one queue pair; or use KVM, QEMU 10 or later, or --kind passthrough",
        )
    args = [arg.attrs.get("value") for arg in domain.all((f"{_QEMU} commandline", f"{_QEMU} arg"))]
    if _NO_VECTORS not in args:
        raise ConflictError(
            "this QEMU crashes under TCG when a guest uses virtio-net with MSI-X on vhost-user",
            hint=f"add <qemu:commandline> with the args -global {_NO_VECTORS} and restart the domain; or use"
            " KVM, QEMU 10 or later, or --kind passthrough",
        )


def is_spent(xml: str) -> bool:
    """Has the running domain's QEMU been left with what check_spent() is about?

    A device that was taken out without vpt has left it so, and nobody has marked the domain.
    """
    left = left_in(xml)
    unseen = any(
        plug.kind == "passthrough" and plug.name not in left and not alias_in(xml, plug.name)
        for plug in plugs_in(xml)
    )
    return is_marked_spent(xml) or (unseen and _is_emulated(xml))


def gone_late(xml: str) -> dict[str, list[str]]:
    """Of metadata.left_in(), ports whose device has gone since, and after which QEMU has to be mended."""
    return {port: were for port, were in left_in(xml).items() if were and not alias_in(xml, port)}


def leaves_handlers(xml: str, name: str) -> bool:
    """Is the port's device one that QEMU has to be mended after? See vpt.qemu.stale."""
    _, domain = domain_element(xml)
    shmems = domain.all("devices/shmem")
    return _is_emulated(xml) and any(shmem.attr("alias", "name") == alias_of(name) for shmem in shmems)


def _is_emulated(xml: str) -> bool:
    return domain_element(xml)[1].attrs.get("type") == "qemu"


def check_spent(spent: bool, *, vhost_user: bool) -> None:
    """Refuse a device in a QEMU that has let go of an ivshmem-doorbell without KVM and could not be mended.

    It polls numbers of descriptors that it has closed (vpt.qemu.stale). Should one of them become the kick
    of a virtqueue, the first kick calls into freed memory. vhost_user: the VM has such a port, or would.
    """
    if spent and vhost_user:
        raise ConflictError(
            "a passthrough port was taken out of this VM, and without KVM, QEMU could crash with another"
            " device beside a vhost-user port after that",
            hint="restart the VM",
        )


def warnings(xml: str) -> list[str]:
    """What works and will be regretted."""
    _, domain = domain_element(xml)
    vcpu = domain.find("vcpu")
    found = []
    if domain.attrs.get("type") == "qemu" and (vcpu is None or vcpu.text.strip() == "1"):
        found.append(
            "with one possible CPU, QEMU drops the guest's memory barriers under TCG and wake-ups get lost: "
            "<vcpu current='1'>2</vcpu>"
        )
    return found


def plug_warnings(plug: Plug) -> list[str]:
    """The same, of a port: QEMU 7.2 remembers nowhere how far packed virtqueues are when vptd is away."""
    if not plug.packed:
        return []
    return ["packed virtqueues do not survive a restart of vptd: detach and attach the port then"]


def _is_express(domain: Element) -> bool:
    return "q35" in (domain.attr("os/type", "machine") or "")


def free_root_ports(xml: str) -> list[int]:
    """Bus numbers behind root ports without device."""
    _, domain = domain_element(xml)
    devices = domain.find("devices")
    children = [] if devices is None else devices.children
    used = {
        address.number("bus")
        for device in children
        if (address := device.find("address")) is not None and address.attrs.get("type") == "pci"
    }
    ports = [child for child in children if child.attrs.get("model") == "pcie-root-port"]
    return [bus for port in ports if (bus := port.number("index")) not in used]


def validate(xml: str) -> None:
    """Against libvirt's own schema. UsageError: it does not conform. MissingError: no schema, or no lxml."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingError("lxml is not installed", hint="pip install 'vpt[libvirt]'") from None
    path = next((path for path in _SCHEMAS if os.access(path, os.R_OK)), None)
    if path is None:
        raise MissingError(
            "libvirt's schemas are not installed", hint="apt-get install libvirt0 libvirt-daemon"
        )
    schema = etree.RelaxNG(etree.parse(Path(path)))
    tree = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False))
    if not schema.validate(tree):
        first = schema.error_log[0]
        raise UsageError(
            f"libvirt's schema does not take the domain, line {first.line}: {first.message}",
            hint="virt-xml-validate FILE domain",
        )


def alias_in(xml: str, name: str) -> bool:
    """Does the domain have the port's device?"""
    _, domain = domain_element(xml)
    devices = domain.find("devices")
    children = [] if devices is None else devices.children
    return any(child.attr("alias", "name") == alias_of(name) for child in children)


def plugged_in(xml: str) -> list[Plug]:
    """The ports that the domain's metadata names and whose devices are there."""
    return [plug for plug in plugs_in(xml) if alias_in(xml, plug.name)]
