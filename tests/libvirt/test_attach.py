# SPDX-License-Identifier: BSD-2-Clause
"""vpt attach and detach on running domains of a real libvirt, with traffic before, during and after."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.leaks import open_things
from support.libvirt import NEEDS, DomainGuest, Libvirt, Vpt, lose_device, may_reset, ok, qemu_pid, qmp
from support.waiting import until
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.errors import ConflictError, NotFoundError
from vpt.guest import Guest, ping
from vpt.libvirt_plugin import _domain
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin.attach import Request, attach
from vpt.libvirt_plugin.metadata import left_in, plugs_in
from vpt.libvirt_plugin.rules import alias_in
from vpt.libvirt_plugin.xml import alias_of

pytestmark = [pytest.mark.vm, pytest.mark.needs(*NEEDS)]


def network(guest: Guest, number: int, count: int = 1) -> None:
    """Give the guest's newest interface an address, once it is there."""
    find = "ls -d /sys/class/net/eth* 2>/dev/null | sort | tail -1"
    guest.wait_until(f"[ $(ls -d /sys/class/net/eth* 2>/dev/null | wc -l) = {count} ]", 20, "a new interface")
    guest.run(f"dev=$(basename $({find})); ip addr add 10.7.0.{number}/24 dev $dev; ip link set $dev up")
    guest.wait_until(f"grep -q 1 $({find})/carrier", 10, "a carrier")


def lost(guest: Guest, number: int, count: int = 10) -> int:
    return ping(guest, f"10.7.0.{number}", count=count).lost


@pytest.mark.usefixtures("untouched")
def test_both_kinds_live_with_traffic_before_during_and_after(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client
) -> None:
    left, right = guests.left, guests.right
    out = ok(vpt("attach", "left", "--switch", "sw0", "--live"))
    assert "plugs left into sw0: live" in out
    ok(vpt("attach", "right", "--switch", "sw0", "--kind", "passthrough"))
    network(left, 1)
    network(right, 2)
    assert lost(left, 2) == 0
    states = {port["name"]: port["state"] for port in vptd.call("port.list")["ports"]}
    assert states == {"left": "up", "right": "up"}
    assert [plug.switch for plug in plugs_in(right.domain.XMLDesc())] == ["sw0"]

    # A second device comes and goes while the first works.
    during = left.spawn("ping -c 2000 -i 0.02 -W 5 10.7.0.2")
    more = ("--kind", "passthrough", "--port", "extra", "--json")
    code, out, _ = vpt("attach", "right", "--switch", "sw0", *more)
    assert code == 0
    assert json.loads(out)["where"] == ["live"]
    right.wait_until("[ -e /sys/class/net/eth1 ]", 20, "the second interface")
    code, _, err = vpt("detach", "right")
    assert (code, "several vpt ports" in err) == (2, True)
    ok(vpt("detach", "right", "extra"))
    right.wait_until("[ ! -e /sys/class/net/eth1 ]", 10, "the second interface to go")
    left.run("killall -INT ping")
    during.wait(10, check=False)
    answered = [int(number) for number in re.findall(r"seq=(\d+)", during.output())]
    assert answered
    assert answered == list(range(len(answered))), "no answer is missing before the last one"

    assert lost(right, 1) == 0
    ok(vpt("detach", "left"))
    ok(vpt("detach", "right"))
    left.wait_until("[ ! -e /sys/class/net/eth0 ]", 10, "the interface to go")


def traces(guest: DomainGuest) -> dict[str, object]:
    """What of ours is in QEMU and in the guest, and QEMU's file descriptors."""
    devices, chardevs = (
        [item[key] for item in qmp(guest, command, **arguments)]
        for command, key, arguments in (
            ("qom-list", "name", {"path": "/machine/peripheral"}),
            ("query-chardev", "label", {}),
        )
    )
    pid = qemu_pid(guest)
    return {
        "devices": sorted(devices),
        "chardevs": sorted(chardevs),
        "pci": guest.run("ls /sys/bus/pci/devices").output,
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "maps": sum("memfd:" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines()),
    }


