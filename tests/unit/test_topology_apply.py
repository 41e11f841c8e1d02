# SPDX-License-Identifier: BSD-2-Clause
"""vpt apply, diff and export against a running vptd."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.vptd import Vptd, run_vpt, vpt_json
from vpt.daemon.runtime import locate
from vpt.errors import (
    EXIT_DIFFERENT,
    EXIT_FAILED,
    EXIT_MISSING,
    EXIT_OK,
    EXIT_USAGE,
    DaemonError,
    MissingError,
)
from vpt.provision.config import VmConfig
from vpt.provision.guests import Guests
from vpt.provision.record import Record, Store
from vpt.topology import Actual, Doer, load, perform, plan

EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").glob("*.yaml"))

TWO = """\
switches:
  - name: lab
ports:
  - name: vm{n}
    count: 2
    switch: lab
    kind: vhost-user
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def lab(daemon: Vptd) -> Iterator[Vptd]:
    """A vptd with nothing in it, and nothing left in it."""
    yield daemon
    file = daemon.folder / "empty.yaml"
    file.write_text("switches: []\n")
    assert run_vpt(daemon.paths.runtime, "apply", str(file), "--prune").returncode == EXIT_OK
    assert daemon.call("list") == {"switches": [], "ports": []}


def write(lab: Vptd, text: str) -> str:
    file = lab.folder / "topology.yaml"
    file.write_text(text)
    return str(file)


def state(lab: Vptd) -> dict[str, Any]:
    """What is there, in no order: something that was added again is the newest."""
    found = lab.call("config")
    return {what: sorted(found[what], key=lambda thing: thing["name"]) for what in ("switches", "ports")}


