# SPDX-License-Identifier: BSD-2-Clause
"""Real vptd processes: start, stop, be killed, come back; and what they may be asked."""

from __future__ import annotations

import json
import os
import signal
import stat
from typing import Any

import pytest

from support.vptd import Vptd, gone
from support.waiting import PATIENCE_S, until
from vpt.daemon.transports.unix import AppLink, open_app
from vpt.dataplane import StatsReader
from vpt.errors import (
    ConflictError,
    ExistsError,
    MissingError,
    NotFoundError,
    UsageError,
    VptError,
)


def names(daemon: Vptd) -> dict[str, str]:
    """State of each port."""
    return {port["name"]: port["state"] for port in daemon.call("port.list")["ports"]}


def exchange(a: AppLink, b: AppLink, count: int, tag: bytes) -> None:
    """`count` packets from a to b, one at a time, each of which must arrive as it was."""
    for number in range(count):
        frame = (b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + tag + number.to_bytes(4, "big")).ljust(
            60, b"\0"
        )
        until(lambda frame=frame: a.app.send(0, frame), "room to send")
        assert until(lambda: b.app.recv(0) or (b.app.wait(0, timeout=0.1) and None), "the packet") == frame


# ---- start and stop ----


def test_a_clean_end_removes_its_sockets(vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    for kind in ("vhost-user", "passthrough", "app"):
        vptd.call("port.add", switch="sw0", name=f"p-{kind}", kind=kind)
    keeper = vptd.keeper()
    vptd.call("daemon.stop", keep=False)
    assert vptd.process is not None
    assert vptd.process.wait(PATIENCE_S) == 0
    until(lambda: gone(keeper), "the keeper to end")
    left = [path for path in vptd.paths.runtime.rglob("*") if stat.S_ISSOCK(path.stat().st_mode)]
    assert left == []
    assert not vptd.paths.stats.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly_and_the_keeper_keeps(vptd: Vptd, number: int) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="vm1", kind="passthrough")
    keeper = vptd.keeper()
    assert vptd.process is not None
    vptd.process.send_signal(number)
    assert vptd.process.wait(PATIENCE_S) == 0
    assert not vptd.paths.control.exists()
    assert not gone(keeper)
    assert os.path.exists(vptd.socket("vm1")), "a guest that starts now finds its socket"


def test_no_keep_takes_the_keeper_along(vptd: Vptd) -> None:
    vptd.start("--no-keep")
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="vm1", kind="passthrough")
    keeper = vptd.keeper()
    assert vptd.stop() == 0
    until(lambda: gone(keeper), "the keeper to end")


def test_no_keeper_is_started_before_a_ring_port_needs_one(shared: Vptd, vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="vm1", kind="vhost-user")
    assert vptd.call("daemon.status")["keeper"]["pid"] is None
    assert not vptd.paths.keeper_socket.exists()


def test_there_is_one_vptd_per_folder(shared: Vptd) -> None:
    second = shared.spawn()
    assert second.wait(PATIENCE_S) == 1
    assert f"is already running for {shared.paths.runtime}" in shared.said()
    assert shared.call("daemon.status")["pid"], "the first is unharmed"


def test_it_does_not_touch_what_stands_where_its_socket_belongs(vptd: Vptd) -> None:
    vptd.paths.create()
    vptd.paths.control.write_text("precious")
    assert vptd.spawn().wait(PATIENCE_S) == 1
    assert "not a socket" in vptd.said()
    assert vptd.paths.control.read_text() == "precious"
    vptd.paths.control.unlink()


def test_a_damaged_journal_ends_it_with_advice_and_an_exit_code_that_is_not_retried(vptd: Vptd) -> None:
    vptd.paths.create()
    vptd.paths.journal.write_text('{"schema": "vpt.journal/v1", "ports"')
    for _ in range(2):
        assert vptd.spawn().wait(PATIENCE_S) == 2
    assert f"mv {vptd.paths.journal} {vptd.paths.journal}.bad" in vptd.said()
    assert "Traceback" not in vptd.said()
    vptd.paths.journal.rename(f"{vptd.paths.journal}.bad")
    vptd.start()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--workers", "0"], 2),
        (["--cpus", "x"], 2),
        (["--cpus", "0,1"], 2),
        (["--group", "no-such-group"], 2),
    ],
)
def test_wrong_options_are_wrong_usage(vptd: Vptd, options: list[str], code: int) -> None:
    assert vptd.spawn(*options).wait(PATIENCE_S) == code


