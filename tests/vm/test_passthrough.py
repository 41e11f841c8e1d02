# SPDX-License-Identifier: BSD-2-Clause
"""vpt_net in one guest, with a host process (an app port) as the other end of the wire."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from support.waiting import until
from vpt.dataplane import RegionOptions, vec_count
from vpt.guest import Guest, Job
from vpt.qemu import Ivshmem

pytestmark = [
    pytest.mark.vm,
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

GUEST_MAC, GUEST_IP = "02:00:00:00:00:01", "10.0.0.1"
APP_MAC, APP_IP = "02:00:00:00:00:99", "10.0.0.99"
HOST_STATUS_OFS = 84


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    words = struct.unpack(f">{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo(kind: int, source: str, target: str, body: bytes) -> bytes:
    """IPv4 and ICMP echo request (8) or reply (0); body: identifier, number, payload; of even length."""
    icmp = struct.pack(">BBH", kind, 0, checksum(struct.pack(">BBH", kind, 0, 0) + body)) + body
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0)
    ip += socket.inet_aton(source) + socket.inet_aton(target)
    return ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + icmp


class Station:
    """A host with one address behind an app port: answers ARP and ping, and can ping."""

    def __init__(self, app) -> None:
        self.app = app
        self.replies = 0

    def send(self, target: bytes, ethertype: int, payload: bytes) -> None:
        assert self.app.send(
            0, (target + mac(APP_MAC) + struct.pack(">H", ethertype) + payload).ljust(60, b"\0")
        )

    def ping(self, number: int) -> None:
        body = struct.pack(">HH", 77, number) + bytes(32)
        self.send(mac(GUEST_MAC), 0x0800, echo(8, APP_IP, GUEST_IP, body))

    def pump(self) -> None:
        """Take one packet, waiting a little for it, and act on it."""
        frame = self.app.recv(0)
        if frame is None:
            self.app.wait(0, timeout=0.05)
            return
        source, ethertype, payload = frame[6:12], frame[12:14], frame[14:]
        if ethertype == b"\x08\x06" and payload[24:28] == socket.inet_aton(APP_IP) and payload[7] == 1:
            reply = payload[:6] + b"\0\2" + mac(APP_MAC) + socket.inet_aton(APP_IP) + payload[8:18]
            self.send(source, 0x0806, reply)
        elif ethertype == b"\x08\0" and payload[9] == 1 and payload[16:20] == socket.inet_aton(APP_IP):
            length = struct.unpack(">H", payload[2:4])[0]
            if payload[20] == 8:
                self.send(source, 0x0800, echo(0, APP_IP, GUEST_IP, payload[24:length]))
            elif payload[20] == 0:
                self.replies += 1


class Foreign:
    """Somebody else's shared memory behind an ivshmem-doorbell: same PCI id, no magic."""

    def __init__(self) -> None:
        self.region = os.memfd_create("foreign")
        os.ftruncate(self.region, 1 << 20)
        self.kicks = [os.eventfd(0)]
        self.interrupts = [os.eventfd(0)]

    def close(self) -> None:
        for fd in (self.region, *self.kicks, *self.interrupts):
            os.close(fd)


@pytest.fixture(scope="module")
def wire(host, boot) -> Iterator[SimpleNamespace]:
    """A guest on a passthrough port, an app port as its other end, two foreign ivshmem devices beside it."""
    port = host.passthrough(RegionOptions("p1", mac=GUEST_MAC, mtu=1400))
    foreign = Foreign()
    other = host.ivshmem_server("foreign", foreign)
    plain = ("-object", "memory-backend-memfd,id=pl,size=1M,share=on", "-device", "ivshmem-plain,memdev=pl")
    guest = boot("g1", port.nic, other.nic, extra=plain)
    station = Station(host.app("peer"))
    guest.wait_ready()
    guest.run(f"ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up")
    up(guest)
    yield SimpleNamespace(guest=guest, port=port, station=station, host=host)
    guest.stop()
    foreign.close()


def up(guest: Guest) -> None:
    guest.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 10, "eth0 to have a carrier")


def pump_until(station: Station, job: Job) -> str:
    """Answer the guest until its command has ended; its output."""
    while job.guest.run(f"[ -e {job.base}.rc ]", check=False).status:
        for _ in range(20):
            station.pump()
    return job.wait(1, check=False).output


def guest_pings(wire: SimpleNamespace, count: int = 20) -> str:
    return pump_until(wire.station, wire.guest.spawn(f"ping -c {count} -i 0.01 -W 5 {APP_IP}"))


def nicstat(guest: Guest) -> dict[str, object]:
    return guest.run("vpt_nicstat eth0").json()


def test_only_the_device_with_our_magic_is_bound(wire):
    guest = wire.guest
    ivshmem = guest.run("grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l").output
    bound = guest.run("ls -d /sys/bus/pci/drivers/vpt_net/0000:* | wc -l").output
    said = guest.run("dmesg | grep vpt_net | grep -vc -e 'taint' -e 'vpt port \"p1\"'", check=False).output
    assert (int(ivshmem), int(bound), int(said)) == (3, 1, 0)


def test_address_and_mtu_come_from_the_header(wire):
    text = wire.guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu").output.split()
    assert text == [GUEST_MAC, "1400"]
    assert nicstat(wire.guest)["driver"] == "vpt_net"
    assert wire.port.port.state().driver.startswith("vpt_net ")


