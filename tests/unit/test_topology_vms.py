# SPDX-License-Identifier: BSD-2-Clause
"""Machines in a topology: what a file may say of them, and the steps that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpt.errors import TopologyError
from vpt.provision.config import VmConfig
from vpt.topology import Actual, Wanted, as_data, as_yaml, json_schema, load, plan

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
