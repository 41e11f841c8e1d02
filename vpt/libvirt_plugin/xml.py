# SPDX-License-Identifier: BSD-2-Clause
"""A vpt port in a domain's XML: put in, taken out, looked up. Text in, text out, nothing else is touched.

A port leaves three marks in a domain:

* the device, `<interface type='vhostuser'>` or `<shmem>`, with the alias ua-vpt-NAME, which libvirt keeps and
  names in its events;
* what it was meant to be, in `<metadata>` under our namespace (see metadata.py), from which the hook can make
  the port again;
* what the device needed and the domain lacked (shared memory, a PCI bridge), which goes with the last port.

All else stays as it is, byte for byte, and taking out what was put in gives the text of before.
"""

from __future__ import annotations

import difflib
import os

from vpt.errors import ConflictError, ExistsError, NotFoundError, UsageError
from vpt.libvirt_plugin._document import Document, Element, domain_element, quote
from vpt.libvirt_plugin.metadata import PORT, Plug, made_by_us, note, plugs_in, ports_element

__all__ = [
    "add_port",
    "alias_of",
    "device_xml",
    "diff",
    "remove_port",
]

_ALIAS = "ua-vpt-"
_BRIDGE_ALIAS = "ua-vpt_bridge"  # of no port: theirs go on with "-"


def alias_of(name: str) -> str:
    """The device's alias in libvirt, and its id in QEMU.

    libvirt drops an alias that has other characters than letters, digits, _ and - without a word.
    """
    return _ALIAS + name.replace("_", "__").replace(".", "_-")


# ---- what a port looks like ----


def _interface_lines(plug: Plug) -> list[str]:
    if plug.mac is None:
        raise UsageError("a vhost-user port in a domain needs a MAC address", hint="give it one: --mac")
    more = f" queues='{plug.pairs}'" if plug.pairs > 1 else ""
    packed = " packed='on'" if plug.packed else ""
    return [
        "<interface type='vhostuser'>",
        f"  <mac address={quote(plug.mac)}/>",
        f"  <source type='unix' path={quote(plug.socket)} mode='client'>",
        "    <reconnect enabled='yes' timeout='1'/>",
        "  </source>",
        "  <model type='virtio'/>",
        f"  <driver{more} rx_queue_size='1024' tx_queue_size='1024'{packed}/>",
        f"  <alias name={quote(alias_of(plug.name))}/>",
        "</interface>",
    ]


def _shmem_lines(plug: Plug) -> list[str]:
    # No <reconnect>: libvirt has none here, and it would make QEMU abort. vpt's keeper holds the socket.
    return [
        f"<shmem name={quote(alias_of(plug.name))}>",
        "  <model type='ivshmem-doorbell'/>",
        f"  <server path={quote(plug.socket)}/>",
        f"  <msi vectors='{2 * plug.pairs + 1}' ioeventfd='on'/>",
        f"  <alias name={quote(alias_of(plug.name))}/>",
        "</shmem>",
    ]


_DEVICE = {"vhost-user": _interface_lines, "passthrough": _shmem_lines}
_DEVICE_ELEMENT = {"vhost-user": "devices/interface", "passthrough": "devices/shmem"}


def device_xml(plug: Plug, bus: int | None = None) -> str:
    """The device alone, as libvirt's attach takes it. bus: PCI bus for it, None: libvirt's choice."""
    *lines, end = _DEVICE[plug.kind](plug)
    if bus is not None:
        lines.append(f"  <address type='pci' domain='0x0000' bus='{bus:#04x}' slot='0x00' function='0x0'/>")
    return "\n".join([*lines, end])


# ---- put in ----


def add_port(xml: str, plug: Plug) -> str:
    """The domain with the port.

    ExistsError: it has one of that name. ConflictError: the domain says something else about its memory.
    """
    document, domain = domain_element(xml)
    if _device(domain, plug.name) or any(found.name == plug.name for found in plugs_in(xml)):
        raise ExistsError(
            f"the domain has a port {plug.name!r} already", hint="give the new one another name with --port"
        )
    devices = domain.find("devices")
    if devices is None:
        raise UsageError("the domain has no <devices>", hint="virsh dumpxml --inactive DOMAIN")
    made: list[tuple[str, str]] = []
    lines = _DEVICE[plug.kind](plug)
    if plug.kind == "passthrough":
        lines = [*_bridge_lines(domain), *lines]
    else:
        made += _share_memory(document, domain)
    if devices.closed:
        made.append(("devices", document.source(devices)))
    document.append(devices, *lines)
    note(document, domain, plug, made)
    return document.edited()


