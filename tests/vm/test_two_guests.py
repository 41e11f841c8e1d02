# SPDX-License-Identifier: BSD-2-Clause
"""vpt_net in several guests on one switch: offloads that travel, offloads done in software, short rings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vpt.dataplane import Feature, RegionOptions, Rules
from vpt.guest import Guest, ping, tcp_file, udp_stream

pytestmark = [
    pytest.mark.vm,
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

# Neither checksums nor segments nor chains of slots, and a need-notification flag instead of an event index.
PLAIN = Feature.MAC | Feature.MTU | Feature.STATUS
MIB = 16
WHOLE = 3000  # bytes per packet, on average: twice what one without segmentation offload can carry


def address(number: int) -> str:
    return f"10.0.0.{number}"


@pytest.fixture(scope="module")
def guests(host, boot) -> SimpleNamespace:
    """Two guests. Each has eth0 with every offload, and b has eth1 with none, on rings of 64 slots."""
    ports = {
        "a": host.passthrough(RegionOptions("a", mac="02:00:00:00:00:01", mtu=9000)),
        "b": host.passthrough(RegionOptions("b", mac="02:00:00:00:00:02", mtu=9000)),
        "plain": host.passthrough(
            RegionOptions("plain", mac="02:00:00:00:00:03", features=int(PLAIN), num_slots=64)
        ),
        "short": host.passthrough(
            RegionOptions("short", mac="02:00:00:00:00:04", num_slots=64, buf_size=1024)
        ),
    }
    a = boot("a", ports["a"].nic, ports["short"].nic)
    b = boot("b", ports["b"].nic, ports["plain"].nic)
    for guest, links in ((a, (1, 4)), (b, (2, 3))):
        guest.wait_ready()
        for dev, number in enumerate(links):
            # Addresses in networks of their own, so that traffic takes the port that it names.
            guest.run(
                f"ip addr add {address(number)}/24 dev eth{dev}; ip link set eth{dev} up; "
                f"sysctl -qw net.ipv4.conf.eth{dev}.arp_ignore=1 net.ipv4.conf.eth{dev}.rp_filter=0"
            )
            guest.wait_until(f"grep -q 1 /sys/class/net/eth{dev}/carrier", 10, "a carrier")
    return SimpleNamespace(a=a, b=b, ports=ports, host=host)


def join(a: tuple[Guest, int, int], b: tuple[Guest, int, int]) -> None:
    """Have two guests (each with its device and address number) reach each other by these devices."""
    for (guest, dev, _), (_, _, target) in ((a, b), (b, a)):
        guest.run(f"ip route replace {address(target)}/32 dev eth{dev}; ip neigh flush dev eth{dev}")
    # Large packets that wait for an answer to ARP are dropped beyond a few.
    a[0].run(f"ping -q -c 1 {address(b[2])}")


def counters(guests: SimpleNamespace, name: str):
    return guests.host.counters(guests.ports[name].port)


def test_ping_loses_nothing(guests):
    join((guests.a, 0, 1), (guests.b, 0, 2))
    result = ping(guests.a, address(2), count=50)
    assert (result.sent, result.lost) == (50, 0)
    assert len(result.rtt_us) == 50
    # A full-size frame of MTU 9000: a chain of slots each way.
    assert ping(guests.b, address(1), count=20, size=8900).lost == 0


@pytest.mark.parametrize("direction", ["a to b", "b to a"])
def test_tcp_travels_unsegmented(guests, direction):
    """Segments of up to 64 KiB cross the switch as one packet, and acknowledgements ask for few doorbells."""
    source, target, to, port = (
        (guests.a, guests.b, 2, "a") if direction == "a to b" else (guests.b, guests.a, 1, "b")
    )
    join((source, 0, 3 - to), (target, 0, to))
    before = counters(guests, port)
    result = tcp_file(source, target, address(to), mib=MIB)
    sent = counters(guests, port) - before
    assert result.sha256_ok
    assert result.bytes == MIB << 20
    assert sent["tx_packets"] < result.bytes / WHOLE
    assert sent["kicks"] < sent["tx_packets"]


def test_offloads_are_done_in_software_for_a_port_without(guests):
    """From a port that segments nothing itself to one that accepts frames of its MTU only, and back."""
    join((guests.a, 0, 1), (guests.b, 1, 3))
    before = counters(guests, "plain")
    assert tcp_file(guests.a, guests.b, address(3), mib=4).sha256_ok
    assert tcp_file(guests.b, guests.a, address(1), mib=4).sha256_ok
    after = counters(guests, "plain")
    assert after["rx_sw_gso"] > before["rx_sw_gso"]


def test_a_short_ring_stops_and_wakes_its_queue(guests):
    """64 slots of 1 KiB hold one large segment: the queue stops all the time and must always wake."""
    guests.a.run("ip link set eth0 down")
    try:
        join((guests.a, 1, 4), (guests.b, 0, 2))
        assert tcp_file(guests.a, guests.b, address(2), mib=4).sha256_ok
        stats = guests.a.run("vpt_nicstat eth1").json()
    finally:
        guests.a.run("ip link set eth0 up")
        guests.a.wait_until("grep -q 1 /sys/class/net/eth0/carrier", 10, "a carrier")
    assert stats["tx_stops"] > 0
    assert stats["tx_timeouts"] == 0


def test_udp_stream_at_a_rate_loses_nothing(guests):
    join((guests.a, 0, 1), (guests.b, 0, 2))
    result = udp_stream(guests.a, guests.b, address(2), count=2000, pps=2000)
    assert (result.sent, result.lost, result.duplicates) == (2000, 0, 0)


def test_udp_bursts_travel_unsegmented(guests):
    """32 datagrams in one packet across the switch, and 32 at the receiver."""
    join((guests.a, 0, 1), (guests.b, 0, 2))
    before = counters(guests, "a")
    result = udp_stream(guests.a, guests.b, address(2), count=3200, size=1000, pps=8000, burst=32)
    assert (result.sent, result.lost) == (3200, 0)
    assert (counters(guests, "a") - before)["tx_packets"] < 3200 / 10


@pytest.fixture
def vlan(guests):
    """a's eth0 is in VLAN 10 and knows nothing of it; b's eth0 is a trunk, with an interface for VLAN 10."""
    rules = {"a": Rules(access=10), "b": Rules(trunk=frozenset({10}))}
    for name, what in rules.items():
        with guests.host.lock:
            guests.ports[name].port.set_rules(what)
    guests.a.run("ip addr add 10.0.10.1/24 dev eth0")
    guests.b.run(
        "ip link add link eth0 name tagged type vlan id 10; ip addr add 10.0.10.2/24 dev tagged;"
        " ip link set tagged up"
    )
    yield
    guests.b.run("ip link del tagged")
    guests.a.run("ip addr del 10.0.10.1/24 dev eth0")
    for name in rules:
        with guests.host.lock:
            guests.ports[name].port.set_rules(Rules())


@pytest.mark.usefixtures("vlan")
def test_a_guest_with_tags_and_one_without_share_a_vlan(guests):
    """The tag goes on and comes off on the way; large segments stay whole under it."""
    assert ping(guests.a, "10.0.10.2", count=20).lost == 0
    before = counters(guests, "a")
    assert tcp_file(guests.a, guests.b, "10.0.10.2", mib=4).sha256_ok
    assert (counters(guests, "a") - before)["tx_packets"] < (4 << 20) / WHOLE
    assert tcp_file(guests.b, guests.a, "10.0.10.1", mib=4).sha256_ok


@pytest.mark.usefixtures("vlan")
def test_another_vlan_is_out_of_reach(guests):
    with guests.host.lock:
        guests.ports["a"].port.set_rules(Rules(access=20))
    assert guests.a.run("ping -q -c 1 -W 1 10.0.10.2", check=False).status != 0
    with guests.host.lock:
        guests.ports["a"].port.set_rules(Rules(access=10))
    assert ping(guests.a, "10.0.10.2", count=5).lost == 0


def test_nothing_broke(guests):
    assert guests.host.broken == []
    for guest in (guests.a, guests.b):
        assert not guest.run("dmesg | grep -E 'WARNING|BUG|Call Trace|NETDEV WATCHDOG'", check=False).output