@pytest.mark.usefixtures("untouched")
def test_twenty_times_leave_nothing(guests: SimpleNamespace, vpt: Vpt, vptd: Client, runtime: Path) -> None:
    """No descriptor, mapping, device, chardev, file or port: in vptd and libvirt (both in this process), in
    QEMU, in the guest. The first round may open what stays open: libvirt's, the allocator's.

    All the while both have another port, over which they talk: without KVM, QEMU calls into freed memory
    when an eventfd of it gets the number of one that a passthrough port had, unless that was mended.
    """

    def round_(name: str, kind: str) -> None:
        ok(vpt("attach", name, "--switch", "sw0", "--kind", kind, "--port", "now"))
        getattr(guests, name).wait_until("[ -e /sys/class/net/eth1 ]", 20, "the interface")
        assert lost(guests.left, 2, count=3) == 0
        ok(vpt("detach", name, "now"))
        getattr(guests, name).wait_until("[ ! -e /sys/class/net/eth1 ]", 20, "the interface to go")
        assert lost(guests.left, 2, count=3) == 0

    def everything() -> dict[str, object]:
        gc.collect()
        return {"left": traces(guests.left), "right": traces(guests.right)} | {
            "here": open_things(),
            "files": list((runtime / "ports").iterdir()),
            "ports": vptd.call("port.list")["ports"],
        }

    for number, name in enumerate(("left", "right"), start=1):
        ok(vpt("attach", name, "--switch", "sw0"))
        network(getattr(guests, name), number)
    kinds = (("left", "vhost-user"), ("right", "passthrough"))
    for kind in kinds:
        round_(*kind)
    before = everything()
    for number in range(20):
        round_(*kinds[number % 2])
    until(
        lambda: everything() == before,
        lambda: f"all to be gone:\n{before} was there before,\n{everything()} now",
    )
    for name in ("left", "right"):
        ok(vpt("detach", name))
    ok(vpt("attach", "right", "--switch", "sw0"))
    ok(vpt("detach", "right"))


@pytest.mark.usefixtures("untouched")
def test_a_port_of_the_configuration_is_plugged_into_the_running_domain_as_it_is(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client
) -> None:
    """It is one port, and asking again changes nothing; other settings are no silent change."""
    named = ("left", "--switch", "sw0", "--port", "twice")
    ok(vpt("attach", *named, "--config"))
    (there,) = vptd.call("port.list")["ports"]
    assert "plugs left" in ok(vpt("attach", *named, "--live"))
    in_live, in_config = (plugs_in(guests.left.domain.XMLDesc(flags)) for flags in (0, 2))
    assert in_live == in_config
    assert [port["mac"] for port in vptd.call("port.list")["ports"]] == [there["mac"]]
    before = guests.left.domain.XMLDesc(), guests.left.domain.XMLDesc(2)
    assert "already plugs left into sw0: live and config" in ok(vpt("attach", *named, "--live", "--config"))
    assert (guests.left.domain.XMLDesc(), guests.left.domain.XMLDesc(2)) == before
    for other in (("--mac", "52:54:00:00:00:77"), ("--kind", "passthrough")):
        code, _, err = vpt("attach", *named, *other)
        assert (code, "with other settings" in err, "--port" in err) == (1, True, True)
    ok(vpt("detach", "left", "--live"))
    ok(vpt("attach", *named, "--live"))
    ok(vpt("detach", "left"))
    guests.left.wait_until("[ ! -e /sys/class/net/eth0 ]", 10, "the interface to go")


@pytest.mark.usefixtures("untouched")
def test_a_port_of_somebody_else_is_refused_with_words_of_this_command(vpt: Vpt, vptd: Client) -> None:
    vptd.call("port.add", name="theirs", switch="sw0", kind="vhost-user", owner="qmp:/vm7")
    code, _, err = vpt("attach", "left", "--switch", "sw0", "--port", "theirs")
    assert (code, "--port" in err, "--may-exist" in err) == (1, True, False)
    vptd.call("port.del", name="theirs")
    code, _, err = vpt("attach", "left", "--switch", "sw0", "--mtu", "1")
    assert (code, "vpt attach --help" in err) == (2, True)