def test_guest_pings_the_host_and_back(wire):
    assert "20 packets transmitted, 20 packets received" in guest_pings(wire)
    for number in range(20):
        wire.station.ping(number)

    def all_back() -> bool:
        wire.station.pump()
        return wire.station.replies == 20

    until(all_back, "20 echo replies of the guest")


def test_counters_of_driver_and_host_agree(wire):
    """Each doorbell is counted by both sides, and so is each interrupt: none is lost on the way."""
    guest_pings(wire)
    driver, host = nicstat(wire.guest), wire.host.counters(wire.port.port)
    assert driver["tx_packets"] == host["tx_packets"]
    assert driver["tx_kicks"] + driver["rx_kicks"] == host["kicks"]
    assert driver["rx_interrupts"] <= host["rx_interrupts"]


def test_a_burst_is_published_and_announced_once(wire):
    """pktgen hands over bursts of 32 with xmit_more: the host may see one publication for each, no more."""
    before = nicstat(wire.guest)
    wire.guest.run(
        "cd /proc/net/pktgen; echo add_device eth0 >kpktgend_0; "
        "for line in 'count 6400' 'pkt_size 60' 'burst 32' 'delay 0' 'dst 10.0.0.99' "
        f"'dst_mac {APP_MAC}'; do echo $line >eth0; done; echo start >pgctrl; "
        "echo rem_device_all >kpktgend_0",
        timeout_s=30,
    )
    after = nicstat(wire.guest)
    sent = after["tx_packets"] - before["tx_packets"]
    assert sent >= 6400
    # A full ring ends a burst early.
    stops = after["tx_stops"] - before["tx_stops"]
    assert after["tx_publishes"] - before["tx_publishes"] <= sent / 32 + stops + 5
    assert after["tx_kicks"] - before["tx_kicks"] < sent / 10


def test_link_follows_the_host(wire):
    guest, port = wire.guest, wire.port.port
    with wire.host.lock:
        port.set_link(False)
    guest.wait_until("grep -q 0 /sys/class/net/eth0/carrier", 10, "eth0 to lose its carrier")
    with wire.host.lock:
        port.set_link(True)
    up(guest)
    assert "0% packet loss" in guest_pings(wire, 5)


def test_down_and_up_starts_afresh(wire):
    restarts = nicstat(wire.guest)["restarts"]
    wire.guest.run("for i in 1 2 3; do ip link set eth0 down; ip link set eth0 up; done")
    up(wire.guest)
    assert nicstat(wire.guest)["restarts"] > restarts
    assert "0% packet loss" in guest_pings(wire, 5)


def test_unload_and_reload_under_traffic(wire):
    flood = wire.guest.spawn(f"while :; do ping -A -c 1000 -W 1 {APP_IP}; sleep 0.1; done")
    for _ in range(3):
        for _ in range(200):
            wire.station.pump()
        wire.guest.run("rmmod vpt_net")
        until(lambda: not wire.port.port.state().up, "the host to see the driver go")
        wire.guest.run(
            f"insmod /lib/modules/vpt_net.ko; ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up"
        )
        up(wire.guest)
    flood.kill()
    assert "0% packet loss" in guest_pings(wire, 5)


def test_a_host_that_comes_back_resumes(wire):
    """The daemon is gone and back with the same region: no handshake, the driver does not even notice."""
    restarts = nicstat(wire.guest)["restarts"]
    wire.host.reattach(wire.port)
    assert "0% packet loss" in guest_pings(wire, 5)
    assert nicstat(wire.guest)["restarts"] == restarts


def test_a_host_that_lost_the_rings_makes_the_driver_start_over(wire):
    restarts = nicstat(wire.guest)["restarts"]
    with mmap.mmap(wire.port.fds.region, 4096) as header:
        header[HOST_STATUS_OFS : HOST_STATUS_OFS + 4] = bytes(4)  # an earlier daemon that never got far
    wire.host.reattach(wire.port)
    wire.guest.wait_until("dmesg | grep -q 'host started over'", 10, "the driver to notice")
    up(wire.guest)
    assert nicstat(wire.guest)["restarts"] == restarts + 1
    assert "0% packet loss" in guest_pings(wire, 5)


def test_driver_waits_for_a_host_that_is_away(wire):
    with wire.host.lock:
        wire.port.port.delete()
    wire.guest.run("ip link set eth0 down; ip link set eth0 up")
    wire.guest.wait_until("dmesg | grep -q 'host does not answer'", 10, "the driver to say so")
    wire.host.reattach(wire.port)
    up(wire.guest)
    assert "0% packet loss" in guest_pings(wire, 5)


def test_guest_reboot(wire):
    wire.guest.reboot()
    wire.guest.run(f"ip addr add {GUEST_IP}/24 dev eth0; ip link set eth0 up")
    up(wire.guest)
    assert "0% packet loss" in guest_pings(wire, 5)
    assert wire.host.broken == []


def test_too_few_vectors_are_refused_by_name(host, boot):
    """vectors=1 on the device: the driver says what it needs, and binds nothing."""
    assert vec_count(1) == 3
    port = host.passthrough(RegionOptions("few"))
    port.fds.kicks[1:], kept = [], port.fds.kicks[1:]
    port.fds.interrupts[1:], kept_too = [], port.fds.interrupts[1:]
    try:
        with boot("few", Ivshmem(port.nic.socket, 1)) as guest:
            guest.wait_ready()
            assert "needs 3 MSI-X vectors" in guest.run("dmesg | grep vpt_net").output
            assert guest.run("[ -e /sys/class/net/eth0 ]", check=False).status
    finally:
        port.fds.kicks += kept
        port.fds.interrupts += kept_too