# ---- what comes back ----


def test_ports_come_back_after_a_kill(vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0", mac_entries=64)
    asked = {
        "vm1": {"kind": "vhost-user", "mac": "52:54:00:00:00:01", "pairs": 2},
        "vm2": {
            "kind": "passthrough",
            "policy": {"kind": "sleep", "sleep_us": 70},
            "mtu": 9000,
            "buf_size": 9216,
        },
        "a1": {"kind": "app", "slots": 128},
        "n1": {"kind": "null"},
    }
    for name, options in asked.items():
        vptd.call("port.add", switch="sw0", name=name, **options)
    vptd.call("port.set", name="n1", link="down")
    vptd.call("port.set", name="vm1", mtu=4000)
    vptd.call("port.add", switch="sw0", name="gone", kind="app")
    vptd.call("port.del", name="gone")
    before, switches = vptd.call("port.list"), vptd.call("switch.list")
    vptd.kill()
    vptd.start()
    after = vptd.call("port.list")
    for port in (*before["ports"], *after["ports"]):
        port.pop("id")
    assert after == before
    assert vptd.call("switch.list") == switches
    for name in ("vm1", "vm2", "a1"):
        assert stat.S_ISSOCK(os.stat(vptd.socket(name)).st_mode)
    assert not os.path.exists(vptd.socket("gone"))


def test_an_app_goes_on_after_kill_stop_and_loss_of_the_keeper(vptd: Vptd) -> None:
    """Its memory and eventfds are with the keeper: it does not reconnect; no packet is lost or doubled."""

    def has_both_but(former: int) -> bool:
        keeper = vptd.call("daemon.status")["keeper"]
        return keeper["ports"] == 2 and keeper["pid"] != former

    vptd.start()
    vptd.call("switch.add", name="sw0")
    for name in ("a", "b"):
        vptd.call("port.add", switch="sw0", name=name, kind="app")
    with (
        open_app(vptd.socket("a"), timeout=PATIENCE_S) as a,
        open_app(vptd.socket("b"), timeout=PATIENCE_S) as b,
    ):
        exchange(a, b, 100, b"first")
        for round_ in (b"kill1", b"kill2"):
            vptd.kill()
            vptd.start()
            assert names(vptd) == {"a": "up", "b": "up"}
            exchange(a, b, 100, round_)
        vptd.stop()
        vptd.start()
        exchange(a, b, 100, b"stop")
        keeper = vptd.keeper()
        os.kill(keeper, signal.SIGKILL)
        until(lambda: has_both_but(keeper), "another keeper that has both ports")
        exchange(a, b, 100, b"keeper")
        vptd.kill()
        vptd.start()
        exchange(a, b, 100, b"both")


def test_packets_sent_while_it_was_dead_arrive(vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    for name in ("a", "b"):
        vptd.call("port.add", switch="sw0", name=name, kind="app")
    with (
        open_app(vptd.socket("a"), timeout=PATIENCE_S) as a,
        open_app(vptd.socket("b"), timeout=PATIENCE_S) as b,
    ):
        exchange(a, b, 1, b"before")
        vptd.kill()
        frames = [
            (b"\xff" * 6 + b"\x52\x54\0\0\0\1\x88\xb5" + bytes([i])).ljust(60, b"\0") for i in range(100)
        ]
        for frame in frames:
            assert a.app.send(0, frame)
        vptd.start()
        for frame in frames:
            assert until(lambda: b.app.recv(0) or (b.app.wait(0, timeout=0.1) and None), "a packet") == frame
        assert b.app.recv(0) is None


def test_an_app_that_ends_frees_its_port(vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="a", kind="app")
    with open_app(vptd.socket("a"), timeout=PATIENCE_S):
        assert names(vptd) == {"a": "up"}
        with pytest.raises(ConflictError, match=f"process {os.getpid()}"):
            open_app(vptd.socket("a"))
    until(lambda: names(vptd) == {"a": "down"}, "the port to be down")
    with open_app(vptd.socket("a"), timeout=PATIENCE_S):
        assert names(vptd) == {"a": "up"}


def test_a_port_that_can_not_come_back_is_said_to_have_failed(vptd: Vptd) -> None:
    """And the others come back all the same."""
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="a", kind="vhost-user")
    vptd.call("port.add", switch="sw0", name="b", kind="vhost-user", socket=str(vptd.folder / "b.sock"))
    vptd.stop()
    (vptd.folder / "b.sock").write_text("taken meanwhile")
    vptd.start()
    assert names(vptd) == {"a": "down", "b": "failed"}
    reason = vptd.call("port.show", name="b")["reason"]
    assert "not a socket" in reason
    with pytest.raises(ConflictError, match="not there"):
        vptd.call("port.set", name="b", link="down")
    vptd.call("port.del", name="b")
    assert (vptd.folder / "b.sock").read_text() == "taken meanwhile"


def test_a_failed_port_that_was_to_go_is_back_as_failed_when_the_rest_fails(vptd: Vptd) -> None:
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="b", kind="vhost-user", socket=str(vptd.folder / "b.sock"))
    vptd.stop()
    (vptd.folder / "b.sock").write_text("taken meanwhile")
    vptd.start()
    assert names(vptd) == {"b": "failed"}
    steps = [{"action": "del-port", "name": "b"}, {"action": "del-switch", "name": "none"}]
    with pytest.raises(
        NotFoundError, match="no switch 'none'; so all that was changed has been changed back"
    ):
        vptd.call("apply", steps=steps)
    assert names(vptd) == {"b": "failed"}