@pytest.mark.usefixtures("untouched")
def test_print_diff_does_nothing(vpt: Vpt) -> None:
    asked = ("--switch", "sw0", "--kind", "passthrough", "--config", "--print-diff")
    out = ok(vpt("attach", "right", *asked, "--mac", "52:54:00:00:00:07"))
    assert "+    <shmem name='ua-vpt-right'>" in out
    as_json = json.loads(ok(vpt("attach", "right", *asked, "--mac", "52:54:00:00:00:07", "--json")))
    assert as_json == {"schema": "vpt.attach-diff/v1", "vm": "right", "diff": out}


def test_what_a_configuration_got_for_a_port_goes_with_it(libvirt: Libvirt, vpt: Vpt) -> None:
    """libvirt keeps the aliases by which it is found: it drops those with other characters than its own."""
    guest = libvirt.define("asleep", machine="q35")
    try:
        before = re.sub(r"<metadata/?>|</metadata>", "", guest.domain.XMLDesc(2)).split()
        for name in ("web.1_a", "web-2"):
            ok(
                vpt(
                    "attach", "asleep", "--switch", "sw0", "--kind", "passthrough", "--port", name, "--config"
                )
            )
        xml = guest.domain.XMLDesc(2)
        assert ("pcie-to-pci-bridge" in xml, alias_in(xml, "web.1_a")) == (True, True)
        for name in ("web.1_a", "web-2"):
            ok(vpt("detach", "asleep", name))
        assert re.sub(r"<metadata/?>|</metadata>", "", guest.domain.XMLDesc(2)).split() == before
    finally:
        libvirt.remove(guest)


