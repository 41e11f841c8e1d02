# SPDX-License-Identifier: BSD-2-Clause
"""Machines in a topology: what a file may say of them, and the steps that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.errors import ConflictError, TopologyError
from vpt.provision.config import VmConfig
from vpt.topology import Actual, Plan, Step, Wanted, _apply, as_data, as_yaml, json_schema, load, plan

BASE = """\
switches: [{name: lab}]
ports:
  - {name: a, switch: lab, kind: vhost-user}
  - {name: b, switch: lab, kind: passthrough}
  - {name: t, switch: lab, kind: tap}
vms:
"""


def read(*vms: str) -> Wanted:
    text = BASE + "".join(f"{line}\n" for line in vms)
    return load(text.encode(), "lab.yaml", Path("/run/vpt/ports"), Path("/lab"))


def test_a_machine_knows_its_interfaces_by_their_addresses() -> None:
    """On one switch two ports can't have the same; on two they can, but not in one machine."""
    text = """\
switches: [{name: lab}, {name: wan}]
ports:
  - {name: a, switch: lab, kind: vhost-user, mac: 52:54:00:00:00:01}
  - {name: b, switch: wan, kind: passthrough, mac: 52-54-00-00-00-01}
vms:
"""
    apart = text + "  - {name: m, ports: [a]}\n  - {name: n, ports: [b]}\n"
    assert len(load(apart.encode(), "lab.yaml", Path("/run")).vms) == 2
    with pytest.raises(TopologyError) as caught:
        load((text + "  - {domain: d, ports: [a, b]}\n").encode(), "lab.yaml", Path("/run"))
    said = "lab.yaml:6:28: machine 'd' has two ports with the mac 52:54:00:00:00:01: 'a' and 'b'"
    assert (caught.value.message, bool(caught.value.hint)) == (said, True)


def test_templates_reach_into_the_list_of_ports() -> None:
    text = """\
switches: [{name: lab}]
ports: [{name: "vm{n}", count: 3, switch: lab, kind: vhost-user}]
vms:
  - name: vm{n}
    count: 3
    ports:
      - port: vm{n}
        address: 10.0.0.{n}/24
"""
    vms = load(text.encode(), "lab.yaml", Path("/run")).vms
    assert [vm.ports[0].port for vm in vms] == ["vm1", "vm2", "vm3"]
    assert vms[2].ports[0].address == ["10.0.0.3/24"]