def test_what_only_the_keeper_knows_is_dropped(vptd: Vptd) -> None:
    """A port that a crash cut short between keeper and journal."""
    vptd.start()
    vptd.call("switch.add", name="sw0")
    vptd.call("port.add", switch="sw0", name="a", kind="app")
    vptd.kill()
    journal = json.loads(vptd.paths.journal.read_text())
    journal["ports"] = []
    vptd.paths.journal.write_text(json.dumps(journal))
    vptd.start()
    assert names(vptd) == {}
    assert not os.path.exists(vptd.socket("a"))
    vptd.call("port.add", switch="sw0", name="a", kind="app")


def test_without_keeper_ports_are_served_by_vptd_itself(vptd: Vptd) -> None:
    vptd.start("--no-keeper")
    assert vptd.call("daemon.status")["keeper"] is None
    vptd.call("switch.add", name="sw0")
    for name in ("a", "b"):
        vptd.call("port.add", switch="sw0", name=name, kind="app")
    with (
        open_app(vptd.socket("a"), timeout=PATIENCE_S) as a,
        open_app(vptd.socket("b"), timeout=PATIENCE_S) as b,
    ):
        exchange(a, b, 10, b"x")
    assert not vptd.paths.keeper_socket.exists()


# ---- what may be asked ----


def test_a_port_that_may_exist_is_not_another_vms(shared: Vptd) -> None:
    """Else a domain's clone starts with the port of the first, and waits for it forever."""
    new = {"switch": "own", "name": "mine", "kind": "null", "may_exist": True}
    shared.call("switch.add", name="own")
    shared.call("port.add", **new, owner="libvirt:system:1")
    for owner in ({"owner": "libvirt:system:1"}, {}):
        assert shared.call("port.add", **new, **owner)["owner"] == "libvirt:system:1"
    with pytest.raises(ExistsError, match="'mine' belongs to another VM, libvirt:system:1") as caught:
        shared.call("port.add", **new, owner="libvirt:system:2")
    assert "virsh domname" in str(caught.value.hint)
    shared.call("port.add", **{**new, "name": "common"})
    assert shared.call("port.add", **{**new, "name": "common"}, owner="libvirt:system:2")["owner"] is None
    for name in ("mine", "common"):
        shared.call("port.del", name=name)
    shared.call("switch.del", name="own")