def test_a_guest_that_does_not_let_go_keeps_its_port(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt reports this as done."""
    deaf = libvirt.define("deaf", append="acpi=off")
    try:
        deaf.start()
        ok(vpt("attach", "deaf", "--switch", "sw0", "--kind", "passthrough"))
        monkeypatch.setattr(_domain, "_DEVICE_S", 1.0)
        code, _, err = vpt("detach", "deaf")
        assert (code, "deaf did not let go of deaf" in err) == (1, True)
        assert "shut it down after: vpt detach deaf deaf --connect " in err.partition("hint:")[2]
        assert [plug.name for plug in plugs_in(deaf.domain.XMLDesc())] == ["deaf"]
        assert vptd.call("port.show", name="deaf")["socket"]
    finally:
        libvirt.remove(deaf)
        vptd.call("port.del", name="deaf", if_exists=True)


@pytest.mark.parametrize("seen", [True, False])
def test_a_guest_that_lets_go_late_is_plugged_into_again(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """Without ACPI it never lets go; a reset of the machine does. seen: QEMU's descriptors can be looked at.

    What QEMU has left of the first port would be refused beside a vhost-user port.
    """
    if not seen:
        monkeypatch.setattr(Target, "_eventfds", lambda *_: [])
    late = may_reset(libvirt.define("late", append="acpi=off"), libvirt.connection)
    try:
        late.start()
        ok(vpt("attach", "late", "--switch", "sw0", "--kind", "passthrough", "--port", "p1"))
        monkeypatch.setattr(_domain, "_DEVICE_S", 1.0)
        assert vpt("detach", "late")[0] == 1
        late.domain.reset()
        until(lambda: not alias_in(late.domain.XMLDesc(), "p1"), "the device to go")
        assert late.domain.isActive()
        code, _, err = vpt("attach", "late", "--switch", "sw0", "--port", "p2")
        assert (code, "without KVM, QEMU could crash" in err) == (int(not seen), not seen)
        ok(vpt("detach", "late", "p1"))
        assert (plugs_in(late.domain.XMLDesc()) == [], "spent" in late.domain.XMLDesc()) == (
            not seen,
            not seen,
        )
        if seen:
            ok(vpt("attach", "late", "--switch", "sw0", "--port", "p3"))
            assert left_in(late.domain.XMLDesc()) == {}
    finally:
        libvirt.remove(late)
        for name in ("p1", "p2", "p3"):
            vptd.call("port.del", name=name, if_exists=True)


@pytest.mark.parametrize("config", [False, True], ids=["live", "live and config"])
def test_a_domain_that_ends_during_a_detach_is_said_to_have_ended(
    libvirt: Libvirt,
    vpt: Vpt,
    vptd: Client,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: bool,
) -> None:
    """`virsh destroy`, while the guest is waited for. The hint gets rid of the port."""
    guest = libvirt.define("brief")
    unplugged = guest.domain.XMLDesc(2)

    @contextmanager
    def ending(target: Target) -> Iterator[Callable[[Callable[[], bool]], bool]]:
        with changes(target) as changed:

            def destroy_and_wait(condition: Callable[[], bool]) -> bool:
                guest.domain.destroy()
                return changed(condition)

            yield destroy_and_wait

    changes = _domain._changes
    try:
        guest.start().wait_ready()
        ok(vpt("attach", "brief", "--switch", "sw0", "--live", *(["--config"] if config else [])))
        before = guest.domain.XMLDesc(2)
        with monkeypatch.context() as patch:
            patch.setattr(_domain, "_changes", ending)
            patch.setattr(_domain, "_DEVICE_S", 0.5)
            code, _, err = vpt("detach", "brief")
        assert (code, "brief ended while brief was taken out of it" in err) == (1, True), err
        assert guest.domain.XMLDesc(2) == before
        assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["brief"]
        if config:
            assert "vpt detach brief brief" in err
            ok(vpt("detach", "brief", "brief"))
            assert vptd.call("port.list")["ports"] == []
        else:
            assert f"vpt --runtime-dir {runtime} port del brief --if-exists" in err
        assert guest.domain.XMLDesc(2) == unplugged
    finally:
        libvirt.remove(guest)
        vptd.call("port.del", name="brief", if_exists=True)


@pytest.mark.usefixtures("untouched")
def test_detach_without_vptd_changes_nothing(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    ok(vpt("attach", "left", "--switch", "sw0"))
    before = guests.left.domain.XMLDesc()
    control = locate(runtime).control
    control.rename(control.with_suffix(".away"))
    code, _, err = vpt("detach", "left")
    control.with_suffix(".away").rename(control)
    assert (code, f"vpt --runtime-dir {runtime} daemon start" in err) == (1, True)
    assert guests.left.domain.XMLDesc() == before
    assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["left"]
    ok(vpt("detach", "left"))


@contextmanager
def taken_id(guest: DomainGuest, ident: str) -> Iterator[None]:
    """QEMU has a device of that id, which libvirt does not know of."""
    devices = partial(qmp, guest, "qom-list", path="/machine/peripheral")
    qmp(guest, "device_add", driver="virtio-rng-pci", id=ident)
    try:
        yield
    finally:
        qmp(guest, "device_del", id=ident)
        until(lambda: ident not in [item["name"] for item in devices()], f"{ident} to go")


@pytest.mark.usefixtures("untouched")
def test_what_fails_in_qemu_is_rolled_back(guests: SimpleNamespace, vpt: Vpt) -> None:
    """The device's id is taken in QEMU by something that libvirt does not know of: QEMU refuses it."""
    before = guests.left.domain.XMLDesc()
    with taken_id(guests.left, "ua-vpt-left"):
        code, _, err = vpt("attach", "left", "--switch", "sw0")
    assert code == 1
    assert "attach the device" in err
    assert guests.left.domain.XMLDesc() == before


@pytest.mark.usefixtures("untouched")
def test_a_port_whose_device_has_gone_can_be_plugged_in_again_and_detached(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client
) -> None:
    """As when the guest lets go of it after vpt detach has given up."""
    left, named = guests.left, ("left", "--switch", "sw0", "--port", "late")
    ok(vpt("attach", *named, "--live", "--config"))
    before = plugs_in(left.domain.XMLDesc())
    lose_device(left, "late")
    assert ") plugs left into sw0: live\n" in ok(vpt("attach", *named, "--live"))
    assert alias_in(left.domain.XMLDesc(), "late")
    assert plugs_in(left.domain.XMLDesc()) == before
    lose_device(left, "late")
    assert "live and config; the port is deleted" in ok(vpt("detach", "left"))
    assert plugs_in(left.domain.XMLDesc()) == []
    assert vptd.call("port.list")["ports"] == []


@pytest.mark.parametrize("kind", ["vhost-user", "passthrough"])
def test_detach_cleans_up_after_a_device_that_virsh_took_out_of_a_configuration(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, kind: str
) -> None:
    guest = libvirt.define("guest", machine="q35")
    before = guest.domain.XMLDesc(2)
    try:
        ok(vpt("attach", "guest", "--switch", "sw0", "--kind", kind))
        guest.domain.detachDeviceAlias(alias_of("guest"), 2)
        assert [plug.name for plug in plugs_in(guest.domain.XMLDesc(2))] == ["guest"]
        assert "config; the port is deleted" in ok(vpt("detach", "guest"))
        assert plugs_in(guest.domain.XMLDesc(2)) == []
        assert guest.domain.XMLDesc(2) == before
        assert vptd.call("port.list")["ports"] == []
    finally:
        libvirt.remove(guest)
        vptd.call("port.del", name="guest", if_exists=True)


@pytest.mark.usefixtures("untouched")
def test_what_fails_for_a_port_whose_device_has_gone_leaves_the_note_of_it(
    guests: SimpleNamespace, vpt: Vpt
) -> None:
    ok(vpt("attach", "left", "--switch", "sw0", "--live"))
    lose_device(guests.left, "left")
    before = guests.left.domain.XMLDesc()
    with taken_id(guests.left, "ua-vpt-left"):
        code, _, err = vpt("attach", "left", "--switch", "sw0", "--port", "left", "--live")
    assert (code, "attach the device" in err) == (1, True)
    assert guests.left.domain.XMLDesc() == before
    ok(vpt("detach", "left"))


def test_without_shared_memory_only_passthrough_goes_live(libvirt: Libvirt, vpt: Vpt, vptd: Client) -> None:
    guest = libvirt.define("private", shared=False)
    try:
        guest.start()
        code, _, err = vpt("attach", "private", "--switch", "sw0")
        assert (code, "memory is not shared" in err, "--config" in err) == (1, True, True)
        assert vptd.call("port.list")["ports"] == []
        before = guest.domain.XMLDesc(2)
        ok(vpt("attach", "private", "--switch", "sw0", "--config"))
        assert "<access mode='shared'/>" in guest.domain.XMLDesc(2)
        ok(vpt("detach", "private", "--config"))
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
    assert vptd.call("port.list")["ports"] == []


def test_four_at_once_are_all_kept(libvirt: Libvirt, vpt: Vpt, vptd: Client, runtime: Path) -> None:
    """Without taking turns, the last one's description of the domain wins, and names are chosen twice."""
    guest = libvirt.define("busy", machine="q35")
    before = guest.domain.XMLDesc(2)
    names = ["busy", "busy-2", "busy-3", "busy-4"]

    def one(_: int) -> None:
        request = Request(vm="busy", switch="sw0", kind="vhost-user", config=True)
        with Client(locate(runtime).control) as client:
            attach(libvirt.connection, client, request)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))
        assert sorted(plug.name for plug in plugs_in(guest.domain.XMLDesc(2))) == names
        for name in names:
            ok(vpt("detach", "busy", name))
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
    assert vptd.call("port.list")["ports"] == []