@pytest.mark.parametrize(
    ("vms", "said", "hint"),
    [
        (["  - {name: m, ports: [a]}", "  - {name: n, ports: [a]}"],
         "8:23: machine 'n' has the port 'a' of machine 'm'", "a port of its own"),
        (["  - {name: m, ports: [aa]}"], "7:23: machine 'm' has a port that the file does not have: 'aa'",
         "did you mean a?"),
        (["  - {name: m, ports: [{port: zzz}]}"], "7:30: machine 'm' has a port that", "add it under ports"),
        (["  - {name: m, ports: [t]}"], "7:23: port 't' is of kind tap, and no", "vhost-user or passthrough"),
        (["  - {name: m, ports: [b]}"], "7:23: the passthrough port 'b' has no mac", "mac:"),
        (["  - {domain: d, ports: [b]}"], "7:25: the passthrough port 'b' has no mac", "mac:"),
        (["  - {name: m}", "  - {name: m}"], "8:12: there are two machines of the name 'm'", "line 7"),
        (["  - {domain: d}", "  - {name: x, domain: d}"], "8:23: the domain 'd' is there twice", "line 7"),
        (["  - {name: m, image: nothing-there}"], "7:22: unknown image 'nothing-there'", "tiny, debian"),
        (["  - {name: m, image: ./absent.qcow2}"], "7:22: there is no image /lab/absent.qcow2", "path"),
        (["  - {name: m, ssh_key: k}"], "7:24: ssh_key: there is no file /lab/k", "folder"),
        (["  - {name: m, disks: [4G, ./d]}"], "7:27: there is no disk /lab/d", "4G"),
        (["  - {name: m, memory: 3}"], "7:15: unknown key 'memory'", "memory_mib"),
        (["  - {name: m, ports: [{prot: a}]}"], "7:24: unknown key 'prot'", "did you mean port?"),
        (["  - {name: m, ports: [{port: a, address: x}]}"], "'x' has no prefix length", ""),
        (["  - {cpus: 2}"], "7:5: the key 'name' is missing", "name"),
        (["  - {name: m, domain: d, image: debian}"], "7:5: image is for machines to be made", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(vms: list[str], said: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        read(*vms)
    assert said in caught.value.message
    assert hint in f"{caught.value.message} {caught.value.hint}"


# ---- steps ----

M = VmConfig(name="m", memory_mib=96)
D = VmConfig.model_validate({"domain": "d", "ports": ["a", "b"]})


def steps(wanted: tuple[VmConfig, ...], actual: Actual, *, prune: bool = False) -> list[str]:
    return [
        f"{s} [{s.needs}]" if s.needs else str(s) for s in plan(Wanted(vms=wanted), actual, prune=prune).steps
    ]


def test_machines_are_made_after_their_ports_and_go_before_them() -> None:
    wanted = read("  - {name: m, ports: [a]}")
    there = [step.action for step in plan(wanted, Actual()).steps]
    assert there == ["add-switch", "add-port", "add-port", "add-port", "add-vm"]
    have = Actual(wanted.switches, wanted.ports, wanted.vms)
    assert plan(wanted, have).steps == ()
    back = [step.action for step in plan(Wanted(), have, prune=True).steps]
    assert back == ["del-vm", "del-port", "del-port", "del-port", "del-switch"]


def test_a_machine_of_other_settings_is_only_replaced_when_asked_for() -> None:
    assert steps((M.model_copy(update={"cpus": 2}),), Actual(vms=(M,))) == [
        "delete vm m: cpus 1 -> 2 [replace]",
        "add vm m: tiny, 2 CPUs, 96 MiB [replace]",
    ]


def test_a_stopped_machine_is_started_and_strangers_are_left_alone() -> None:
    have = Actual(vms=(M, VmConfig(name="x")), stopped=frozenset({"m", "x"}))
    assert steps((M,), have) == ["start vm m: it was stopped"]
    assert plan(Wanted(vms=(M,)), have).left_alone == ("vm x",)
    assert steps((M,), have, prune=True)[-1] == "delete vm x: not in the topology"


def test_a_domain_keeps_running_while_its_ports_change() -> None:
    """Only what costs it a link needs to be allowed."""
    less = D.model_copy(update={"ports": D.ports[:1]})
    assert steps((D,), Actual(vms=(less,))) == ["change vm d: attach b"]
    assert steps((less,), Actual(vms=(D,))) == ["change vm d: detach b [replace]"]
    assert steps((), Actual(vms=(D,)), prune=True) == [
        "delete vm d: not in the topology, the domain d only loses its ports"
    ]


# ---- ports that are replaced under a machine ----

LAB = SwitchConfig(name="lab")
A = PortConfig(name="a", switch="lab", kind="vhost-user", mac="52:54:00:00:00:01")
P = PortConfig(name="a", switch="lab", kind="passthrough", mac="52:54:00:00:00:01")
WITH_A = {
    "domain": VmConfig.model_validate({"domain": "d", "ports": ["a"]}),
    "made": VmConfig.model_validate({"name": "m", "ports": ["a"]}),
}
LETS_GO = {
    "domain": ["change vm d: detach a, to be replaced [replace]", "change vm d: attach a"],
    "made": ["delete vm m: a is replaced [replace]", "add vm m: tiny, 1 CPU, 256 MiB, on a"],
}


def replacing(old: PortConfig, new: PortConfig, vm: VmConfig, *, in_file: bool = True, **more: Any) -> Plan:
    wanted = Wanted((LAB,), (new,), (vm,) if in_file else (), places={"a": "lab.yaml:3:5"})
    return plan(wanted, Actual((LAB,), (old,), (vm,), **more))


def of_machines(todo: Plan) -> list[str]:
    return [f"{step} [{step.needs}]" if step.needs else str(step) for step in todo.steps if step.is_vm]


@pytest.mark.parametrize("vm", WITH_A)
@pytest.mark.parametrize(
    ("old", "change"),
    [
        (A, {"mac": "52:54:00:00:00:09", "anti_spoofing": True}),
        (A, {"pairs": 2}),
        (A, {"kind": "passthrough"}),
        (A, {"socket": "/tmp/a"}),
        (P, {"slots": 512}),
    ],
    ids=["mac", "pairs", "kind", "socket", "slots"],
)
def test_a_machine_lets_go_of_a_port_before_it_becomes_another(
    vm: str, old: PortConfig, change: dict[str, Any]
) -> None:
    todo = replacing(old, old.model_copy(update=change), WITH_A[vm])
    assert [step.is_vm for step in todo.steps] == [True, False, False, True]
    assert of_machines(todo) == LETS_GO[vm]


def test_what_the_machine_does_not_see_leaves_it_alone() -> None:
    """QEMU connects again by itself."""
    for vm in WITH_A.values():
        assert not of_machines(replacing(A, A.model_copy(update={"lossless": True}), vm))
        assert not of_machines(replacing(P, P, vm, failed={"a": "no permission"}))
    moved = A.model_copy(update={"switch": "lab2"})
    other = SwitchConfig(name="lab2")
    for name, lets_go in (("made", []), ("domain", LETS_GO["domain"])):
        vms = (WITH_A[name],)
        todo = plan(Wanted((LAB, other), (moved,), vms), Actual((LAB, other), (A,), vms))
        assert of_machines(todo) == lets_go, "a domain's metadata has the switch"


def test_a_region_goes_with_its_switch() -> None:
    more = SwitchConfig(name="lab", mac_entries=64)
    for port, count in ((A, 0), (P, 2)):
        vms = (WITH_A["domain"],)
        assert len(of_machines(plan(Wanted((more,), (port,), vms), Actual((LAB,), (port,), vms)))) == count


def test_what_may_fail_comes_before_a_machine_lets_go() -> None:
    new = PortConfig(name="b", switch="lab", kind="vhost-user")
    wanted = Wanted((LAB,), (A.model_copy(update={"pairs": 2}), new), (WITH_A["domain"],))
    todo = plan(wanted, Actual((LAB,), (A,), (WITH_A["domain"],)))
    assert [step.action for step in todo.steps] == ["add-port", "set-vm", "del-port", "add-port", "set-vm"]


def test_ports_of_machines_that_the_file_does_not_have() -> None:
    """A domain gets its port back. A machine would lose its disks, and nobody has asked for that."""
    pairs = A.model_copy(update={"pairs": 2})
    todo = replacing(A, pairs, WITH_A["domain"], in_file=False)
    assert of_machines(todo) == LETS_GO["domain"]
    assert todo.left_alone == ()
    with pytest.raises(ConflictError, match=r"^lab.yaml:3:5: port 'a' would be replaced, .* 'm'") as caught:
        replacing(A, pairs, WITH_A["made"], in_file=False)
    assert "vpt guest rm m" in str(caught.value.hint)
    pruned = plan(Wanted((LAB,), (pairs,)), Actual((LAB,), (A,), tuple(WITH_A.values())), prune=True)
    assert [step.action for step in pruned.steps if step.is_vm] == ["del-vm", "del-vm"]


def test_a_port_that_moves_to_another_machine_meanwhile_is_not_given_back() -> None:
    d, m = WITH_A["domain"], WITH_A["made"]
    wanted = Wanted((LAB,), (A.model_copy(update={"pairs": 2}),), (d.model_copy(update={"ports": []}), m))
    assert of_machines(plan(wanted, Actual((LAB,), (A,), (d,)))) == [LETS_GO["domain"][0], LETS_GO["made"][1]]


def done(step: Step, state: Actual) -> Actual:
    """What there is after a step."""
    if step.is_vm:
        vms = tuple(vm for vm in state.vms if vm.name != step.name)
        config = step.params["config"] if step.action == "set-vm" else step.params
        new = () if step.action == "del-vm" else (VmConfig.model_validate(config),)
        return replace(state, vms=(*vms, *new))
    ports = tuple(port for port in state.ports if port.name != step.name)
    new_ports = (PortConfig(name=step.name, **step.params),) if step.action == "add-port" else ()
    return replace(state, ports=(*ports, *new_ports))


@pytest.mark.parametrize("vm", WITH_A.values(), ids=WITH_A)
def test_the_way_back_is_from_wherever_it_failed(vm: VmConfig) -> None:
    """Also from after the last step: a machine that comes later may have failed."""
    before = Actual((LAB,), (A,), (vm,))
    todo = plan(Wanted((LAB,), (P,), (vm,)), before)
    for count in range(len(todo.steps) + 1):
        now = before
        for step in todo.steps[:count]:
            now = done(step, now)
        for step in _apply._way_back(before, now, list(todo.steps[: count + 1])):
            now = done(step, now)
        assert now == before


# ---- as files ----


def test_an_export_with_machines_is_read_again_as_the_same() -> None:
    wanted = read(
        "  - {name: m, cpus: 2, ports: [{port: a, address: [10.0.0.1/8]}]}", "  - {domain: d, ports: []}"
    )
    assert load(as_yaml(wanted).encode(), "again", Path("/run/vpt/ports")).vms == wanted.vms
    assert "vms" not in as_data(Wanted())


def test_the_schema_has_the_keys_of_machines() -> None:
    vms = json_schema()["properties"]["vms"]["items"]
    assert set(vms["properties"]) == {*VmConfig.model_fields, "count", "first"}
    assert "required" not in vms