def test_verbs_are_idempotent_when_asked_to_be(shared: Vptd) -> None:
    assert shared.call("switch.add", name="i") == {"changed": True}
    with pytest.raises(ExistsError):
        shared.call("switch.add", name="i")
    assert shared.call("switch.add", name="i", may_exist=True) == {"changed": False}
    with pytest.raises(ExistsError, match="mac_entries is 4096, not 64"):
        shared.call("switch.add", name="i", may_exist=True, mac_entries=64)
    added = shared.call("port.add", switch="i", name="i1", kind="null")
    assert shared.call("port.add", switch="i", name="i1", kind="null", may_exist=True) == added
    with pytest.raises(ExistsError, match="kind is 'null', not 'app'"):
        shared.call("port.add", switch="i", name="i1", kind="app", may_exist=True)
    with pytest.raises(ConflictError, match="still has ports: i1"):
        shared.call("switch.del", name="i")
    assert shared.call("port.del", name="i1") == {"changed": True}
    assert shared.call("port.del", name="i1", if_exists=True) == {"changed": False}
    with pytest.raises(NotFoundError):
        shared.call("port.del", name="i1")
    assert shared.call("switch.del", name="i") == {"changed": True}
    assert shared.call("switch.del", name="i", if_exists=True) == {"changed": False}


def test_each_refusal_has_a_hint_and_changes_nothing(shared: Vptd) -> None:
    before, journal = shared.call("list"), shared.paths.journal.read_bytes()
    (shared.folder / "taken").write_text("precious")
    requests: list[tuple[type[VptError], str, dict[str, Any]]] = [
        (NotFoundError, "port.add", {"switch": "none", "name": "x", "kind": "null"}),
        (NotFoundError, "port.show", {"name": "none"}),
        (NotFoundError, "port.list", {"switch": "none"}),
        (NotFoundError, "port.set", {"name": "none", "link": "up"}),
        (NotFoundError, "switch.macs", {"name": "none"}),
        (NotFoundError, "switch.del", {"name": "none"}),
        (ExistsError, "switch.add", {"name": "lab"}),
        (ExistsError, "port.add", {"switch": "lab", "name": "lab", "kind": "null"}),
        (UsageError, "port.add", {"switch": "lab", "name": "x", "kind": "null", "mac": "03:00:00:00:00:01"}),
        (
            UsageError,
            "port.add",
            {"switch": "lab", "name": "x", "kind": "app", "socket": "/tmp/" + "x" * 108},
        ),
        (
            UsageError,
            "port.add",
            {"switch": "lab", "name": "x", "kind": "vhost-user", "socket": "/tmp/" + "x" * 108},
        ),
        (
            NotFoundError,
            "port.add",
            {"switch": "lab", "name": "x", "kind": "app", "socket": "/no/such/folder/s"},
        ),
        (
            ExistsError,
            "port.add",
            {"switch": "lab", "name": "x", "kind": "app", "socket": f"{shared.folder}/taken"},
        ),
        (
            ExistsError,
            "port.add",
            {"switch": "lab", "name": "x", "kind": "vhost-user", "socket": f"{shared.folder}/taken"},
        ),
        (UsageError, "port.add", {"switch": "lab", "name": "sixteen-letters-", "kind": "tap"}),
        (UsageError, "port.add", {"switch": "lab", "name": "x", "kind": "passthrough", "pairs": 33}),
        (VptError, "port.add", {"switch": "lab", "name": "x", "kind": "null", "worker": 7}),
    ]
    # What adding a port would come to is known beforehand, but for what only the kernel can say of a tap.
    requests += [
        (kind, "port.check", params)
        for kind, method, params in requests
        if method == "port.add" and params["kind"] != "tap"
    ]
    for kind, method, params in requests:
        with pytest.raises(kind) as caught:
            shared.call(method, **params)
        hint = caught.value.hint or ""
        assert hint or kind is VptError, f"{method} {params}: {caught.value}"
        others = hint.replace(f"vpt --runtime-dir {shared.paths.runtime} ", "")
        assert "vpt " not in others, f"may ask another vptd: {hint}"
    assert shared.call("list") == before
    assert shared.paths.journal.read_bytes() == journal
    assert (shared.folder / "taken").read_text() == "precious"
    assert shared.call("port.check", switch="lab", name="x", kind="app") == {"changed": False}
    assert shared.call("list") == before


