# SPDX-License-Identifier: BSD-2-Clause
"""plan(): what has to be done to switches and ports, so that what runs becomes what is wanted. Pure.

Virtual machines come in between, see _vms.py.

The order is chosen so that what may fail comes before what disturbs a guest, and what nobody can give back (a
port that a guest is plugged into) goes last:

    1  add switches and ports that need nothing to be out of their way
    2  change ports while packets flow
    3  delete what is to be replaced or is in the way; add what waited for that
    4  delete what is to go
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vpt.daemon.models import RING_KINDS, SOCKET_KINDS, PortConfig, SwitchConfig
from vpt.provision.config import VmConfig

__all__ = ["Actual", "Plan", "Step", "Wanted", "claims", "plan"]

Action = Literal[
    "add-switch", "add-port", "set-switch", "set-port", "del-port", "del-switch",
    "add-vm", "start-vm", "set-vm", "stop-vm", "del-vm",
]  # fmt: skip
Needs = Literal["replace", "prune"]

# What vptd changes while packets flow; all else takes a new port, or a new switch.
_LIVE = frozenset({"policy", "link", "vlan", "isolated", "anti_spoofing", "rate", "storm"})
_LIVE_SWITCH = frozenset({"mac_age_s", "isolation"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be there.

    owners: by port, the VM that it was made for; a topology names none, what was there before may
    places: by name, where in which file that is said
    """

    switches: tuple[SwitchConfig, ...] = ()
    ports: tuple[PortConfig, ...] = ()
    vms: tuple[VmConfig, ...] = ()
    owners: dict[str, str] = field(default_factory=dict, kw_only=True)
    places: dict[str, str] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    def names(self) -> set[str]:
        """Of switches and ports; machines have names of their own."""
        return {switch.name for switch in self.switches} | {port.name for port in self.ports}


@dataclass(frozen=True, slots=True)
class Actual(Wanted):
    """What is there.

    failed: ports that vptd knows and could not set up when it came back, and why
    stopped: machines that were made and do not run
    unknown: what could not be found out of machines, in words
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of one request to vptd, or a thing done with a machine.

    needs: the option without which it is not done, because a guest would notice
    """

    action: Action
    name: str
    params: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    needs: Needs | None = None

    def __str__(self) -> str:
        verb, _, what = self.action.partition("-")
        verb = {"set": "change", "del": "delete"}.get(verb, verb)
        return f"{verb} {what} {self.name}" + (f": {self.why}" if self.why else "")

    @property
    def is_vm(self) -> bool:
        return self.action.endswith("-vm")


@dataclass(frozen=True, slots=True)
class Plan:
    """steps in order; left_alone: what runs, is not in the file and is not touched."""

    steps: tuple[Step, ...]
    left_alone: tuple[str, ...] = ()

    def needing(self, option: Needs) -> list[str]:
        """Names of what is only touched with that option."""
        return list(dict.fromkeys(step.name for step in self.steps if step.needs == option))


def claims(port: PortConfig) -> set[tuple[str, str]]:
    """What only one port of a host can have. Paths that vptd chooses follow from the name: not here."""
    if port.kind == "tap":
        return {("ifname", port.ifname or port.name)}
    return {("socket", port.socket)} if port.kind in SOCKET_KINDS and port.socket else set()


def plan(wanted: Wanted, actual: Actual, *, prune: bool = False) -> Plan:
    """The steps from `actual` to `wanted`; none if all is as wanted.

    prune: delete what `wanted` does not have. Otherwise that stays, except where something wanted can't be
    there beside it (its name, its socket); such steps say that they need prune, as replacements say replace.
    """
    return _Planner(wanted, actual, prune).plan()


