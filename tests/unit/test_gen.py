# SPDX-License-Identifier: BSD-2-Clause
"""The packet generator and its receiver: what is sent is well formed, what is missing is noticed."""

from __future__ import annotations

import itertools
import re
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from support.apps import AppPeer, mac
from support.vptd import Vptd, run_vpt, vpt_json
from vpt.dataplane import Engine, Feature, Policy, Receiver, Sender
from vpt.dataplane._native import lib
from vpt.errors import DataplaneError
from vpt.gen import PERCENTILES, Traffic
from vpt.percentile import tells

EVENT_IDX = int(Feature.EVENT_IDX)
STAMP = struct.Struct("<HQQ")
MARK = 0x7670


def text(address: bytes) -> str:
    return address.hex(":")


@pytest.fixture
def pair(no_leaks: None) -> Iterator[tuple[AppPeer, AppPeer]]:
    """A source that waits for room instead of losing packets, and a sink that everybody knows."""
    with Engine(workers=1) as engine:
        switch = engine.add_switch("sw")
        source = AppPeer(switch, "source", policy=Policy.notify(), lossless=True, mac=mac(1))
        sink = AppPeer(switch, "sink", policy=Policy.notify(), mac=mac(2))
        for peer in (source, sink):
            peer.connect(EVENT_IDX)
        yield source, sink
        for peer in (source, sink):
            peer.close()


def sender(source: AppPeer, **options: object) -> Sender:
    return Sender(source.app, dst=text(mac(2)), src=text(mac(1)), **options)  # type: ignore[arg-type]


def run_to_end(send: Sender) -> None:
    while not send.run(0.2):
        pass