def apply(lab: Vptd, text: str, *options: str, code: int = EXIT_OK) -> str:
    done = run_vpt(lab.paths.runtime, "apply", write(lab, text), *options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def diff(lab: Vptd, text: str, *options: str, code: int) -> str:
    done = run_vpt(lab.paths.runtime, "diff", write(lab, text), *options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def guests(lab: Vptd) -> Guests:
    return Guests(lab.paths, lab.client)


def without_vms(text: str) -> str:
    return text.partition("\nvms:")[0] + "\n"


# ---- the way it should go ----


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_apply_without_their_machines(lab: Vptd, path: Path) -> None:
    """With them: tests/vm/test_topology_guests.py."""
    text = path.read_text()
    assert "add vm " in diff(lab, text, code=EXIT_DIFFERENT)
    text = without_vms(text)
    assert "nothing to do" not in diff(lab, text, code=EXIT_DIFFERENT)
    assert "done: " in apply(lab, text)
    assert diff(lab, text, "--prune", code=EXIT_OK) == "nothing to do\n"
    assert apply(lab, text) == "nothing to do\n"
    exported = run_vpt(lab.paths.runtime, "export").stdout
    assert diff(lab, exported, "--prune", code=EXIT_OK) == "nothing to do\n"


def test_an_export_builds_the_same_again(lab: Vptd) -> None:
    apply(lab, without_vms(EXAMPLES[0].read_text()))
    before = state(lab)
    for arguments in ((), ("--json",)):
        exported = run_vpt(lab.paths.runtime, "export", *arguments).stdout
        apply(lab, "switches: []", "--prune")
        apply(lab, exported)
        assert state(lab) == before


@pytest.mark.needs("py:libvirt")
def test_a_libvirt_that_is_down_matters_to_its_machines_only(lab: Vptd) -> None:
    apply(lab, TWO)
    uri = f"qemu+unix:///system?socket={lab.folder}/nobody"
    domain = VmConfig.model_validate({"domain": "d", "connect": uri, "ports": ["vm1"]})
    store = Store(locate(lab.paths.runtime).state)
    with store.changing():
        store.save(Record(config=domain, runtime_dir=str(lab.paths.runtime), created=0.0))
    try:
        assert diff(lab, TWO, code=EXIT_OK).startswith("nothing to do\n")
        exported = run_vpt(lab.paths.runtime, "export").stdout
        assert load(exported.encode(), "exported", lab.paths.ports).vms == (domain,)
        refused = run_vpt(lab.paths.runtime, "diff", write(lab, exported))
        assert refused.returncode == EXIT_MISSING
        assert "topology.yaml:12:9: machine 'd' is a domain of libvirt's: no libvirt at" in refused.stderr
        assert "systemctl start libvirtd" in refused.stderr
        assert "--connect" not in refused.stderr
    finally:
        store.remove("d")


def test_dry_run_and_diff_change_nothing(lab: Vptd) -> None:
    before = state(lab)
    assert "add port vm2: vhost-user on lab" in apply(lab, TWO, "--dry-run")
    diff(lab, TWO, code=EXIT_DIFFERENT)
    assert state(lab) == before


def test_policy_and_link_change_while_the_port_lives(lab: Vptd) -> None:
    """Its id says that it is the same port."""
    apply(lab, TWO)
    before = lab.call("port.show", name="vm1")
    apply(lab, TWO + "    link: down\n    policy: {kind: sleep, sleep_us: 70}\n")
    after = lab.call("port.show", name="vm1")
    assert (after["id"], after["link"], after["policy"]["sleep_us"]) == (before["id"], "down", 70)


def test_a_replacement_is_only_done_when_asked_for(lab: Vptd) -> None:
    apply(lab, TWO)
    before = state(lab)
    more = TWO + "    pairs: 2\n"
    assert "delete port vm1: pairs 1 -> 2  [needs --replace]" in diff(lab, more, code=EXIT_DIFFERENT)
    assert "--replace" in apply(lab, more, code=EXIT_FAILED)
    assert state(lab) == before
    apply(lab, more, "--replace")
    assert [port["pairs"] for port in state(lab)["ports"]] == [2, 2]


def test_a_port_that_is_replaced_is_still_its_vms(lab: Vptd) -> None:
    """Else nothing would delete it when the VM is gone. Also one that the file does not have."""
    owner = "libvirt:system:2f7d1c9e-6f0b-4a52-9d9b-1f2e3d4c5b6a"
    apply(lab, "switches: [{name: lab}]")
    for name in ("vm1", "mine"):
        lab.call("port.add", switch="lab", name=name, kind="vhost-user", owner=owner)
    apply(lab, TWO + "    pairs: 2\n", "--replace")
    owners = {port["name"]: port["owner"] for port in lab.call("port.list")["ports"]}
    assert owners == {"vm1": owner, "vm2": None, "mine": owner}
    apply(lab, TWO.replace("name: lab", "name: lab\n    mtu: 9000") + "    pairs: 2\n", "--replace")
    assert {port["name"]: port["owner"] for port in lab.call("port.list")["ports"]} == owners


def test_an_mtu_is_changed_while_packets_flow(lab: Vptd) -> None:
    def mtus() -> list[int]:
        return [port["mtu"] for port in lab.call("port.list")["ports"]]

    apply(lab, TWO)
    jumbo = TWO + "    mtu: 4000\n"
    assert "change port vm2: mtu 1500 -> 4000" in apply(lab, jumbo)
    assert mtus() == [4000, 4000]
    diff(lab, jumbo, code=EXIT_OK)
    apply(lab, TWO)
    assert mtus() == [1500, 1500]
    diff(lab, TWO, code=EXIT_OK)


def test_what_the_file_does_not_have_is_said_and_left_alone(lab: Vptd) -> None:
    apply(lab, TWO)
    lab.call("port.add", switch="lab", name="mine", kind="null")
    assert "left alone: mine" in diff(lab, TWO, code=EXIT_OK)
    assert "delete port mine" in apply(lab, TWO, "--prune")


def test_a_file_may_come_by_a_pipe(lab: Vptd) -> None:
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.paths.runtime), "apply", "-"]
    done = subprocess.run(argv, input=TWO, text=True, capture_output=True, check=True, timeout=60)
    assert done.stdout.endswith("done: 3 steps\n")


def test_in_a_pipe_each_step_is_printed_when_it_is_begun(lab: Vptd) -> None:
    """So the one that fails is there, too."""
    assert apply(lab, TWO).splitlines() == [
        "add switch lab",
        "add port vm1: vhost-user on lab",
        "add port vm2: vhost-user on lab",
        "done: 3 steps",
    ]
    bad = TWO.replace("count: 2", "count: 3\n    socket: /absent/{n}")
    said = apply(lab, bad, "--replace", code=EXIT_FAILED)
    assert said.splitlines()[0] == "add port vm3: vhost-user on lab"
    assert "so nothing was changed" in said


def test_json_has_the_steps(lab: Vptd) -> None:
    file = write(lab, TWO)
    done = run_vpt(lab.paths.runtime, "diff", file, "--json")
    assert done.returncode == EXIT_DIFFERENT
    assert json.loads(done.stdout)["schema"] == "vpt.diff/v1"
    printed = vpt_json(lab.paths.runtime, "apply", file)
    assert printed["schema"] == "vpt.apply/v1"
    assert [step["action"] for step in printed["steps"]] == ["add-switch", "add-port", "add-port"]
    assert vpt_json(lab.paths.runtime, "export")["schema"] == "vpt.topology/v1"


# ---- the way it may go ----


