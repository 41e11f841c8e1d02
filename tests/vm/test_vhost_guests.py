# SPDX-License-Identifier: BSD-2-Clause
"""Guests on vhost-user ports, stock QEMU, the kernel's virtio-net: offloads that differ, and reboots (L3).

Each device of vm2 has another set of offloads, and an address in a network of its own, in which vm1 is, too.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import pcapng
from support.leaks import open_fds
from support.waiting import until
from vpt.daemon.client import Client
from vpt.daemon.runtime import RuntimePaths
from vpt.guest import Guest, ping, tcp_file
from vpt.qemu import VhostUser

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

MACS = {"vm1": "52:54:00:76:70:11", "vm2": "52:54:00:76:70:12"}
SEGMENTS = ("tso4", "tso6", "ecn", "ufo")
NO_SEGMENTS = ",".join(f"{side}_{what}=off" for side in ("guest", "host") for what in SEGMENTS)
LESS = {
    "no segmentation": NO_SEGMENTS,
    "nothing": f"csum=off,guest_csum=off,{NO_SEGMENTS}",
    "no checksum": "csum=off,guest_csum=off",  # Linux accepts the segmentation that needs it all the same
}
MIB = 1
WHOLE = 3000  # bytes of a packet: twice what one without segmentation offload can carry
REBOOTS = 2
REBOOT_S = 150.0  # an emulated guest on a host with other things to do
PATIENCE_S = 60.0
CALM = 100  # looks, up to 10 ms apart


def bring_up(guest: Guest, number: int, networks: int = 1) -> None:
    """networks: each by a device of its own, as far as the guest has one."""
    for network in range(networks):
        dev = f"eth{network if number == 2 else 0}"
        guest.run(
            f"cd /proc/sys/net; echo 1 >ipv4/conf/{dev}/arp_ignore; echo 0 >ipv6/conf/{dev}/accept_dad; "
            f"ip addr add 10.0.{network}.{number}/24 dev {dev} && ip link set {dev} up && "
            f"ip addr add fd00:{network}::{number}/64 dev {dev}"
        )
        guest.wait_until(f"grep -q 1 /sys/class/net/{dev}/carrier", 20, "a carrier")


def port_of(offloads: str) -> str:
    """Of vm2."""
    return "vm2-" + offloads.replace(" ", "-")


@pytest.fixture(scope="module")
def guests(paths: RuntimePaths, boot: Callable[..., Guest]) -> SimpleNamespace:
    ports = dict(MACS) | {port_of(less): f"52:54:00:76:70:2{n}" for n, less in enumerate(LESS)}
    with Client(paths.control) as vptd:
        vptd.call("switch.add", name="sw0")
        for name, mac in ports.items():
            vptd.call("port.add", name=name, switch="sw0", kind="vhost-user", mac=mac)

    def nic(name: str, properties: str = "") -> VhostUser:
        return VhostUser(paths.port_socket(name), ports[name], properties=properties)

    found = {
        "vm1": boot("vm1", nic("vm1")),
        "vm2": boot("vm2", nic("vm2"), *(nic(port_of(less), how) for less, how in LESS.items())),
    }
    for number, guest in enumerate(found.values(), 1):
        guest.wait_ready()
        bring_up(guest, number, 1 + len(LESS))
    return SimpleNamespace(**found)


def show(paths: RuntimePaths, name: str) -> dict[str, object]:
    with Client(paths.control) as vptd:
        return dict(vptd.call("port.show", name=name))


def settled_fds(pid: int) -> int:
    """How many there are once that stays the same for a second: connections end, and QEMU swaps eventfds."""
    looks: list[int] = []

    def still() -> bool:
        looks.append(len(open_fds(pid)))
        return len(looks) > CALM and len(set(looks[-CALM:])) == 1

    until(still, "vptd's open files to stay the same")
    return looks[-1]


def counters(paths: RuntimePaths, name: str) -> Counter[str]:
    found = show(paths, name)["counters"]
    assert isinstance(found, dict)
    return Counter(found)


@contextmanager
def captured(paths: RuntimePaths, *arguments: str) -> Iterator[Callable[[], bytes]]:
    """A `vpt capture` from here on; called, it is ended, and gives what it wrote."""
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(paths.runtime), "capture", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as job:

        def end() -> bytes:
            job.send_signal(signal.SIGINT)
            return job.communicate(timeout=PATIENCE_S)[0]

        with Client(paths.control) as vptd:
            until(lambda: vptd.call("capture.list")["captures"], "the capture to have begun")
        try:
            yield end
        finally:
            job.kill()


def bad_packets(guest: Guest) -> int:
    """Those whose headers or checksums its kernel has found wrong. TCP would send them again, and hide it."""
    lines = guest.run("cat /proc/net/snmp /proc/net/netstat").output.split("\n")
    pairs = zip(lines[::2], lines[1::2], strict=False)
    found = [dict(zip(names.split(), values.split(), strict=True)) for names, values in pairs]
    return sum(int(line.get(name, 0)) for line in found for name in ("InCsumErrors", "InHdrErrors"))


@pytest.mark.parametrize("ip", ["10.0.{}.{}", "fd00:{}::{}"], ids=["IPv4", "IPv6"])
def test_offloads_that_both_have_travel(paths: RuntimePaths, guests: SimpleNamespace, ip: str) -> None:
    """How often TCP has more than one segment to send depends on the load; that it ever has, does not."""
    before = counters(paths, "vm2")
    with captured(paths, "vm2", "--direction", "out", "--filter", f"greater {WHOLE}") as large:
        assert tcp_file(guests.vm1, guests.vm2, ip.format(0, 2), mib=MIB).sha256_ok
        assert pcapng.packets(large())
    got = counters(paths, "vm2") - before
    assert got["rx_sw_gso"] == got["rx_sw_csum"] == 0


@pytest.mark.parametrize("ip", ["10.0.{}.{}", "fd00:{}::{}"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("less", LESS)
def test_offloads_that_only_one_has_are_done_in_software(
    paths: RuntimePaths, guests: SimpleNamespace, less: str, ip: str
) -> None:
    """Between two kernels, each of which checks what it gets; and back, where there is nothing to be done."""
    network = 1 + list(LESS).index(less)
    before = counters(paths, port_of(less))
    assert tcp_file(guests.vm1, guests.vm2, ip.format(network, 2), mib=MIB).sha256_ok
    got = counters(paths, port_of(less)) - before
    assert got["rx_sw_gso"] > (MIB << 20) / 65536 / 2
    assert (got["rx_sw_csum"] > 0) == (less != "no segmentation")
    assert tcp_file(guests.vm2, guests.vm1, ip.format(network, 1), mib=MIB).sha256_ok
    for guest in (guests.vm1, guests.vm2):
        assert bad_packets(guest) == 0


@pytest.mark.parametrize("round_", range(REBOOTS))
def test_l3_a_guest_that_reboots_under_traffic_is_reached_again(
    paths: RuntimePaths, guests: SimpleNamespace, round_: int
) -> None:
    """Its neighbour goes on sending to it meanwhile; the port is as it was, with nothing left over."""
    assert ping(guests.vm2, "10.0.0.1", count=5).lost == 0
    with Client(paths.control) as vptd:
        pid = vptd.call("daemon.status")["pid"]
    before = settled_fds(pid)
    job = guests.vm2.spawn("ping -i 0.2 10.0.0.1")
    guests.vm1.reboot(REBOOT_S)
    bring_up(guests.vm1, 1)
    assert ping(guests.vm1, "10.0.0.2", count=10).lost == 0
    assert ping(guests.vm2, "10.0.0.1", count=10).lost == 0
    job.kill()
    port = show(paths, "vm1")
    assert port["state"] == "up"
    counters = port["counters"]
    assert isinstance(counters, dict)
    assert not any(n for name, n in counters.items() if name.startswith("broken"))
    faults = show(paths, "vm1")["transport"]["counters"]  # type: ignore[index]
    assert faults.get("protocol_errors", 0) == faults.get("refused", 0) == 0
    assert faults["connections"] == 1, "the same QEMU all the time"
    until(lambda: len(open_fds(pid)) == before, lambda: f"{before} open files, now: {open_fds(pid)}")
    assert Path(paths.log).read_text().count("dropped") == 0
