# SPDX-License-Identifier: BSD-2-Clause
"""vpt attach and detach on running domains of a real libvirt, with traffic before, during and after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.libvirt import NEEDS, DomainGuest, Libvirt, Vpt
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.guest import Guest, ping
from vpt.libvirt_plugin import attach, rules
from vpt.libvirt_plugin.xml import NAMESPACE, alias_of, plugs_in

pytestmark = [pytest.mark.vm, pytest.mark.needs(*NEEDS)]


@pytest.fixture(scope="module")
def guests(libvirt: Libvirt) -> Iterator[SimpleNamespace]:
    """Two running domains: "left" as QEMU's old machine, "right" as a PCI Express one."""
    left, right = libvirt.define("left"), libvirt.define("right", machine="q35")
    left.start(), right.start()
    yield SimpleNamespace(left=left.wait_ready(), right=right.wait_ready())
    libvirt.remove(left)
    libvirt.remove(right)


@pytest.fixture
def untouched(guests: SimpleNamespace, vptd: Client) -> Iterator[None]:
    """A test that ends with what it began with: no port, no device, the XML of before."""
    before = [live_xml(guest) for guest in (guests.left, guests.right)]
    yield
    ports = [port["name"] for port in vptd.call("port.list")["ports"]]
    after = [live_xml(guest) for guest in (guests.left, guests.right)]
    # One test that fails should not fail all the others.
    for guest in (guests.left, guests.right):
        for plug in plugs_in(guest.domain.XMLDesc()) if guest.domain.isActive() else ():
            guest.domain.detachDeviceAlias(alias_of(plug.name), 1)
            guest.domain.setMetadata(2, None, "vpt", NAMESPACE, 1)
            guest.wait_until("[ ! -e /sys/class/net/eth0 ]", 5, "the interface to go")
    for port in ports:
        vptd.call("port.del", name=port)
    assert ports == []
    assert after == before


def live_xml(guest: DomainGuest) -> str:
    """Without metadata: libvirt leaves an empty element, and we a mark where a passthrough port has been."""
    return re.sub("  <metadata/>\n|  <metadata>.*</metadata>\n", "", guest.domain.XMLDesc(), flags=re.DOTALL)


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
    code, out, err = vpt("attach", "left", "--switch", "sw0", "--live")
    assert (code, err) == (0, ""), out
    assert "plugs left into sw0: live" in out
    assert vpt("attach", "right", "--switch", "sw0", "--kind", "passthrough")[::2] == (0, "")
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
    assert vpt("detach", "right", "extra")[::2] == (0, "")
    right.wait_until("[ ! -e /sys/class/net/eth1 ]", 10, "the second interface to go")
    left.run("killall -INT ping")
    during.wait(10, check=False)
    answered = [int(number) for number in re.findall(r"seq=(\d+)", during.output())]
    assert answered
    assert answered == list(range(len(answered))), "no answer is missing before the last one"

    assert lost(right, 1) == 0
    assert vpt("detach", "left")[::2] == (0, "")
    assert vpt("detach", "right")[::2] == (0, "")
    left.wait_until("[ ! -e /sys/class/net/eth0 ]", 10, "the interface to go")