def test_a_step_that_fails_undoes_those_before_it(lab: Vptd) -> None:
    """A switch, a port, a change and a replacement are done when there turns out to be no worker 31."""
    apply(lab, TWO.replace("vm{n}", "vm{n}\n    socket: /tmp/vpt-test-{n}.sock"))
    before = state(lab)
    bad = """\
switches: [{name: lab}, {name: second}]
ports:
  - {name: vm1, switch: lab, kind: vhost-user, pairs: 2}
  - {name: vm2, switch: lab, kind: vhost-user, link: down, socket: /tmp/vpt-test-2.sock}
  - {name: early, switch: second, kind: "null"}
  - {name: late, switch: lab, kind: vhost-user, worker: 31, socket: /tmp/vpt-test-1.sock}
"""
    said = apply(lab, bad, "--replace", code=EXIT_FAILED)
    assert "so all that was changed has been changed back" in said
    assert state(lab) == before


MANY = TWO.replace("count: 2", "count: 200")


def all_or_nothing(lab: Vptd) -> int:
    """How many ports there are, and each of them as it was to be."""
    ports = len(state(lab)["ports"])
    assert ports in (0, 200)
    assert len(lab.call("switch.list")["switches"]) == (1 if ports else 0)
    return ports


def test_a_vptd_that_is_killed_meanwhile_comes_back_with_all_or_nothing(lab: Vptd) -> None:
    todo = plan(load(MANY.encode(), "t", lab.paths.ports), Actual())

    def die(text: str) -> None:
        if text.startswith("add port vm100"):
            lab.kill()

    with pytest.raises(DaemonError, match="broke off during apply"):
        perform(todo, Actual(), Doer(lab.client, guests(lab), die))
    lab.start()
    all_or_nothing(lab)
    apply(lab, MANY)
    assert all_or_nothing(lab) == 200


def test_an_interrupt_leaves_all_or_nothing(lab: Vptd) -> None:
    """vptd notices that who asked is gone, and takes it back; what it has finished by then stays."""
    todo = plan(load(MANY.encode(), "t", lab.paths.ports), Actual())

    def interrupt(text: str) -> None:
        if text.startswith("add port vm1:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(todo, Actual(), Doer(lab.client, guests(lab), interrupt))
    all_or_nothing(lab)


def test_progress_names_each_step_in_order(lab: Vptd) -> None:
    todo = plan(load(TWO.encode(), "t", lab.paths.ports), Actual())
    told: list[str] = []
    perform(todo, Actual(), Doer(lab.client, guests(lab), told.append))
    assert told == [str(step) for step in todo.steps]


def test_a_journal_that_can_not_be_written_undoes_all(lab: Vptd) -> None:
    apply(lab, TWO)
    before = state(lab)
    in_the_way = lab.paths.journal.with_suffix(".new")
    in_the_way.mkdir()
    try:
        said = apply(lab, TWO.replace("count: 2", "count: 9"), "--prune", code=EXIT_FAILED)
    finally:
        in_the_way.rmdir()
    assert "the journal can't be written" in said
    assert "changed back" in said
    assert state(lab) == before


RULES = """\
switches:
  - {name: lab, mtu: 2000, isolation: true, mac_age_s: 20}
ports:
  - name: a
    switch: lab
    kind: vhost-user
    mac: 52:54:00:00:00:01
    vlan: {access: 10}
    anti_spoofing: true
    rate: {tx: {bits_per_s: 100M, packets_per_s: 10k}, rx: {bits_per_s: 1G, burst_bytes: 1M}}
    storm: {broadcast: 100, multicast: 1k, unknown: 0}
  - {name: t, switch: lab, kind: "null", vlan: {trunk: [10, 20-30], native: 1}, isolated: false}
"""


def test_rules_make_the_round_trip(lab: Vptd) -> None:
    apply(lab, RULES)
    before = state(lab)
    assert apply(lab, RULES) == "nothing to do\n"
    exported = run_vpt(lab.paths.runtime, "export").stdout
    assert diff(lab, exported, "--prune", code=EXIT_OK) == "nothing to do\n"
    apply(lab, "switches: []", "--prune")
    apply(lab, exported)
    assert state(lab) == before
    view = lab.call("port.show", name="a")
    assert (view["mtu"], view["isolated"], view["vlan"]["access"]) == (2000, True, 10)
    assert lab.call("port.show", name="t")["isolated"] is False


def test_rules_change_while_the_port_lives_and_survive_a_restart(lab: Vptd) -> None:
    apply(lab, RULES)
    before = lab.call("port.show", name="a")["id"]
    changed = (
        RULES.replace("access: 10", "trunk: [7]")
        .replace("100M", "50M")
        .replace("isolation: true", "mac_entries: 4096")
    )
    assert "change switch lab: isolation yes -> no" in apply(lab, changed)
    view = lab.call("port.show", name="a")
    assert (view["id"], view["vlan"]["trunk"], view["isolated"]) == (before, [7], False)
    lab.kill()
    lab.start()
    assert diff(lab, changed, "--prune", code=EXIT_OK) == "nothing to do\n"


def test_a_change_of_rules_is_taken_back_as_well(lab: Vptd) -> None:
    apply(lab, RULES)
    before = state(lab)
    bad = RULES.replace("access: 10", "access: 20").replace("isolation: true", "isolation: false")
    said = apply(lab, bad + "  - {name: z, switch: lab, kind: app, worker: 31}\n", code=EXIT_FAILED)
    assert "changed back" in said or "nothing was changed" in said
    assert state(lab) == before


def test_a_first_step_that_fails_changes_nothing(lab: Vptd) -> None:
    apply(lab, TWO)
    before = state(lab)
    said = apply(lab, TWO + "  - {name: p, switch: lab, kind: app, worker: 31}\n", code=EXIT_FAILED)
    assert "so nothing was changed" in said
    assert state(lab) == before


def test_bad_input_names_the_place_and_changes_nothing(lab: Vptd) -> None:
    before = state(lab)
    bad = TWO + "    mac: 01:00:5e:00:00:01\n"
    said = apply(lab, bad, code=EXIT_USAGE)
    assert "topology.yaml:8:10: mac: 01:00:5e:00:00:01 is a multicast address" in said
    done = run_vpt(lab.paths.runtime, "apply", write(lab, bad), "--json")
    assert json.loads(done.stdout)["code"] == "topology"
    assert state(lab) == before


@pytest.mark.parametrize(
    ("port", "place", "said", "code"),
    [
        ("socket: FOLDER/taken.sock", "7:11", "another program listens on", EXIT_FAILED),
        ("socket: FOLDER/file", "7:11", "is not a socket", EXIT_FAILED),
        ("socket: FOLDER/absent/a.sock", "7:11", "no such folder", EXIT_FAILED),
        (f"socket: /tmp/{'x' * 120}", "10:13", "the system allows 107", EXIT_USAGE),
        ("mac: 52:54:00:00:00:99", "7:11", "port 'other' on the same switch has the mac", EXIT_FAILED),
        ("worker: 31", "7:11", "this vptd has 1", EXIT_FAILED),
    ],
    ids=["taken", "not ours", "no folder", "too long", "mac of a port", "worker"],
)
def test_what_only_vptd_finds_names_the_place_too(
    lab: Vptd, port: str, place: str, said: str, code: int
) -> None:
    other = {"mac": "52:54:00:00:00:99", "socket": str(lab.folder / "other.sock")}
    lab.call("switch.add", name="lab")
    lab.call("port.add", switch="lab", name="other", kind="vhost-user", **other)
    before = state(lab)
    (lab.folder / "file").touch()
    (lab.folder / "taken.sock").unlink(missing_ok=True)
    text = f"""\
switches:
  - name: lab
  - name: new
ports:
  - {{name: q, switch: new, kind: "null"}}
  # the one that can't be
  - name: p
    switch: lab
    kind: vhost-user
    {port.replace("FOLDER", str(lab.folder))}
"""
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(lab.folder / "taken.sock"))
        taken.listen()
        printed = apply(lab, text, code=code)
    assert f"topology.yaml:{place}: " in printed
    assert said in printed
    assert "hint: " in printed
    assert state(lab) == before


