# SPDX-License-Identifier: BSD-2-Clause
"""What the learning switch does with vhost-user ports' packets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, MAC_C, frame, number
from vpt.conform.front_end import FrontEnd

Connect = Callable[..., FrontEnd]


@pytest.fixture
def three(host: Host, connect: Connect) -> tuple[list[VhostPort], list[FrontEnd]]:
    """Three ports with a front-end each."""
    ports = [host.vhost(name) for name in "abc"]
    return ports, [connect(port).start() for port in ports]


def numbers(fe: FrontEnd) -> list[int]:
    return [number(r.frame) for r in fe.poll()]


def test_an_unknown_address_is_flooded_and_a_known_one_is_not(
    three: tuple[list[VhostPort], list[FrontEnd]],
) -> None:
    ports, (one, two, other) = three
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert [number(fe.receive()[0].frame) for fe in (two, other)] == [1, 1]
    two.transmit(frame(MAC_A, MAC_B, 2))
    assert number(one.receive()[0].frame) == 2
    one.transmit(frame(MAC_B, MAC_A, 3))
    assert number(two.receive()[0].frame) == 3
    assert numbers(other) == []
    assert ports[2].counters["rx_packets"] == 1


@pytest.mark.parametrize("dst", [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")])
def test_group_addresses_go_to_all_but_the_sender(
    three: tuple[list[VhostPort], list[FrontEnd]], dst: bytes
) -> None:
    _, (one, two, other) = three
    one.transmit(frame(dst, MAC_A, 1))
    assert [number(fe.receive()[0].frame) for fe in (two, other)] == [1, 1]
    assert numbers(one) == []


def test_an_address_moves_with_its_owner(three: tuple[list[VhostPort], list[FrontEnd]]) -> None:
    """As after a migration: the next packet from elsewhere counts."""
    _, (one, two, other) = three
    two.transmit(frame(BROADCAST, MAC_B, 1))
    one.receive()
    other.transmit(frame(BROADCAST, MAC_B, 2))
    one.receive()
    two.poll(), other.poll()
    one.transmit(frame(MAC_B, MAC_A, 3))
    assert number(other.receive()[0].frame) == 3
    assert numbers(two) == []


def test_addresses_go_with_the_front_end_that_was_heard_from_them(
    host: Host, three: tuple[list[VhostPort], list[FrontEnd]]
) -> None:
    """As with a cable that is pulled out: what is sent there is flooded, and may reach them elsewhere."""
    ports, (one, two, other) = three
    own = host.vhost("own", mac=MAC_C)
    two.transmit(frame(BROADCAST, MAC_B, 1))
    one.receive()
    two.close()
    ports[1].until_left()
    assert [entry.mac for entry in host.call(host.switch.macs)] == [MAC_C.hex(":")], "given, not learned"
    assert own.path.exists()
    other.poll()
    one.transmit(frame(MAC_B, MAC_A, 2))
    assert number(other.receive()[0].frame) == 2


def test_addresses_are_listed_with_their_port(
    host: Host, three: tuple[list[VhostPort], list[FrontEnd]]
) -> None:
    ports, (one, two, _) = three
    one.transmit(frame(BROADCAST, MAC_A))
    two.transmit(frame(BROADCAST, MAC_B))
    seen = {entry.mac: entry.port_id for entry in host.call(host.switch.macs)}
    assert seen == {MAC_A.hex(":"): ports[0].port.id, MAC_B.hex(":"): ports[1].port.id}


def test_an_address_that_is_not_heard_of_is_forgotten(host: Host, connect: Connect) -> None:
    """Ageing: after mac_age_s it is unknown again and flooded."""
    host.call(host.switch.delete)
    host.switch = host.call(lambda: host.engine.add_switch("fast", mac_age_s=1))
    one, two, other = (connect(host.vhost(name)).start() for name in "abc")
    two.transmit(frame(BROADCAST, MAC_B, 1))
    one.receive(), other.receive()
    until(lambda: not host.call(host.switch.macs), "all addresses to be forgotten")
    one.transmit(frame(MAC_B, MAC_A, 2))
    assert [number(fe.receive()[0].frame) for fe in (two, other)] == [2, 2]


def test_a_packet_to_its_own_port_is_dropped(three: tuple[list[VhostPort], list[FrontEnd]]) -> None:
    ports, (one, two, _other) = three
    one.transmit(frame(BROADCAST, MAC_A, 1))
    one.transmit(frame(MAC_A, MAC_C, 2))
    one.transmit(frame(BROADCAST, MAC_A, 3))
    assert [number(r.frame) for r in two.receive(2)] == [1, 3]
    assert numbers(one) == []
    assert ports[0].counters["tx_drop_no_dest"] == 1


def test_a_port_that_goes_leaves_no_address(
    host: Host, three: tuple[list[VhostPort], list[FrontEnd]]
) -> None:
    ports, (one, two, other) = three
    two.transmit(frame(BROADCAST, MAC_B, 1))
    one.receive()
    other.poll()
    host.remove(ports[1])
    assert not host.call(host.switch.macs)
    one.transmit(frame(MAC_B, MAC_A, 2))
    assert 2 in [number(r.frame) for r in other.receive()]


def test_a_link_that_is_down_carries_nothing(
    host: Host, three: tuple[list[VhostPort], list[FrontEnd]]
) -> None:
    ports, (one, two, other) = three
    host.call(lambda: ports[1].port.set_link(False))
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(other.receive()[0].frame) == 1
    assert ports[1].counters["rx_drop_down"] == 1
    host.call(lambda: ports[1].port.set_link(True))
    one.transmit(frame(MAC_B, MAC_A, 2))
    assert number(two.receive()[0].frame) == 2


def test_lossless_what_is_taken_again_and_again_is_counted_once(host: Host, connect: Connect) -> None:
    """The packet in front waits for room; those behind it are looked at each time that it is tried."""
    a, b = host.vhost("a", lossless=True), host.vhost("b")
    one, two = connect(a, num=64).start(), connect(b, num=16).start(fill=1)
    two.transmit(frame(MAC_A, MAC_B))
    one.transmit(frame(MAC_B, MAC_A, 0))  # has the only buffer
    group = bytes.fromhex("010000000000")
    for each in (frame(MAC_B, MAC_A, 1), frame(MAC_B, group, 2), bytes(8)):
        one.queue_frame(each)
    before = a.counters
    one.pairs[0].tx.kick()
    until(lambda: a.counters["tx_blocked"] > before["tx_blocked"] + 10, "it to be tried ten times")
    waiting = Counter(a.counters) - Counter(before)
    assert {name for name in waiting if name.startswith("tx_")} == {"tx_blocked"} | (
        {"tx_kicks"} & waiting.keys()
    )
    two.receive(1)  # its buffer is the next one's
    one.flush()
    done = Counter(a.counters) - Counter(before)
    assert (done["tx_packets"], done["tx_drop_spoofed"], done["tx_drop_runt"]) == (3, 1, 1)


def test_lossless_waits_for_room(host: Host, connect: Connect) -> None:
    """No room at the destination: the packets stay in the sender's ring and none is lost."""
    a, b = host.vhost("a", lossless=True), host.vhost("b")
    one, two = connect(a, num=64).start(), connect(b, num=16).start(fill=16)
    two.transmit(frame(MAC_A, MAC_B))
    for n in range(40):
        one.queue_frame(frame(MAC_B, MAC_A, n))
    one.pairs[0].tx.kick()
    got: list[int] = []
    until(lambda: (time.sleep(0.002), got.extend(numbers(two)), len(got) == 40)[2], "all packets")
    assert got == list(range(40))
    assert b.counters["rx_drop_full"] == 0
    assert a.counters["tx_blocked"] > 0