@pytest.mark.usefixtures("untouched")
def test_again_and_again_leaves_nothing(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    for round_ in range(8):
        name, kind = (("left", "vhost-user"), ("right", "passthrough"))[round_ % 2]
        assert vpt("attach", name, "--switch", "sw0", "--kind", kind)[::2] == (0, "")
        getattr(guests, name).wait_until("[ -e /sys/class/net/eth0 ]", 20, "the interface")
        assert vpt("detach", name)[::2] == (0, "")
    code, _, err = vpt("attach", "right", "--switch", "sw0")
    assert (code, "without KVM, QEMU would crash" in err) == (1, True)
    assert list((runtime / "ports").iterdir()) == []


@pytest.mark.usefixtures("untouched")
def test_print_diff_does_nothing(vpt: Vpt) -> None:
    code, out, _ = vpt(
        "attach", "right", "--switch", "sw0", "--kind", "passthrough", "--config", "--print-diff"
    )
    assert code == 0
    assert "+    <shmem name='ua-vpt-right'>" in out


@pytest.mark.usefixtures("untouched")
def test_a_paused_domain_is_refused(guests: SimpleNamespace, vpt: Vpt) -> None:
    guests.left.domain.suspend()
    try:
        code, _, err = vpt("attach", "left", "--switch", "sw0")
    finally:
        guests.left.domain.resume()
    assert code == 1
    assert "left is paused" in err
    assert "virsh resume left" in err


def test_a_guest_that_does_not_let_go_keeps_its_port(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt reports this as done."""
    deaf = libvirt.define("deaf", append="acpi=off")
    try:
        deaf.start()
        assert vpt("attach", "deaf", "--switch", "sw0", "--kind", "passthrough")[::2] == (0, "")
        monkeypatch.setattr(attach, "_DEVICE_S", 1.0)
        code, _, err = vpt("detach", "deaf")
        assert (code, "deaf did not let go of deaf" in err, "hint:" in err) == (1, True, True)
        assert [plug.name for plug in plugs_in(deaf.domain.XMLDesc())] == ["deaf"]
        assert vptd.call("port.show", name="deaf")["socket"]
    finally:
        libvirt.remove(deaf)
        vptd.call("port.del", name="deaf", if_exists=True)


REFUSED = [
    (("attach", "nosuch", "--switch", "sw0"), 1, "no domain 'nosuch'"),
    (("attach", "left", "--switch", "nosuch"), 1, "no switch 'nosuch'"),
    (("attach", "left", "--switch", "sw0", "--port", "x" * 32), 2, "name"),
    (("attach", "left", "--switch", "sw0", "--mac", "01:00:00:00:00:01"), 2, "multicast"),
    (("attach", "left", "--switch", "sw0", "--port", "sw0"), 1, "there is a switch 'sw0' already"),
    (("attach", "right", "--switch", "sw0", "--kind", "passthrough", "--slots", "4096"), 1, "do not fit"),
    (("detach", "left"), 1, "no vpt port"),
    (("detach", "left", "nosuch"), 1, "no port 'nosuch'"),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("command", "expected", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_can_not_be_is_said_in_one_line(
    vpt: Vpt, command: tuple[str, ...], expected: int, message: str
) -> None:
    code, out, err = vpt(*command)
    assert (code, out) == (expected, ""), err
    assert message in err
    assert err.count("error:") == 1


@pytest.mark.usefixtures("untouched")
def test_no_vptd_no_libvirt(vpt: Vpt, tmp_path: Path) -> None:
    code, _, err = vpt("attach", "left", "--switch", "sw0", runtime_dir=tmp_path)
    assert (code, "vpt daemon start" in err) == (1, True)
    nowhere = f"qemu+unix:///system?socket={tmp_path}/nobody"
    code, _, err = vpt("attach", "left", "--switch", "sw0", uri=nowhere)
    assert (code, "no libvirt at" in err, "hint:" in err) == (3, True, True)


@pytest.mark.usefixtures("untouched")
def test_a_file_at_the_sockets_path_stays(vpt: Vpt, runtime: Path) -> None:
    taken = runtime / "ports" / "left.sock"
    taken.write_text("not ours")
    code, _, err = vpt("attach", "left", "--switch", "sw0")
    assert (code, "exists and is not a socket" in err) == (1, True)
    assert taken.read_text() == "not ours"
    taken.unlink()


@pytest.mark.usefixtures("untouched")
def test_detach_without_vptd_changes_nothing(
    guests: SimpleNamespace, vpt: Vpt, vptd: Client, runtime: Path
) -> None:
    assert vpt("attach", "left", "--switch", "sw0")[::2] == (0, "")
    before = guests.left.domain.XMLDesc()
    control = locate(runtime).control
    control.rename(control.with_suffix(".away"))
    code, _, err = vpt("detach", "left")
    control.with_suffix(".away").rename(control)
    assert (code, "vpt daemon start" in err) == (1, True)
    assert guests.left.domain.XMLDesc() == before
    assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["left"]
    assert vpt("detach", "left")[::2] == (0, "")


@pytest.mark.usefixtures("untouched")
def test_what_fails_in_qemu_is_rolled_back(guests: SimpleNamespace, vpt: Vpt, libvirt: Libvirt) -> None:
    """The device's id is taken in QEMU by something that libvirt does not know of: QEMU refuses it."""
    before = guests.left.domain.XMLDesc()
    monitor(libvirt, "left", "device_add virtio-rng-pci,id=ua-vpt-left")
    try:
        code, _, err = vpt("attach", "left", "--switch", "sw0")
    finally:
        monitor(libvirt, "left", "device_del ua-vpt-left")
    assert code == 1
    assert "attach the device" in err
    assert guests.left.domain.XMLDesc() == before


def monitor(libvirt: Libvirt, name: str, line: str) -> None:
    import libvirt_qemu

    domain = libvirt.connection.lookupByName(name)
    assert not libvirt_qemu.qemuMonitorCommand(domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)


def test_a_domain_undefined_meanwhile_does_not_come_back(
    libvirt: Libvirt, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is faster, between our look and our change."""
    guest = libvirt.define("brief")

    def undefine(_xml: str) -> None:
        if "brief" in [domain.name() for domain in libvirt.connection.listAllDomains()]:
            guest.domain.undefine()

    monkeypatch.setattr(rules, "validate", undefine)
    code, _, err = vpt("attach", "brief", "--switch", "sw0")
    assert (code, "brief went away" in err) == (1, True), err
    assert "brief" not in [domain.name() for domain in libvirt.connection.listAllDomains()]
    assert vptd.call("port.list")["ports"] == []


def test_without_shared_memory_only_passthrough_goes_live(libvirt: Libvirt, vpt: Vpt, vptd: Client) -> None:
    guest = libvirt.define("private", shared=False)
    try:
        guest.start()
        code, _, err = vpt("attach", "private", "--switch", "sw0")
        assert (code, "memory is not shared" in err, "--config" in err) == (1, True, True)
        assert vptd.call("port.list")["ports"] == []
        before = guest.domain.XMLDesc(2)
        assert vpt("attach", "private", "--switch", "sw0", "--config")[::2] == (0, "")
        assert "<access mode='shared'/>" in guest.domain.XMLDesc(2)
        assert vpt("detach", "private", "--config")[::2] == (0, "")
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
    assert vptd.call("port.list")["ports"] == []


def test_a_stopped_domain_starts_with_both_ports(libvirt: Libvirt, vpt: Vpt, vptd: Client) -> None:
    guest = libvirt.define("cold", machine="q35", shared=False)
    before = guest.domain.XMLDesc(2)
    try:
        code, _, err = vpt("attach", "cold", "--switch", "sw0", "--live")
        assert (code, "does not run" in err) == (1, True)
        assert vpt("attach", "cold", "--switch", "sw0")[::2] == (0, "")
        assert vpt("attach", "cold", "--switch", "sw0", "--kind", "passthrough")[::2] == (0, "")
        guest.start().wait_ready()
        guest.wait_until("[ -e /sys/class/net/eth1 ]", 20, "two interfaces")
        guest.run("ip link set eth0 up; ip link set eth1 up")
        guest.wait_until(
            "grep -q 1 /sys/class/net/eth0/carrier && grep -q 1 /sys/class/net/eth1/carrier", 10, "carriers"
        )
        guest.stop()
        assert vpt("detach", "cold", "cold")[::2] == (0, "")
        assert vpt("detach", "cold")[::2] == (0, "")
        assert guest.domain.XMLDesc(2) == before
    finally:
        libvirt.remove(guest)
    assert vptd.call("port.list")["ports"] == []