def test_who_may_not_use_the_socket_is_told_so(lab: Vptd) -> None:
    todo = plan(load(TWO.encode(), "t", lab.paths.ports), Actual())
    me = os.geteuid()
    lab.paths.control.chmod(0)
    if me == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(MissingError, match="no permission to use") as caught:
            perform(todo, Actual(), Doer(lab.client, guests(lab)))
    finally:
        os.seteuid(me)
        lab.paths.control.chmod(0o660)
    assert caught.value.hint is not None


def test_bad_input_is_refused_without_vptd(tmp_path: Path) -> None:
    """What can be said about a file does not need a daemon; what it would change does."""
    file = tmp_path / "t.yaml"
    file.write_text("switches: [1]\n")
    assert run_vpt(tmp_path, "diff", str(file)).returncode == EXIT_USAGE
    file.write_text("switches: []\n")
    done = run_vpt(tmp_path, "diff", str(file))
    assert done.returncode == EXIT_FAILED
    assert f"vpt --runtime-dir {tmp_path} daemon start" in done.stderr
    for path, said in ((f"{tmp_path}/absent", f"ls {tmp_path}\n"), (str(tmp_path), "name a file in it\n")):
        done = run_vpt(tmp_path, "diff", path)
        assert (done.returncode, done.stderr.endswith(said)) == (EXIT_USAGE, True), done.stderr


def test_the_schema_is_printed_without_a_file(tmp_path: Path) -> None:
    done = run_vpt(tmp_path, "apply", "--schema")
    assert json.loads(done.stdout)["title"] == "vpt topology"
