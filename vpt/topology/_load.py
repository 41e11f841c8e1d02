# SPDX-License-Identifier: BSD-2-Clause
"""From a topology file to what it asks for: templates expanded, entries, references and clashes checked.

The entries are vptd's own SwitchConfig and PortConfig, so a key that a port has is a key that the file has.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from vpt.daemon.config_models import sentence
from vpt.daemon.models import SOCKET_KINDS, PortConfig, SwitchConfig
from vpt.daemon.sockets import unix_path
from vpt.errors import UsageError
from vpt.provision.config import VmConfig
from vpt.topology._check_vms import VmChecks
from vpt.topology._plan import Wanted, claims
from vpt.topology._yaml import Document, Path, Place, Problems, parse

__all__ = ["MAX_COUNT", "SCHEMA", "TEMPLATE_KEYS", "load"]

SCHEMA = "vpt.topology/v1"
MAX_COUNT = 1024
TEMPLATE_KEYS = ("count", "first")
# Of switches, and of ports: a short file can ask for millions.
_MAX_ENTRIES = 4096
_MAX_FIRST = 1_000_000
_TOP_KEYS = ("schema", "switches", "ports", "vms")
_PLACEHOLDER = re.compile(r"\{n(?::(0[1-9])?([dx]))?\}", re.ASCII)
_SEE = "what is allowed: vpt apply --schema"

# What people look for under another name.
_ELSEWHERE = {
    "domains": "the key is vms; an existing libvirt domain: - domain: NAME",
    "memory": "the key is memory_mib, a number of MiB",
    "vlans": "the key is vlan: {access: 10} or {trunk: [10, 20-30], native: 1}",
    "trunk": "it belongs into vlan: {trunk: [10, 20-30], native: 1}",
    "access": "it belongs into vlan: {access: 10}",
    "tag": "write: vlan: {access: 10}",
    "rate_limit": "the key is rate: {tx: {bits_per_s: 100M}}",
    "bandwidth": "the key is rate: {tx: {bits_per_s: 100M}}",
    "anti_spoof": "the key is anti_spoofing",
    "queues": "the key is pairs",
    "type": "the key is kind",
    "mac_age": "the key is mac_age_s",
}

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One switch or port as the file has it, after expansion. path: of what it was expanded from."""

    path: Path
    data: dict[str, Any]


def load(text: bytes, source: str, ports_dir: FilePath, base: FilePath | None = None) -> Wanted:
    """What the topology in `text` asks for.

    source: its name in messages; ports_dir: where vptd puts the sockets of ports that choose none, because
    their names may make a path too long; base: the folder that paths of machines' files begin at (none: the
    working one). TopologyError names line and column of all that is wrong.
    """
    return _Loader(parse(text, source), source, ports_dir, base or FilePath.cwd()).load()