def _share_memory(document: Document, domain: Element) -> list[tuple[str, str]]:
    """Let others map the guest's memory. Returns what was made."""
    cells = {cell.attrs.get("memAccess") for cell in domain.all("cpu/numa/cell")}
    if "private" in cells:
        raise ConflictError(
            "the domain wants a NUMA cell's memory private, and a vhost-user port must map it",
            hint="in each <cell> of <numa>: memAccess='shared'; or use --kind passthrough, which does not",
        )
    shared = cells == {"shared"}
    backing = domain.find("memoryBacking")
    if backing is None:
        anchor = domain.find("currentMemory") or domain.find("memory") or domain.find("name")
        if anchor is None:
            raise UsageError("the domain has no <memory>", hint="virsh dumpxml --inactive DOMAIN")
        lines = ["  <source type='memfd'/>"] + ([] if shared else ["  <access mode='shared'/>"])
        document.insert_after(anchor, "<memoryBacking>", *lines, "</memoryBacking>")
        return [("memoryBacking", "")]
    access, source = backing.attr("access", "mode"), backing.attr("source", "type")
    if (access == "private" and not shared) or source == "anonymous":
        raise ConflictError(
            f"the domain wants its memory {access or source}, and a vhost-user port must map it",
            hint="in its <memoryBacking>: <source type='memfd'/> <access mode='shared'/>;"
            " or use --kind passthrough, which does not",
        )
    lines, made = [], []
    if source is None and backing.find("hugepages") is None:
        lines.append("<source type='memfd'/>")
        made.append(("memoryBacking/source", ""))
    if access is None and not shared:
        lines.append("<access mode='shared'/>")
        made.append(("memoryBacking/access", ""))
    if backing.closed:
        made = [("memoryBacking", document.source(backing))]
    if lines:
        document.append(backing, *lines)
    return made


def _bridge_lines(domain: Element) -> list[str]:
    """ivshmem is conventional PCI: on a PCI Express machine it needs a bridge, if there is none yet."""
    machine = domain.attr("os/type", "machine") or ""
    controllers = [c for c in domain.all("devices/controller") if c.attrs.get("type") == "pci"]
    if "q35" not in machine or any(c.attrs.get("model") == "pcie-to-pci-bridge" for c in controllers):
        return []
    index = 1 + max((c.number("index") for c in controllers), default=0)
    return [
        f"<controller type='pci' index='{index}' model='pcie-to-pci-bridge'>",
        f"  <alias name='{_BRIDGE_ALIAS}'/>",
        "</controller>",
    ]


# ---- take out ----


def remove_port(xml: str, name: str) -> str:
    """The domain without the port. NotFoundError: it has none of that name."""
    document, domain = domain_element(xml)
    device = _device(domain, name)
    ours = ports_element(domain)
    noted = list(ours.all((PORT,))) if ours is not None else []
    note = next((element for element in noted if element.attrs.get("name") == name), None)
    if device is None and note is None:
        names = ", ".join(element.attrs.get("name", "?") for element in noted) or "none"
        raise NotFoundError(f"the domain has no port {name!r}", hint=f"its vpt ports: {names}")
    gone: list[Element] = []
    if device is not None:
        gone.append(device)
    others = [element for element in noted if element is not note]
    if not any(element.attrs.get("kind") == "passthrough" for element in others):
        gone += _own_bridge(domain)
    if note is not None and ours is not None:
        if others:
            gone.append(note)
        else:
            gone = _undo(document, domain, ours, gone)
    for element in gone:
        document.remove(element)
    return document.edited()


def _device(domain: Element, name: str) -> Element | None:
    for path in _DEVICE_ELEMENT.values():
        for element in domain.all(path):
            if element.attr("alias", "name") == alias_of(name):
                return element
    return None


def _own_bridge(domain: Element) -> list[Element]:
    """The bridge that we brought, unless something else has been plugged into it since."""
    for bridge in domain.all("devices/controller"):
        if bridge.attr("alias", "name") != _BRIDGE_ALIAS:
            continue
        bus = bridge.number("index")
        devices = bridge.parent.children if bridge.parent is not None else []
        users = [
            device
            for device in devices
            if (address := device.find("address")) is not None
            and address.number("bus") == bus
            and not (device.attr("alias", "name") or "").startswith(_ALIAS)
        ]
        return [] if users else [bridge]
    return []


def _undo(document: Document, domain: Element, ours: Element, gone: list[Element]) -> list[Element]:
    """What goes with the last port, given what goes anyway; what was written <x/> is put back so."""
    made = made_by_us(ours)
    if _memory_is_wanted(domain, gone):
        made = {path: was for path, was in made.items() if not path.startswith("memoryBacking")}
    out = [*gone, ours]
    for path in ("memoryBacking/source", "memoryBacking/access"):
        if (path in made or "memoryBacking" in made) and (child := domain.find(path)) is not None:
            out.append(child)
    for path in ("memoryBacking", "devices", "metadata"):
        element = domain.find(path)
        if path not in made or element is None:
            continue
        inside = [child for child in element.children if child in out]
        if not document.is_bare(element, *inside):
            # Somebody else has put something in since.
            continue
        out = [child for child in out if child not in inside]
        if made[path]:
            document.replace(element, made[path])
        else:
            out.append(element)
    return out


def _memory_is_wanted(domain: Element, gone: list[Element]) -> bool:
    """Does another device need the shared memory that we asked for?"""
    for device in domain.children:
        if device.name != "devices":
            continue
        for child in device.children:
            other = child.attrs.get("type") == "vhostuser" or child.attr("driver", "type") == "virtiofs"
            if other and child not in gone:
                return True
    return False


# ---- looked at ----


def diff(before: str, after: str, name: str) -> str:
    """As `diff -u` would print it, empty if there is no difference."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"{name}.xml",
        f"{name}.xml with vpt" if len(after) >= len(before) else f"{name}.xml without",
    )
    return "".join(line if line.endswith("\n") else f"{line}{os.linesep}" for line in lines)
