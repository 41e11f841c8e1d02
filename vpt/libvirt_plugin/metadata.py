# SPDX-License-Identifier: BSD-2-Clause
"""What a domain's `<metadata>` says, under our namespace, of the ports that it has.

Each port as it was meant to be, and what was made for the ports and goes with the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from vpt.errors import UsageError
from vpt.libvirt_plugin._document import Document, Element, domain_element, quote

__all__ = [
    "NAMESPACE",
    "PORT",
    "PREFIX",
    "Kind",
    "Plug",
    "is_marked_spent",
    "left_in",
    "made_by_us",
    "made_in",
    "metadata_xml",
    "note",
    "plugs_in",
    "ports_element",
]

NAMESPACE = "urn:vpt:domain:1"
PREFIX = "vpt"
# Names of our elements, as Element.name has them.
_PORTS, PORT, _MADE, _LEFT = (f"{NAMESPACE} {name}" for name in ("ports", "port", "made", "left"))

Kind = Literal["vhost-user", "passthrough"]

# Of what `port.add` takes, the numbers; all other settings are text.
_NUMBERS = frozenset({"pairs", "mtu", "slots", "buf_size"})


@dataclass(frozen=True, slots=True)
class Plug:
    """A port as a domain's configuration has it.

    settings: what `port.add` was given beside name, switch, kind and socket.
    runtime_dir: of the vptd that has the port.
    packed: vhost-user: offer the guest packed virtqueues.
    """

    name: str
    switch: str
    kind: Kind
    socket: str
    runtime_dir: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    packed: bool = False

    @property
    def pairs(self) -> int:
        return int(self.settings.get("pairs", 1))

    @property
    def mac(self) -> str | None:
        return self.settings.get("mac")


# ---- read ----


def ports_element(domain: Element) -> Element | None:
    """Ours in the domain's metadata."""
    return domain.find(("metadata", _PORTS))


def is_marked_spent(xml: str) -> bool:
    """Has a passthrough port been taken out of this running domain by us, without KVM?"""
    ports = ports_element(domain_element(xml)[1])
    return ports is not None and ports.attrs.get("spent") == "yes"


def left_in(xml: str) -> dict[str, list[str]]:
    """What vpt.qemu.stale.eventfds() found when ports were to be unplugged from this running domain, by port.

    Nothing: the device has gone, and QEMU was seen to.
    """
    elements = domain_element(xml)[1].all(("metadata", _PORTS, _LEFT))
    return {each.attrs.get("port", ""): each.attrs.get("eventfds", "").split() for each in elements}


def plugs_in(xml: str) -> list[Plug]:
    """The ports that a domain's metadata names."""
    _, domain = domain_element(xml)
    return [_plug(element) for element in domain.all(("metadata", _PORTS, PORT))]


def _plug(element: Element) -> Plug:
    attrs = {key.replace("-", "_"): value for key, value in element.attrs.items()}
    try:
        name, switch, kind, socket, runtime_dir = (
            attrs.pop(key) for key in ("name", "switch", "kind", "socket", "runtime_dir")
        )
        packed = attrs.pop("packed", "no") == "yes"
        settings = {key: int(value) if key in _NUMBERS else value for key, value in attrs.items()}
    except KeyError as error:
        raise _damaged(f"a port without {str(error.args[0]).replace('_', '-')}") from None
    except ValueError as error:
        raise _damaged(str(error)) from None
    if kind not in get_args(Kind):
        raise _damaged(f"it names a kind of port that no domain has, {kind!r}")
    return Plug(name, switch, kind, socket, runtime_dir, settings, packed)  # type: ignore[arg-type]


def _damaged(what: str) -> UsageError:
    return UsageError(
        f"the domain's vpt metadata is damaged: {what}", hint="mend <vpt:ports> in its XML: virsh edit DOMAIN"
    )


def made_in(xml: str) -> dict[str, str]:
    """The same, of a domain."""
    ours = ports_element(domain_element(xml)[1])
    return {} if ours is None else made_by_us(ours)


def made_by_us(ours: Element) -> dict[str, str]:
    """What was made for the ports, by path, and what was written there before; see note()."""
    return {element.attrs.get("element", ""): element.attrs.get("was", "") for element in ours.all((_MADE,))}


# ---- written ----


def metadata_xml(
    plugs: list[Plug],
    *,
    made: Mapping[str, str] = MappingProxyType({}),
    left: Mapping[str, list[str]] = MappingProxyType({}),
    spent: bool = False,
) -> str | None:
    """Our metadata element for these ports, as libvirt's set-metadata takes it: without the namespace.

    made: what goes with the last of them. left: as of left_in().
    spent: the running QEMU must not get another vhost-user device; see rules.check_spent().
    """
    if not plugs and not left and not spent:
        return None
    lines = [_port_line(plug, "") for plug in plugs]
    lines += [_made_line(*item, "") for item in made.items() if plugs]
    lines += [_left_line(*item) for item in left.items()]
    mark = " spent='yes'" if spent else ""
    return f"<ports{mark}>{''.join(lines)}</ports>"


def note(document: Document, domain: Element, plug: Plug, made: list[tuple[str, str]]) -> None:
    """Keep the intent in <metadata>, and what removal must undo."""
    metadata = domain.find("metadata")
    ours = None if metadata is None else metadata.find((_PORTS,))
    if ours is not None:
        prefix = _prefix(document, ours)
        document.append(ours, _port_line(plug, prefix), *(_made_line(*item, prefix) for item in made))
        return
    if metadata is None:
        made = [*made, ("metadata", "")]
    elif metadata.closed:
        made = [*made, ("metadata", document.source(metadata))]
    prefix = f"{PREFIX}:"
    lines = [
        f"<{PREFIX}:ports xmlns:{PREFIX}={quote(NAMESPACE)}>",
        f"  {_port_line(plug, prefix)}",
        *(f"  {_made_line(*item, prefix)}" for item in made),
        f"</{PREFIX}:ports>",
    ]
    if metadata is not None:
        document.append(metadata, *lines)
        return
    anchor = domain.find("uuid") or domain.find("name")
    if anchor is None:
        raise UsageError("the domain has no <name>", hint="virsh dumpxml --inactive DOMAIN")
    document.insert_after(anchor, "<metadata>", *(f"  {line}" for line in lines), "</metadata>")


def _port_line(plug: Plug, prefix: str) -> str:
    fixed = {"name": plug.name, "switch": plug.switch, "kind": plug.kind, "socket": plug.socket}
    device = {"packed": "yes"} if plug.packed else {}
    return f"<{prefix}port{_attrs({**fixed, 'runtime_dir': plug.runtime_dir, **device, **plug.settings})}/>"


def _made_line(element: str, was: str, prefix: str) -> str:
    return f"<{prefix}made element={quote(element)}{f' was={quote(was)}' if was else ''}/>"


def _left_line(port: str, eventfds: list[str]) -> str:
    return f"<left port={quote(port)} eventfds={quote(' '.join(eventfds))}/>"


def _attrs(pairs: Mapping[str, Any]) -> str:
    return "".join(f" {key.replace('_', '-')}={quote(str(value))}" for key, value in pairs.items())


def _prefix(document: Document, element: Element) -> str:
    """The element's prefix in the text, with its colon; "" if its namespace is the default one."""
    tag = document.source(element)[1:].split(None, 1)[0]
    return f"{tag.partition(':')[0]}:" if ":" in tag else ""