class _Loader:
    def __init__(self, document: Document, source: str, ports_dir: FilePath, base: FilePath) -> None:
        self._document = document
        self._problems = Problems(source)
        self._source = source
        self._ports_dir = ports_dir
        self._base = base

    def load(self) -> Wanted:
        data = self._document.data
        if not isinstance(data, dict):
            self._add((), "a topology is a mapping", "begin with: switches:")
            raise self._problems.error()
        self._check_top(data)
        switches = list(self._models("switches", SwitchConfig))
        ports = list(self._models("ports", PortConfig))
        vms = [(entry, vm.located(self._base)) for entry, vm in self._models("vms", VmConfig)]
        # What follows would blame good entries for the bad ones that are missing.
        self._problems.check()
        self._check_names(switches, ports)
        self._check_references(switches, ports)
        self._check_claims(ports)
        self._check_sockets(ports)
        check = VmChecks(self._document.place, self._problems, {port.name: port for _, port in ports})
        for entry, vm in vms:
            check.one(entry.path, vm)
        self._problems.check()
        named = [(e, switch.name) for e, switch in switches] + [(e, port.name) for e, port in ports]
        places = {name: self._say(self._place_of(e, "name")) for e, name in named}
        places |= {f"vm {vm.name}": self._say(self._place_of(e, "name")) for e, vm in vms}
        return Wanted(
            tuple(m for _, m in switches),
            tuple(m for _, m in ports),
            tuple(m for _, m in vms),
            places=places,
        )

    def _add(self, path: Path, what: str, hint: str, *, key: bool = False) -> None:
        self._problems.add(self._document.place(path, key=key), what, hint)

    # ---- the top, and templates ----

    def _check_top(self, data: dict[str, Any]) -> None:
        for key in data:
            if key not in _TOP_KEYS:
                self._unknown((key,), key, _TOP_KEYS)
        schema = data.get("schema", SCHEMA)
        if schema != SCHEMA:
            self._add(("schema",), f"unknown schema {schema!r}", f"write: schema: {SCHEMA}")

    def _unknown(self, path: Path, key: str, known: tuple[str, ...]) -> None:
        close = difflib.get_close_matches(key, known, n=1)
        hint = _ELSEWHERE.get(key) or (
            f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        )
        self._add(path, f"unknown key {key!r}", hint, key=True)

    def _entries(self, section: str) -> Iterator[_Entry]:
        entries = self._document.data.get(section)
        if entries is None:
            entries = []
        if not isinstance(entries, list):
            self._add((section,), f"{section} must be a list", "begin each entry with: - name: NAME")
            return
        for i, entry in enumerate(entries):
            path = (section, i)
            if isinstance(entry, dict):
                yield from self._expand(path, entry)
            else:
                self._add(path, "an entry must be a mapping", "write: - name: NAME")

    def _expand(self, path: Path, entry: dict[str, Any]) -> Iterator[_Entry]:
        data = {key: value for key, value in entry.items() if key not in TEMPLATE_KEYS}
        if "count" not in entry:
            if "first" in entry:
                self._add((*path, "first"), "first without count", "add: count: NUMBER", key=True)
            if "{n" in str(data.get("name")):
                self._add((*path, "name"), "{n} without count", "add: count: NUMBER")
            else:
                yield _Entry(path, data)
            return
        count, first = entry["count"], entry.get("first", 1)
        good = self._number((*path, "count"), count, 1, MAX_COUNT)
        good = self._number((*path, "first"), first, 0, _MAX_FIRST) and good
        if good and not self._has_placeholder(data.get("name")):
            self._add((*path, "name"), "with count, the name must contain {n}", "for example: name: vm{n}")
            good = False
        if good and self._placeholders_known(path, data):
            for n in range(first, first + count):
                yield _Entry(path, _fill(data, n))

    def _number(self, path: Path, value: object, least: int, most: int) -> bool:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return True
        self._add(path, f"{path[-1]} must be a number from {least} to {most}", f"it is {value!r}")
        return False

    @staticmethod
    def _has_placeholder(value: object) -> bool:
        return isinstance(value, str) and _PLACEHOLDER.search(value) is not None

    def _placeholders_known(self, path: Path, value: Any) -> bool:
        if isinstance(value, dict):
            return all(self._placeholders_known((*path, key), item) for key, item in value.items())
        if isinstance(value, list):
            return all(self._placeholders_known((*path, i), item) for i, item in enumerate(value))
        if isinstance(value, str) and re.search(r"[{}]", _PLACEHOLDER.sub("", value)):
            self._add(path, f"unknown placeholder in {value!r}", "there are {n}, {n:x}, {n:02x}, {n:03d}")
            return False
        return True

    # ---- entries ----

    def _models(self, section: str, model: type[_Model]) -> Iterator[tuple[_Entry, _Model]]:
        for made, entry in enumerate(self._entries(section)):
            if made == _MAX_ENTRIES:
                self._add(entry.path, f"more than {_MAX_ENTRIES} {section}", "give it a smaller count")
                return
            try:
                yield entry, model.model_validate(entry.data)
            except ValidationError as error:
                for item in error.errors(include_url=False):
                    self._invalid(entry.path, model, item)

    def _invalid(self, entry: Path, model: type[BaseModel], item: Any) -> None:
        path = (*entry, *item["loc"])
        key = str(path[-1])
        if item["type"] == "extra_forbidden":
            self._unknown(path, key, _known_keys(model, item["loc"][:-1]))
        elif item["type"] == "missing":
            self._add(path[:-1], f"the key {key!r} is missing", f"add: {key}: ...; {_SEE}")
        else:
            where = f"{'.'.join(str(part) for part in item['loc'])}: " if item["loc"] else ""
            self._add(path, where + sentence(item), _hint_of(key, item))

    # ---- all entries together ----

    def _place_of(self, entry: _Entry, key: str) -> Place:
        return self._document.place((*entry.path, key))

    def _say(self, place: Place) -> str:
        return f"{self._source}:{place.line}:{place.column}"

    def _check_names(
        self, switches: list[tuple[_Entry, SwitchConfig]], ports: list[tuple[_Entry, PortConfig]]
    ) -> None:
        first: dict[str, Place] = {}
        named = [(e, switch.name) for e, switch in switches] + [(e, port.name) for e, port in ports]
        for entry, name in named:
            place = self._place_of(entry, "name")
            if (taken := first.setdefault(name, place)) is not place:
                self._problems.add(
                    place,
                    f"there are two of the name {name!r}",
                    f"the other is in line {taken.line}; switches and ports share one space of names",
                )

    def _check_references(
        self, switches: list[tuple[_Entry, SwitchConfig]], ports: list[tuple[_Entry, PortConfig]]
    ) -> None:
        names = [model.name for _, model in switches]
        for entry, port in ports:
            if port.switch not in names:
                close = difflib.get_close_matches(port.switch, names, n=1)
                hint = (
                    f"did you mean {close[0]}?" if close else f"add it under switches: - name: {port.switch}"
                )
                what = f"port {port.name!r} is on a switch that the file does not have: {port.switch!r}"
                self._problems.add(self._place_of(entry, "switch"), what, hint)

    def _check_claims(self, ports: list[tuple[_Entry, PortConfig]]) -> None:
        """What only one port can have: its socket's path, its interface's name, its address on a switch."""
        owner: dict[tuple[str, ...], str] = {}
        for entry, port in ports:
            more: set[tuple[str, ...]] = {("mac", port.switch, port.mac)} if port.mac else set()
            if port.kind in SOCKET_KINDS and port.socket is None:
                more.add(("socket", self._socket_of(port)))
            for claim in sorted(claims(port) | more):
                if (other := owner.setdefault(claim, port.name)) != port.name:
                    self._problems.add(
                        self._place_of(entry, claim[0]),
                        f"port {port.name!r} has the {claim[0]} of port {other!r}: {claim[-1]}",
                        "each port needs its own; with count, use {n} in it",
                    )

    def _check_sockets(self, ports: list[tuple[_Entry, PortConfig]]) -> None:
        for entry, port in ports:
            if port.kind == "tap" and len(port.ifname or port.name) > 15:
                self._problems.add(
                    self._place_of(entry, "name"),
                    f"{port.name!r} is too long for the name of an interface (15 characters)",
                    "give a shorter one with ifname",
                )
            if port.kind not in SOCKET_KINDS:
                continue
            try:
                unix_path(self._socket_of(port))
            except UsageError as error:
                place = self._place_of(entry, "socket" if port.socket else "name")
                self._problems.add(place, error.message, "choose a shorter socket, name or --runtime-dir")

    def _socket_of(self, port: PortConfig) -> str:
        return port.socket or os.path.join(self._ports_dir, f"{port.name}.sock")