def test_a_port_leaves_a_configuration_without_vptd(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    """It is what the hook's error says, so that the domain starts all the same."""
    guest = libvirt.define("alone", machine="q35")
    before = guest.domain.XMLDesc(2)
    control = locate(runtime).control
    try:
        ok(vpt("attach", "alone", "--switch", "sw0"))
        control.rename(control.with_suffix(".away"))
        try:
            code, out, _ = vpt("detach", "alone", "alone", "--config")
        finally:
            control.with_suffix(".away").rename(control)
        assert (code, "deleted" in out) == (0, False)
        again = f"vpt --runtime-dir {runtime} port del alone"
        assert f"the port is still there: vptd does not run; once it does: {again}" in out
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
        vptd.call("port.del", name="alone", if_exists=True)


def test_a_port_that_was_not_made_for_the_domain_outlives_its_detach(
    libvirt: Libvirt, vpt: Vpt, vptd: Client
) -> None:
    """A topology's, for example, as it outlives the domain."""
    guest = libvirt.define("guest", machine="q35")
    before = guest.domain.XMLDesc(2)
    mac = "52:54:00:00:07:09"
    try:
        vptd.call("port.add", switch="sw0", name="common", kind="vhost-user", mac=mac)
        request = Request(
            vm="guest", switch="sw0", kind="vhost-user", port="common", settings={"mac": mac}, existing=True
        )
        assert attach(libvirt.connection, vptd, request).where == ("config",)
        assert "the port is still there: it was not made for guest" in ok(vpt("detach", "guest"))
        assert guest.domain.XMLDesc(2) == before
        assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["common"]
    finally:
        libvirt.remove(guest)
        vptd.call("port.del", name="common", if_exists=True)


@pytest.mark.usefixtures("untouched")
def test_a_port_made_by_hand_is_plugged_in_as_it_is_and_outlives_its_detach(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    """Where it is what was asked for, and nobody is plugged into it."""
    mac = "52:54:00:00:07:09"
    vptd.call("port.add", switch="sw0", name="common", kind="vhost-user", mac=mac)
    named = ("--switch", "sw0", "--port", "common")
    for other, says in (
        (("--kind", "passthrough"), "--kind vhost-user"),
        (("--mac", "52:54:00:00:00:77"), f"with other settings: mac {mac}"),
        (("--policy", "poll"), "with other settings: policy adaptive"),
    ):
        code, _, err = vpt("attach", "left", *named, *other)
        assert (code, says in err) == (1, True), err
    assert f"common (vhost-user, {mac}) plugs left into sw0: live" in ok(
        vpt("attach", "left", *named, "--mac", mac)
    )
    guests.left.wait_until("[ -e /sys/class/net/eth0 ]", 10, "the interface")
    guests.left.run("ip link set eth0 up")
    guests.left.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 10, "a carrier")
    code, _, err = vpt("attach", "right", *named)
    assert (code, "somebody is plugged into port common already" in err) == (1, True), err
    assert "the port is still there: it was not made for left" in ok(vpt("detach", "left"))
    (port,) = vptd.call("port.list")["ports"]
    assert (port["name"], port["owner"]) == ("common", None)
    vptd.call("port.del", name="common")
    vptd.call("port.add", switch="sw0", name="common", kind="passthrough")
    code, _, err = vpt("attach", "left", *named, "--kind", "passthrough")
    again = f"vpt --runtime-dir {runtime} port add sw0 common --kind passthrough --mac"
    assert (code, again in err) == (2, True), err
    vptd.call("port.del", name="common")
    guests.left.wait_until("[ ! -e /sys/class/net/eth0 ]", 10, "the interface to go")


def test_a_topology_plugs_in_no_port_of_another_vm_and_none_that_is_gone(
    libvirt: Libvirt, vptd: Client, runtime: Path
) -> None:
    guest = libvirt.define("guest")
    before = guest.domain.XMLDesc(2)
    try:
        vptd.call("port.add", switch="sw0", name="theirs", kind="vhost-user", owner="libvirt:system:1")
        request = Request(vm="guest", switch="sw0", kind="vhost-user", port="theirs", existing=True)
        with pytest.raises(ConflictError, match="made for another VM than guest"):
            attach(libvirt.connection, vptd, request)
        with pytest.raises(NotFoundError, match="no port 'gone'") as caught:
            attach(libvirt.connection, vptd, replace(request, port="gone"))
        assert caught.value.hint == f"see those that there are: vpt --runtime-dir {runtime} ls"
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
        vptd.call("port.del", name="theirs", if_exists=True)


def test_a_port_is_not_named_as_one_that_the_configuration_has_and_vptd_lacks(
    libvirt: Libvirt, vpt: Vpt, vptd: Client
) -> None:
    """The hook takes a stopped domain's ports down, and their names stay."""
    guest = libvirt.define("guest", machine="q35")
    try:
        ok(vpt("attach", "guest", "--switch", "sw0"))
        vptd.call("port.del", name="guest")
        assert ok(vpt("attach", "guest", "--switch", "sw0", "--config")).startswith("guest-2 (vhost-user, ")
        assert [plug.name for plug in plugs_in(guest.domain.XMLDesc(2))] == ["guest", "guest-2"]
        named = ("--switch", "sw0", "--port", "guest")
        assert "already plugs guest into sw0" in ok(vpt("attach", "guest", *named))
        assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["guest", "guest-2"]
    finally:
        libvirt.remove(guest)
        for name in ("guest", "guest-2"):
            vptd.call("port.del", name=name, if_exists=True)


def test_a_port_that_has_become_another_vms_is_neither_plugged_in_nor_deleted(
    libvirt: Libvirt, vpt: Vpt, vptd: Client
) -> None:
    """A stopped domain's port was taken down, and its name was free for others."""
    guest = libvirt.define("guest", machine="q35")
    before = guest.domain.XMLDesc(2)
    try:
        ok(vpt("attach", "guest", "--switch", "sw0"))
        noted = guest.domain.XMLDesc(2)
        vptd.call("port.del", name="guest")
        vptd.call("port.add", switch="sw0", name="guest", kind="vhost-user", owner="qmp:/vm7")
        code, _, err = vpt("attach", "guest", "--switch", "sw0", "--port", "guest")
        assert (code, "made for another VM" in err, "vpt detach guest guest" in err) == (1, True, True), err
        assert guest.domain.XMLDesc(2) == noted
        assert "the port is still there: it was not made for guest" in ok(vpt("detach", "guest", "guest"))
        assert guest.domain.XMLDesc(2) == before
        owners = {port["name"]: port["owner"] for port in vptd.call("port.list")["ports"]}
        assert owners["guest"] == "qmp:/vm7"
        ok(vpt("attach", "guest", "--switch", "sw0", "--port", "other"))
    finally:
        libvirt.remove(guest)
        for name in ("guest", "other"):
            vptd.call("port.del", name=name, if_exists=True)


def test_a_stopped_domain_starts_with_both_ports(libvirt: Libvirt, vpt: Vpt, vptd: Client) -> None:
    guest = libvirt.define("cold", machine="q35", shared=False)
    before = guest.domain.XMLDesc(2)
    try:
        code, _, err = vpt("attach", "cold", "--switch", "sw0", "--live")
        assert (code, "does not run" in err) == (1, True)
        ok(vpt("attach", "cold", "--switch", "sw0"))
        ok(vpt("attach", "cold", "--switch", "sw0", "--kind", "passthrough"))
        guest.start().wait_ready()
        guest.wait_until("[ -e /sys/class/net/eth1 ]", 20, "two interfaces")
        guest.run("ip link set eth0 up; ip link set eth1 up")
        guest.wait_until(
            "grep -q 1 /sys/class/net/eth0/carrier && grep -q 1 /sys/class/net/eth1/carrier", 10, "carriers"
        )
        guest.stop()
        ok(vpt("detach", "cold", "cold"))
        ok(vpt("detach", "cold"))
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
    assert vptd.call("port.list")["ports"] == []