class _Planner:
    def __init__(self, wanted: Wanted, actual: Actual, prune: bool) -> None:
        self._wanted = wanted
        self._actual = actual
        self._prune = prune
        # A port that is replaced is still the port of the VM that it was made for.
        self._owners = {**actual.owners, **wanted.owners}
        self._have_switches = {switch.name: switch for switch in actual.switches}
        self._have_ports = {port.name: port for port in actual.ports}
        self._want_switches = {switch.name: switch for switch in wanted.switches}
        self._want_ports = {port.name: port for port in wanted.ports}
        self._gone = self._to_go()
        # What stays though the file does not have it still has to come back where its switch is replaced.
        kept = [p for p in actual.ports if p.name not in self._want_ports and p.name not in self._gone]
        self._target = [*wanted.ports, *kept]
        self._replaced_switches = {
            switch.name: changed
            for switch in wanted.switches
            if switch.name in self._have_switches
            and (changed := _differences(self._have_switches[switch.name], switch, without=_LIVE_SWITCH))
        }
        self._replaced = dict(self._to_replace())

    def _to_go(self) -> dict[str, Needs | None]:
        """What is to be deleted for good, and which option that needs beyond those given."""
        claimed = {claim for port in self._wanted.ports for claim in claims(port)}
        gone: dict[str, Needs | None] = {}
        for switch in self._actual.switches:
            if switch.name not in self._want_switches and (self._prune or switch.name in self._want_ports):
                gone[switch.name] = None if self._prune else "prune"
        for port in self._actual.ports:
            if port.name in self._want_ports:
                continue
            in_the_way = (
                port.name in self._want_switches
                or port.switch in gone
                or not claimed.isdisjoint(claims(port))
            )
            if self._prune or in_the_way:
                gone[port.name] = None if self._prune else "prune"
        return gone

    def _to_replace(self) -> Iterable[tuple[str, tuple[str, Needs | None]]]:
        """Ports that have to be deleted and added again: why, and which option that needs."""
        for port in self._target:
            have = self._have_ports.get(port.name)
            if have is None:
                continue
            old, new = self._on_its_switch(have), self._on_its_switch(port)
            changed = _differences(old, new, without=_live(port))
            if port.name in self._actual.failed and port.name in self._want_ports:
                # Nobody can be plugged into it.
                yield port.name, (f"it failed: {self._actual.failed[port.name]}", None)
            elif port.switch in self._replaced_switches:
                yield port.name, (f"switch {port.switch} is replaced", "replace")
            elif changed:
                yield port.name, (changed, "replace")

    def _on_its_switch(self, port: PortConfig) -> PortConfig:
        """With the MTU that it has, wherever it says so. Switches that stay keep theirs."""
        switch = self._want_switches.get(port.switch) or self._have_switches.get(port.switch)
        mtu = switch.mtu if port.mtu is None and switch else port.mtu
        return port.model_copy(update={"mtu": mtu})

    def plan(self) -> Plan:
        have = self._actual.names()
        early_switches = [s for s in self._wanted.switches if s.name not in have]
        late_switches = [
            s
            for s in self._wanted.switches
            if s.name in have and (s.name not in self._have_switches or s.name in self._replaced_switches)
        ]
        late_names = {s.name for s in late_switches}
        taken = {claim for port in self._actual.ports for claim in claims(port)}
        early_ports: list[PortConfig] = []
        late_ports: list[PortConfig] = []
        for p in self._wanted.ports:
            if p.name in self._have_ports:
                continue
            free = p.name not in have and p.switch not in late_names and taken.isdisjoint(claims(p))
            (early_ports if free else late_ports).append(p)
        replaced = [p for p in self._target if p.name in self._replaced]
        in_the_way = self._in_the_way(late_ports, late_switches)
        steps = [
            *(_add_switch(s) for s in early_switches),
            *(self._add_port(p) for p in early_ports),
            *self._set_switches(),
            *self._set_ports(),
            *(Step("del-port", p.name, {}, *self._replaced[p.name]) for p in replaced),
            *self._deletions(in_the_way),
            *(Step("del-switch", n, {}, why, "replace") for n, why in self._replaced_switches.items()),
            *(_add_switch(s, self._needs_replace(s)) for s in late_switches),
            *(self._add_port(p, self._replaced[p.name][1]) for p in replaced),
            *(self._add_port(p) for p in late_ports),
            *self._deletions(set(self._gone) - in_the_way),
        ]
        alone = have - self._wanted.names() - set(self._gone) - set(self._replaced)
        return Plan(tuple(steps), tuple(sorted(alone)))

    def _add_port(self, port: PortConfig, needs: Needs | None = None) -> Step:
        params = port.model_dump(exclude={"name"}, exclude_defaults=True)
        if port.name in self._owners:
            params["owner"] = self._owners[port.name]
        return Step("add-port", port.name, params, f"{port.kind} on {port.switch}", needs)

    def _needs_replace(self, switch: SwitchConfig) -> Needs | None:
        return "replace" if switch.name in self._replaced_switches else None

    def _in_the_way(self, ports: list[PortConfig], switches: list[SwitchConfig]) -> set[str]:
        """Which of what goes for good has to go before these, and before what is replaced, can be added."""
        adding = [*ports, *(p for p in self._target if p.name in self._replaced)]
        names = {port.name for port in adding} | {switch.name for switch in switches}
        claimed = {claim for port in adding for claim in claims(port)}
        way = {name for name in self._gone if name in names}
        # A switch has to be empty before it can be deleted.
        leaving = (way & set(self._have_switches)) | set(self._replaced_switches)
        way |= {
            p.name
            for p in self._actual.ports
            if p.name in self._gone and (p.switch in leaving or not claimed.isdisjoint(claims(p)))
        }
        return way

    def _set_switches(self) -> Iterable[Step]:
        for switch in self._wanted.switches:
            have = self._have_switches.get(switch.name)
            if have is None or have == switch or switch.name in self._replaced_switches:
                continue
            params = switch.model_dump(include=set(_LIVE_SWITCH))
            yield Step("set-switch", switch.name, params, _differences(have, switch))

    def _set_ports(self) -> Iterable[Step]:
        for port in self._wanted.ports:
            have = self._have_ports.get(port.name)
            if have is None or port.name in self._replaced:
                continue
            old, new = self._on_its_switch(have), self._on_its_switch(port)
            params: dict[str, Any] = {}
            if port.policy != have.policy:
                policy = port.policy
                params = {"policy": policy.kind, "spin_us": policy.spin_us, "sleep_us": policy.sleep_us}
            for key in sorted(_live(port) - {"policy"}):
                if getattr(new, key) != getattr(old, key):
                    params |= port.model_dump(include={key})
            if params:
                why = _differences(old, new)
                yield Step("set-port", port.name, params, why)

    def _deletions(self, names: set[str]) -> Iterable[Step]:
        why = "not in the topology" if self._prune else "in the way, and not in the topology"
        for port in self._actual.ports:
            if port.name in names:
                yield Step("del-port", port.name, {}, why, self._gone[port.name])
        for switch in self._actual.switches:
            if switch.name in names:
                yield Step("del-switch", switch.name, {}, why, self._gone[switch.name])


def _live(port: PortConfig) -> frozenset[str]:
    """A region, which the peer has mapped, says which MTU its port has."""
    return _LIVE if port.kind in RING_KINDS else _LIVE | {"mtu"}


def _add_switch(switch: SwitchConfig, needs: Needs | None = None) -> Step:
    return Step(
        "add-switch", switch.name, switch.model_dump(exclude={"name"}, exclude_defaults=True), "", needs
    )


def _differences(have: Any, want: Any, without: frozenset[str] = frozenset()) -> str:
    """In words: "pairs 1 -> 2, mac none -> 52:54:00:00:00:01"."""
    old, new = _flat(have.model_dump(exclude=set(without))), _flat(want.model_dump(exclude=set(without)))
    keys = dict.fromkeys((*old, *new))
    changed = [key for key in keys if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_word(old.get(key))} -> {_word(new.get(key))}" for key in changed)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "policy":
            flat.update({key if inner == "kind" else inner: item for inner, item in value.items()})
        elif isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in _flat(value).items()})
        else:
            # The same permissions may be written as 660 and 0660.
            flat[key] = value.zfill(4) if key == "socket_mode" else value
    return flat


def _word(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