def _known_keys(model: type[BaseModel], path: Path) -> tuple[str, ...]:
    """The keys that the mapping at `path` of an entry has."""
    for part in (part for part in path if isinstance(part, str)):
        annotation = model.model_fields[part].annotation
        model = next(
            choice
            for choice in (annotation, *get_args(annotation))  # a model, one or none, or a list of them
            if isinstance(choice, type) and issubclass(choice, BaseModel)
        )
    return (*model.model_fields, *(() if path else TEMPLATE_KEYS))


def _fill(value: Any, n: int) -> Any:
    """`value` with n in place of each placeholder. Not str.format, which can reach into objects."""
    if isinstance(value, dict):
        return {key: _fill(item, n) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, n) for item in value]
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: format(n, f"{found[1] or ''}{found[2] or 'd'}"), value)
    return value


def _hint_of(key: str, item: Any) -> str:
    given = item.get("input")
    if key == "kind" and given is None:
        return 'a plain null means nothing in YAML; for the port kind write: kind: "null"'
    if key == "vlan" and isinstance(given, int):
        return f"write: vlan: {{access: {given}}}"
    if key == "policy":
        return f"write: policy: {{kind: {given}}}" if isinstance(given, str) else _SEE
    if item["type"] == "string_type":
        return f'it is {given!r}; quote it: {key}: "{given}"'
    if item["loc"] and isinstance(given, str | int | float) and str(given) not in item["msg"]:
        return f"it is {given!r}; {_SEE}"
    return _SEE