def test_every_packet_arrives_numbered_without_gaps(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    send, receive = sender(source, packets=20_000, sizes=(60, 590, 1514), flows=7), Receiver(sink.app)
    thread = threading.Thread(target=run_to_end, args=(send,))
    thread.start()
    while receive.received < 20_000:
        receive.run(0.05)
    thread.join()
    assert (receive.received, receive.lost, receive.late, receive.other) == (20_000, 0, 0, 0)
    assert receive.bytes == send.bytes == 6667 * 60 + 6667 * 590 + 6666 * 1514
    assert (
        receive.latency_us(0) <= receive.latency_us(50) <= receive.latency_us(99) <= receive.latency_us(100)
    )


def test_all_percentiles_of_one_packet_are_its_latency(pair: tuple[AppPeer, AppPeer]) -> None:
    """Not the beginning of the bucket that it is counted in."""
    source, sink = pair
    run_to_end(sender(source, packets=1))
    receive = Receiver(sink.app)
    while not receive.received:
        receive.run(0.05)
    assert len({receive.latency_us(percent) for percent in (0, 10, 50, 99, 100)}) == 1


@pytest.mark.needs("py:scapy")
def test_frames_are_ip_packets_of_the_flows_asked_for(pair: tuple[AppPeer, AppPeer]) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    source, sink = pair
    run_to_end(sender(source, packets=12, sizes=(60, 1000), flows=3))
    ports = []
    for i in range(12):
        frame = sink.recv()
        packet = Ether(frame)
        assert (packet.src, packet.dst) == (text(mac(1)), text(mac(2)))
        assert packet[IP].len == len(frame) - 14 == (46, 986)[i % 2]
        assert IP(bytes(packet[IP])).chksum == packet[IP].chksum
        fresh = packet[IP].copy()
        del fresh.chksum
        assert IP(bytes(fresh)).chksum == packet[IP].chksum
        assert packet[UDP].len == len(frame) - 34
        ports.append(packet[UDP].sport)
        assert STAMP.unpack_from(frame, 42)[:2] == (MARK, i)
    assert sorted(set(ports)) == [7000, 7001, 7002]


def stamped(seq: int, mark: int = MARK) -> bytes:
    return (mac(2) + mac(1) + b"\x08\x00").ljust(42, b"\0") + STAMP.pack(mark, seq, 0)


def test_gaps_count_as_lost_until_they_are_filled(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    receive = Receiver(sink.app)

    def deliver(*numbers: int) -> None:
        for seq in numbers:
            assert source.app.send(0, stamped(seq))
        want = receive.received + len(numbers)
        while receive.received < want:
            receive.run(0.01)

    deliver(0, 1, 5)
    assert (receive.lost, receive.late) == (3, 0)
    deliver(3)
    assert (receive.lost, receive.late) == (2, 1)
    deliver(2, 4)
    assert (receive.lost, receive.late) == (0, 3)
    deliver(4)
    assert (receive.lost, receive.late) == (0, 4), "a duplicate is late, and brings nothing back"


def test_packets_of_others_are_not_counted_as_ours(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    receive = Receiver(sink.app)
    source.app.send(0, stamped(0, mark=0x1234))
    source.app.send(0, mac(2) + mac(1) + b"\x88\xb5")
    while receive.other < 2:
        receive.run(0.01)
    assert (receive.received, receive.lost) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [{"sizes": (59,)}, {"sizes": (1515,)}, {"sizes": ()}, {"flows": 0}, {"flows": 50_001}, {"burst": 0}],
)
def test_what_no_generator_can_send_is_refused(
    pair: tuple[AppPeer, AppPeer], options: dict[str, object]
) -> None:
    with pytest.raises(DataplaneError):
        sender(pair[0], packets=1, **options).run(0.01)


def test_packets_of_a_rate_come_one_by_one_from_the_first_on(pair: tuple[AppPeer, AppPeer]) -> None:
    """A slice of a millisecond at a packet a second has room for the first, and lasts its millisecond."""
    source, sink = pair
    traffic = Traffic(pps=1)
    send = sender(source, packets=2, pps=traffic.pps, burst=traffic.together)
    began = time.monotonic()
    assert not send.run(0.001)
    assert time.monotonic() - began >= 0.001
    assert (send.sent, send.pps) == (1, None)
    receive = Receiver(sink.app)
    while not receive.received:
        receive.run(0.01)
    assert (receive.received, receive.pps, receive.seconds) == (1, None, 0.0)


def test_a_rate_is_that_of_the_packets_after_the_first(pair: tuple[AppPeer, AppPeer]) -> None:
    """Two packets at 50 a second are 20 ms apart: at most 50 pps, not the 100 that two in 20 ms would be."""
    source, sink = pair
    send, receive = sender(source, packets=2, pps=50, burst=1), Receiver(sink.app)
    run_to_end(send)
    while receive.received < 2:
        receive.run(0.01)
    assert send.pps is not None
    assert 0 < send.pps <= 51


@pytest.mark.parametrize(
    ("pps", "burst", "together"),
    [(0, 0, 32), (1, 0, 1), (100_000, 0, 1), (1_000_000, 0, 10), (10_000_000, 0, 32), (1, 8, 8)],
)
def test_a_burst_is_what_a_rate_makes_due_in_10_us(pps: int, burst: int, together: int) -> None:
    assert Traffic(pps=pps, burst=burst).together == together


def test_latency_buckets_are_in_order_and_six_percent_wide() -> None:
    lower = [lib.vpt_gen_bucket_ns(i) for i in range(900)]
    assert lower == sorted(set(lower))
    assert all(b - a <= max(1, a / 16) for a, b in itertools.pairwise(lower))


@pytest.mark.parametrize(
    ("samples", "told"),
    [(0, []), (1, [0, 100]), (2, [0, 50, 100]), (10, [0, 10, 50, 90, 100]), (100, [0, 10, 50, 90, 99, 100])],
)
def test_a_percentile_takes_as_many_samples_as_have_one_beyond_it(samples: int, told: list[int]) -> None:
    assert [percent for percent in PERCENTILES if tells(percent, samples)] == told


# ---- the command ----


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    yield daemon
    daemon.close()


def test_pair_sends_and_receives_and_leaves_no_port(lab: Vptd) -> None:
    got = vpt_json(lab.paths.runtime, "gen", "pair", "--switch", "sw0", "--count", "500", "--rate", "2k")
    assert got["schema"] == "vpt.gen/v1"
    assert got["sender"]["sent"] == 500
    assert got["receiver"]["received"] + got["receiver"]["lost"] == 500
    assert not lab.call("port.list")["ports"]


def test_of_one_packet_there_is_one_latency_and_no_percentile(lab: Vptd) -> None:
    one = ("gen", "pair", "--switch", "sw0", "--count", "1")
    us = vpt_json(lab.paths.runtime, *one)["receiver"]["latency_us"]
    assert [name for name, value in us.items() if value is not None] == ["p0", "p100"]
    assert re.search(r"latency us: [\d.]+ \(one packet\)$", run_vpt(lab.paths.runtime, *one).stdout.strip())


def test_a_receiver_that_got_nothing_says_so_and_prints_no_latency(lab: Vptd) -> None:
    done = run_vpt(lab.paths.runtime, "gen", "recv", "--switch", "sw0", "--seconds", "0.2")
    assert done.returncode == 0
    assert done.stdout == "received 0, rate n/a; lost 0, late 0, other 0\n"


@pytest.mark.parametrize("direction", ["send", "recv"])
def test_a_port_that_carries_no_packets_is_refused_with_the_way_on(direction: str, lab: Vptd) -> None:
    """Not a thousand packets sent into its ring, and a success."""
    lab.call("port.add", switch="sw0", name="down", kind="app")
    lab.call("port.set", name="down", link="down")
    lab.call("port.add", switch="sw0", name="null", kind="null")
    try:
        ended = {
            name: run_vpt(lab.paths.runtime, "gen", direction, "--port", name, "--count", "1")
            for name in ("down", "null")
        }
    finally:
        lab.call("port.del", name="down")
        lab.call("port.del", name="null")
    assert (ended["down"].returncode, ended["null"].returncode) == (1, 2)
    assert "the link of port down is down" in ended["down"].stderr
    assert "vpt port set down --link up" in ended["down"].stderr
    assert "is of kind null" in ended["null"].stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["pair", "--switch", "sw0"], 2),
        (["send", "--count", "1"], 2),
        (["send", "--switch", "sw0", "--port", "x"], 2),
        (["send", "--switch", "sw0", "--size", "59"], 2),
        (["send", "--switch", "sw0", "--rate", "fast"], 2),
        (["send", "--switch", "sw0", "--rate", "0.5"], 2),
        (["send", "--switch", "none", "--count", "1"], 1),
        (["recv", "--port", "none", "--count", "1"], 1),
    ],
)
def test_what_it_cannot_do_it_says_with_a_hint(lab: Vptd, arguments: list[str], status: int) -> None:
    done = run_vpt(lab.paths.runtime, "gen", *arguments)
    assert done.returncode == status
    assert "Error" in done.stderr or "hint:" in done.stderr
    assert not lab.call("port.list")["ports"]
