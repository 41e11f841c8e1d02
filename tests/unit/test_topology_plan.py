# SPDX-License-Identifier: BSD-2-Clause
"""plan(): its steps are possible in their order, lead to what is wanted, and disturb as little as can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.daemon.models import RING_KINDS, PolicyConfig, PortConfig, PortSet, SwitchConfig, SwitchSet
from vpt.daemon.port_methods import changed_port
from vpt.daemon.switch_methods import changed_switch
from vpt.topology import Actual, Plan, Step, Wanted, plan
from vpt.topology._plan import claims

LAB = SwitchConfig(name="lab")


def port(name: str, switch: str = "lab", **settings: Any) -> PortConfig:
    return PortConfig(**{"name": name, "switch": switch, "kind": "vhost-user", **settings})


def wanted(*things: SwitchConfig | PortConfig) -> Wanted:
    return Wanted(
        tuple(thing for thing in things if isinstance(thing, SwitchConfig)),
        tuple(thing for thing in things if isinstance(thing, PortConfig)),
    )


def running(*things: SwitchConfig | PortConfig, **failed: str) -> Actual:
    state = wanted(*things)
    return Actual(state.switches, state.ports, failed=failed)


def steps(todo: Plan) -> list[tuple[str, str]]:
    return [(step.action, step.name) for step in todo.steps]


# ---- single rules ----


def test_switches_come_before_their_ports() -> None:
    todo = plan(wanted(LAB, port("a"), port("b")), running())
    assert steps(todo) == [("add-switch", "lab"), ("add-port", "a"), ("add-port", "b")]


def test_policy_and_link_change_live() -> None:
    after = port("a", link="down", policy=PolicyConfig(kind="poll"))
    todo = plan(wanted(LAB, after), running(LAB, port("a")))
    assert steps(todo) == [("set-port", "a")]
    assert todo.steps[0].params == {"policy": "poll", "spin_us": 50, "sleep_us": 50, "link": "down"}
    assert todo.steps[0].why == "policy adaptive -> poll, link up -> down"
    assert not todo.needing("replace")


def test_all_else_is_named_a_replacement() -> None:
    todo = plan(wanted(LAB, port("a", pairs=2)), running(LAB, port("a")))
    assert steps(todo) == [("del-port", "a"), ("add-port", "a")]
    assert todo.steps[0].why == "pairs 1 -> 2"
    assert todo.needing("replace") == ["a"]


def test_permissions_may_be_written_in_two_ways() -> None:
    todo = plan(wanted(LAB, port("a", socket_mode="660")), running(LAB, port("a", socket_mode="0660")))
    assert not todo.steps


def test_what_the_file_does_not_have_stays() -> None:
    todo = plan(wanted(LAB), running(LAB, port("a"), SwitchConfig(name="old")))
    assert not todo.steps
    assert todo.left_alone == ("a", "old")


def test_prune_deletes_it_last() -> None:
    have = running(LAB, SwitchConfig(name="old"), port("a", "old"))
    todo = plan(wanted(LAB, port("b")), have, prune=True)
    assert steps(todo) == [("add-port", "b"), ("del-port", "a"), ("del-switch", "old")]


def test_a_switch_that_changes_takes_its_ports_along() -> None:
    """Those that the file does not have come back as well."""
    small = SwitchConfig(name="lab", mac_entries=64)
    todo = plan(wanted(small, port("a")), running(LAB, port("a"), port("x")))
    assert steps(todo) == [
        ("del-port", "a"), ("del-port", "x"), ("del-switch", "lab"),
        ("add-switch", "lab"), ("add-port", "a"), ("add-port", "x"),
    ]  # fmt: skip
    assert todo.needing("replace") == ["a", "x", "lab"]


def test_ageing_and_isolation_of_a_switch_change_while_packets_flow() -> None:
    todo = plan(wanted(SwitchConfig(name="lab", mac_age_s=9, isolation=True)), running(LAB, port("x")))
    assert [str(step) for step in todo.steps] == [
        "change switch lab: mac_age_s 300 -> 9, isolation no -> yes"
    ]
    assert todo.steps[0].params == {"mac_age_s": 9, "isolation": True}


def test_rules_of_a_port_change_while_packets_flow() -> None:
    rules = {"vlan": {"trunk": [10]}, "isolated": False, "rate": {"tx": {"bits_per_s": "1M"}}}
    todo = plan(wanted(LAB, port("a", **rules)), running(LAB, port("a", vlan={"access": 5})))
    assert [str(step) for step in todo.steps] == [
        "change port a: vlan.access 5 -> none, vlan.trunk none -> 10, isolated none -> no,"
        " rate.tx.bits_per_s none -> 1000000"
    ]
    assert not todo.needing("replace")


def test_an_mtu_is_the_switch_s_where_the_port_says_none() -> None:
    """A journal of an older vptd says 1500 for each port."""
    assert not plan(wanted(LAB, port("a")), running(LAB, port("a", mtu=1500))).steps
    jumbo = SwitchConfig(name="lab", mtu=9000)
    assert not plan(wanted(jumbo, port("a", mtu=9000)), running(jumbo, port("a"))).steps
    assert plan(wanted(jumbo, port("a")), running(LAB, port("a"))).needing("replace") == ["a", "lab"]


@pytest.mark.parametrize("kind", ["vhost-user", "null", "tap"])
def test_an_mtu_changes_while_packets_flow(kind: str) -> None:
    todo = plan(wanted(LAB, port("a", kind=kind, mtu=9000)), running(LAB, port("a", kind=kind)))
    assert [str(step) for step in todo.steps] == ["change port a: mtu 1500 -> 9000"]
    assert todo.steps[0].params == {"mtu": 9000}
    back = plan(wanted(LAB, port("a", kind=kind)), running(LAB, port("a", kind=kind, mtu=9000)))
    assert back.steps[0].params == {"mtu": None}


@pytest.mark.parametrize("kind", ["passthrough", "app"])
def test_the_mtu_of_a_region_takes_a_new_port(kind: str) -> None:
    todo = plan(wanted(LAB, port("a", kind=kind, mtu=9000)), running(LAB, port("a", kind=kind)))
    assert todo.needing("replace") == ["a"]


def test_what_is_in_the_way_needs_prune() -> None:
    have = running(LAB, port("a", socket="/tmp/s"), port("b", kind="tap", ifname="t0"))
    todo = plan(wanted(LAB, port("n", socket="/tmp/s"), port("t0", kind="tap")), have)
    assert steps(todo) == [("del-port", "a"), ("del-port", "b"), ("add-port", "n"), ("add-port", "t0")]
    assert todo.needing("prune") == ["a", "b"]


def test_a_port_that_failed_is_added_again() -> None:
    """Nobody can be plugged into it, so no option is needed."""
    todo = plan(wanted(LAB, port("a")), running(LAB, port("a"), a="no permission"))
    assert steps(todo) == [("del-port", "a"), ("add-port", "a")]
    assert not todo.needing("replace")
    assert "no permission" in todo.steps[0].why


# ---- any two states ----


@dataclass
class Model:
    """What vptd does with a request, and what it refuses."""

    switches: dict[str, SwitchConfig] = field(default_factory=dict)
    ports: dict[str, PortConfig] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def do(self, step: Step) -> None:
        getattr(self, step.action.replace("-", "_"))(step.name, step.params)

    def add_switch(self, name: str, params: dict[str, Any]) -> None:
        assert name not in self.switches
        assert name not in self.ports
        self.switches[name] = SwitchConfig(name=name, **params)

    def add_port(self, name: str, params: dict[str, Any]) -> None:
        assert name not in self.switches
        assert name not in self.ports
        owner = {name: params["owner"]} if "owner" in params else {}
        new = PortConfig(name=name, **{key: value for key, value in params.items() if key != "owner"})
        assert new.switch in self.switches
        assert not any(claims(new) & claims(other) for other in self.ports.values())
        self.ports[name] = new
        self.owners |= owner

    def set_port(self, name: str, params: dict[str, Any]) -> None:
        assert "mtu" not in params or self.ports[name].kind not in RING_KINDS
        self.ports[name] = changed_port(self.ports[name], PortSet(name=name, **params))

    def set_switch(self, name: str, params: dict[str, Any]) -> None:
        self.switches[name] = changed_switch(self.switches[name], SwitchSet(name=name, **params))

    def del_port(self, name: str, _params: dict[str, Any]) -> None:
        del self.ports[name]
        self.owners.pop(name, None)

    def del_switch(self, name: str, _params: dict[str, Any]) -> None:
        assert not [p for p in self.ports.values() if p.switch == name]
        del self.switches[name]


NAMES = st.sampled_from("abcdef")


@st.composite
def states(draw: st.DrawFn) -> Wanted:
    """States that vptd can be in: few names and few sockets, so that they clash."""
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    cut = draw(st.integers(0, len(names)))
    switches = [
        SwitchConfig(
            name=n,
            mac_age_s=draw(st.sampled_from([9, 300])),
            mtu=draw(st.sampled_from([1500, 1500, 9000])),
            isolation=draw(st.booleans()),
        )
        for n in names[:cut]
    ]
    ports: list[PortConfig] = []
    for name in names[cut:] if switches else []:
        kind = draw(st.sampled_from(["vhost-user", "tap", "null", "passthrough"]))
        new = PortConfig(
            name=name,
            switch=draw(st.sampled_from(switches)).name,
            kind=kind,
            mtu=draw(st.sampled_from([None, 1500, 9000])),
            vlan=draw(st.sampled_from([None, {"access": 5}, {"trunk": [5, "7-9"], "native": 6}])),
            isolated=draw(st.sampled_from([None, True, False])),
            rate=draw(st.sampled_from([{}, {"tx": {"bits_per_s": 8000}}, {"rx": {"packets_per_s": 9}}])),
            storm={"broadcast": draw(st.sampled_from([10_000, 0, 7]))},
            link=draw(st.sampled_from(["up", "down"])),
            policy=PolicyConfig(kind=draw(st.sampled_from(["poll", "adaptive"]))),
            socket=draw(st.sampled_from([None, "/tmp/1", "/tmp/2"])) if kind == "vhost-user" else None,
            ifname=draw(st.sampled_from([None, "a", "t1"])) if kind == "tap" else None,
        )
        if not any(claims(new) & claims(other) for other in ports):
            ports.append(new)
    return Wanted(tuple(switches), tuple(ports))


def settled(ports: dict[str, PortConfig], switches: dict[str, SwitchConfig]) -> dict[str, PortConfig]:
    """With the MTU that they have: whether it is the port's or the switch's word does not matter."""
    return {name: p.model_copy(update={"mtu": p.on(switches[p.switch]).mtu}) for name, p in ports.items()}


@given(states(), states(), st.booleans(), st.data())
@settings(max_examples=500, deadline=None)
def test_the_steps_are_possible_and_lead_to_what_is_wanted(
    want: Wanted, have: Wanted, prune: bool, data: st.DataObject
) -> None:
    broken = data.draw(st.sets(st.sampled_from([p.name for p in have.ports]))) if have.ports else set()
    owners = {p.name: f"qmp:/run/{p.name}" for p in have.ports[::2]}
    before = Actual(have.switches, have.ports, owners=owners, failed=dict.fromkeys(broken, "broken"))
    todo = plan(want, before, prune=prune)
    model = Model({s.name: s for s in have.switches}, {p.name: p for p in have.ports}, dict(owners))
    touched = set()
    for step in todo.steps:
        model.do(step)
        touched.add(step.name)
    after = Actual(tuple(model.switches.values()), tuple(model.ports.values()))
    assert not plan(want, after, prune=prune).steps, "the second time there is nothing to do"
    for switch in want.switches:
        assert model.switches[switch.name] == switch
    for wanted_port in want.ports:
        assert (
            settled(model.ports, model.switches)[wanted_port.name]
            == settled({wanted_port.name: wanted_port}, model.switches)[wanted_port.name]
        )
    assert model.owners == {name: owner for name, owner in owners.items() if name in model.ports}
    if prune:
        assert after.names() == want.names()
        assert not todo.needing("prune")
    for name in set(todo.left_alone) - touched:
        old, new = {**_by_name(have)}[name], {**_by_name(after)}[name]
        assert old == new


@given(states(), states())
@settings(max_examples=300, deadline=None)
def test_a_plan_leads_back(want: Wanted, have: Wanted) -> None:
    """Cut off after any step, a plan back to what was there exists: that is what a failed apply does."""
    owners = {p.name: f"qmp:/run/{p.name}" for p in have.ports[::2]}
    before = Actual(have.switches, have.ports, owners=owners)
    model = Model(_by_name_switches(have), {p.name: p for p in have.ports}, dict(owners))
    todo = plan(want, before)
    for done in range(len(todo.steps)):
        model.do(todo.steps[done])
        now = Actual(tuple(model.switches.values()), tuple(model.ports.values()), owners=model.owners)
        copy = Model(dict(model.switches), dict(model.ports), dict(model.owners))
        for step in plan(before, now, prune=True).steps:
            copy.do(step)
        assert copy.switches == _by_name_switches(have)
        assert copy.owners == owners
        assert settled(copy.ports, copy.switches) == settled({p.name: p for p in have.ports}, copy.switches)


def _by_name_switches(state: Wanted) -> dict[str, SwitchConfig]:
    return {switch.name: switch for switch in state.switches}


def _by_name(state: Wanted) -> dict[str, SwitchConfig | PortConfig]:
    return {**_by_name_switches(state), **{p.name: p for p in state.ports}}