def test_a_socket_path_belongs_to_one_port(shared: Vptd) -> None:
    path = str(shared.folder / "one.sock")
    shared.call("port.add", switch="lab", name="one", kind="vhost-user", socket=path)
    with pytest.raises(ExistsError, match="port 'one' uses"):
        shared.call("port.add", switch="lab", name="two", kind="app", socket=path)
    shared.call("port.del", name="one")
    assert not os.path.exists(path)


@pytest.mark.parametrize("kind", ["passthrough", "app", "vhost-user"])
def test_a_ports_socket_has_the_permissions_asked_for(shared: Vptd, kind: str) -> None:
    shared.call("port.add", switch="lab", name="perm", kind=kind, socket_mode="0640")
    assert stat.S_IMODE(os.stat(shared.socket("perm")).st_mode) == 0o640
    shared.call("port.del", name="perm")


def test_a_hundred_ports_leave_no_descriptor_and_no_file(shared: Vptd) -> None:
    kinds = ["passthrough", "app", "vhost-user", "null"]

    def cycle() -> None:
        for i in range(20):
            shared.call("port.add", switch="lab", name=f"many{i}", kind=kinds[i % 4])
        for i in range(20):
            shared.call("port.del", name=f"many{i}")

    def open_files() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    cycle()
    assert shared.process is not None
    pids = (shared.process.pid, shared.keeper())
    before = open_files()
    for _ in range(4):
        cycle()
    # vptd closes a connection a moment after its client.
    until(lambda: all(now <= then for now, then in zip(open_files(), before, strict=True)), "what was opened")
    assert list(shared.paths.ports.iterdir()) == []


def test_a_tap_port_has_an_interface_or_says_what_is_missing(shared: Vptd, need: Any) -> None:
    need("/dev/net/tun")
    try:
        shared.call("port.add", switch="lab", name="vpttap0", kind="tap")
    except MissingError as error:
        pytest.skip(f"no tap here: {error}")
    assert os.path.exists("/sys/class/net/vpttap0")
    assert names(shared)["vpttap0"] == "up"
    with pytest.raises(ExistsError):
        shared.call("port.add", switch="lab", name="another", kind="tap", ifname="vpttap0")
    shared.call("port.del", name="vpttap0")
    until(lambda: not os.path.exists("/sys/class/net/vpttap0"), "the interface to go")


def test_counters_are_the_same_asked_for_and_read(shared: Vptd) -> None:
    shared.call("port.add", switch="lab", name="c1", kind="app")
    shared.call("port.add", switch="lab", name="c2", kind="app")
    with (
        open_app(shared.socket("c1"), timeout=PATIENCE_S) as a,
        open_app(shared.socket("c2"), timeout=PATIENCE_S) as b,
    ):
        exchange(a, b, 10, b"x")
        learned = shared.call("switch.macs", name="lab")["macs"]
        assert [(entry["mac"], entry["port"]) for entry in learned] == [("52:54:00:00:00:01", "c1")]
    until(lambda: not shared.call("switch.macs", name="lab")["macs"], "what was heard of one that left to go")
    asked = shared.call("stats")
    assert asked["ports"]["c1"]["tx_packets"] == 10
    assert asked["ports"]["c2"]["rx_packets"] == 10
    with StatsReader(asked["path"]) as reader:
        read = {queue.port: queue.counters for queue in reader.read().queues}
    assert read["c1"]["tx_packets"] == 10
    assert shared.call("port.show", name="c2")["counters"]["copies"] == 10
    for name in ("c1", "c2"):
        shared.call("port.del", name=name)


def test_the_table_of_methods_describes_itself(shared: Vptd) -> None:
    table = {method["name"]: method for method in shared.call("daemon.methods")["methods"]}
    assert {"daemon.status", "switch.add", "port.add", "port.set", "list", "stats"} <= set(table)
    for method in table.values():
        assert method["doc"].endswith(".")
        assert method["params"]["additionalProperties"] is False
