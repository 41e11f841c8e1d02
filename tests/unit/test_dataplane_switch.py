# SPDX-License-Identifier: BSD-2-Clause
"""Packets between app ports: delivery, learning, counting."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest

from support.apps import BROADCAST, AppPeer, ether, mac
from support.waiting import until
from vpt.dataplane import Engine, Kind, Policy, StatsReader

A, B, C = mac(1), mac(2), mac(3)


class Net:
    """Three app ports on one switch."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self.engine = engine
        self.switch = engine.add_switch("sw0")
        self.a, self.b, self.c = (AppPeer(self.switch, name, policy=policy) for name in "abc")
        for peer in (self.a, self.b, self.c):
            peer.connect()
        self._stats = StatsReader(engine.stats_fd)

    def counters(self, peer: AppPeer) -> Counter[str]:
        return self._stats.read().port(peer.port.id)

    def send(self, peer: AppPeer, frame: bytes) -> None:
        """Send and wait until the worker has taken it."""
        before = self.counters(peer)
        until(lambda: peer.app.send(0, frame), "room in the ring")

        def taken() -> bool:
            now = self.counters(peer)
            drops = sum(n - before[name] for name, n in now.items() if name.startswith("tx_drop"))
            return now["tx_packets"] + drops > before["tx_packets"]

        until(taken, "the worker to take a packet")

    def close(self) -> None:
        self._stats.close()
        for peer in (self.a, self.b, self.c):
            peer.close()


@pytest.fixture(
    params=[Policy.poll(), Policy.sleep(100), Policy.notify(), Policy.adaptive()], ids=lambda p: p.kind.label
)
def net(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Net]:
    with Engine() as engine:
        net = Net(engine, request.param)
        yield net
        net.close()


def test_unknown_destination_reaches_all_others(net: Net) -> None:
    frame = ether(B, A, b"hello")
    net.send(net.a, frame)
    assert net.b.recv() == frame
    assert net.c.recv() == frame
    assert list(net.a.drain()) == []


def test_learned_destination_reaches_that_port_only(net: Net) -> None:
    net.send(net.b, ether(BROADCAST, B))
    assert net.a.recv() == net.c.recv() == ether(BROADCAST, B)
    frame = ether(B, A, b"to b")
    net.send(net.a, frame)
    assert net.b.recv() == frame
    # What b answers comes after whatever c might have got.
    net.send(net.b, ether(BROADCAST, B, b"end"))
    assert net.c.recv() == ether(BROADCAST, B, b"end")
    assert {(e.mac, e.port_id) for e in net.switch.macs()} == {
        (A.hex(":"), net.a.port.id),
        (B.hex(":"), net.b.port.id),
    }


def test_packets_keep_their_order_and_none_is_lost(net: Net) -> None:
    """More packets than a ring has slots, so that every index wraps."""
    net.send(net.b, ether(BROADCAST, B))
    net.a.recv()
    total, sent, received = 1000, 0, []
    while len(received) < total:
        while sent < total and sent - len(received) < 200:
            if not net.a.app.send(
                0, ether(B, A, sent.to_bytes(4, "big")), more=sent % 7 != 6 and sent < total - 1
            ):
                break
            sent += 1
        received += [int.from_bytes(f[14:18], "big") for f in net.b.drain()] or [
            int.from_bytes(net.b.recv()[14:18], "big")
        ]
    assert received == list(range(total))
    assert net.counters(net.b)["rx_drop_full"] == 0


def test_each_delivery_is_one_copy(net: Net) -> None:
    net.send(net.a, ether(BROADCAST, A))
    net.b.recv()
    net.c.recv()
    for peer in (net.b, net.c):
        # A worker publishes first and counts then.
        until(lambda: net.counters(peer)["rx_packets"] == 1, "the delivery to be counted")  # noqa: B023
        counters = net.counters(peer)
        assert counters["copies"] == 1
        assert counters["rx_bytes"] == 60
    assert net.counters(net.a)["tx_bytes"] == 60


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (bytes(13), "tx_drop_runt"),
        (ether(B, bytes(6)), "tx_drop_spoofed"),
        (ether(B, b"\x01" + bytes(5)), "tx_drop_spoofed"),
        (ether(B, A, size=1600), "tx_drop_oversize"),
    ],
    ids=["runt", "zero-source", "multicast-source", "oversize"],
)
def test_wrong_frames_are_dropped_and_counted(frame: bytes, counter: str, net: Net) -> None:
    net.send(net.a, frame)
    assert net.counters(net.a)[counter] == 1
    net.send(net.a, ether(BROADCAST, A, b"still alive"))
    assert net.b.recv() == ether(BROADCAST, A, b"still alive")


def test_frame_to_its_own_port_is_not_sent_back(net: Net) -> None:
    net.send(net.a, ether(BROADCAST, A))
    net.send(net.a, ether(A, mac(9)))
    assert net.counters(net.a)["tx_drop_no_dest"] == 1
    assert list(net.a.drain()) == []


def test_full_ring_drops_at_that_port_alone(net: Net) -> None:
    """A peer that does not read costs itself packets and its neighbours nothing."""
    slots = net.b.opts.num_slots
    for i in range(slots + 50):
        net.send(net.a, ether(BROADCAST, A, i.to_bytes(4, "big")))
        assert net.c.recv()[14:18] == i.to_bytes(4, "big")
    counters = net.counters(net.b)
    assert counters["rx_packets"] + counters["rx_drop_full"] == slots + 50
    assert counters["rx_drop_full"] >= 50
    assert net.counters(net.c)["rx_drop_full"] == 0


def test_link_down_stops_both_directions(net: Net) -> None:
    net.b.port.set_link(False)
    net.send(net.a, ether(BROADCAST, A))
    net.c.recv()
    assert net.counters(net.b)["rx_drop_down"] == 1
    net.b.port.set_link(True)
    net.send(net.a, ether(BROADCAST, A, b"2"))
    assert net.b.recv() == ether(BROADCAST, A, b"2")


def test_port_that_leaves_takes_its_addresses_along(net: Net) -> None:
    net.send(net.b, ether(BROADCAST, B))
    assert [e.port_id for e in net.switch.macs()] == [net.b.port.id]
    net.b.port.delete()
    assert net.switch.macs() == []
    frame = ether(B, A)
    net.send(net.a, frame)
    assert ether(BROADCAST, B) in net.c.drain()
    assert net.c.recv() == frame


def test_null_port_counts_and_keeps_nothing(net: Net) -> None:
    """Of each length that its reading, a line from either end at a time, may leave something of."""
    sink = net.switch.add_port("sink", Kind.NULL, touch=True)
    frames = [ether(BROADCAST, A, bytes(length)) for length in (0, 1, 49, 50, 113, 114, 115, 127, 1500)]
    for frame in frames:
        net.send(net.a, frame)
    with StatsReader(net.engine.stats_fd) as stats:
        until(lambda: stats.read().port(sink.id)["rx_packets"] == len(frames), "the sink to count")
        assert stats.read().port(sink.id)["rx_bytes"] == sum(map(len, frames))


def test_policy_changes_under_traffic(net: Net) -> None:
    policies = [Policy.poll(), Policy.notify(), Policy.sleep(50), Policy.adaptive(10)]
    for i in range(40):
        net.a.port.set_policy(policies[i % 4])
        frame = ether(BROADCAST, A, i.to_bytes(4, "big"))
        until(lambda: net.a.app.send(0, frame), "room")  # noqa: B023 - called before the loop goes on
        assert net.b.recv() == net.c.recv() == frame


def test_application_that_starts_over_is_served_again(net: Net) -> None:
    for i in range(3):
        net.a.app.close()
        net.a.connect()
        frame = ether(BROADCAST, A, bytes([i]))
        net.send(net.a, frame)
        assert net.b.recv() == net.c.recv() == frame


def test_stats_file_names_ports_and_workers(net: Net) -> None:
    with StatsReader(net.engine.stats_fd) as stats:
        snapshot = stats.read()
    assert {(q.port, q.switch, q.kind, q.queue) for q in snapshot.queues} == {
        (name, "sw0", Kind.APP, 0) for name in "abc"
    }
    assert len(snapshot.workers) == 1
    assert snapshot.workers[0].counters["loops"] > 0


def test_lossless_sender_waits_also_for_what_follows_a_broadcast(no_leaks: None) -> None:
    """A broadcast waits for nobody; packets around it in the same burst, to one port, must all the same."""
    with Engine() as engine, StatsReader(engine.stats_fd) as stats, contextlib.ExitStack() as undo:
        switch = engine.add_switch("sw0")
        a, b = AppPeer(switch, "a", lossless=True), AppPeer(switch, "b")
        for peer in (a, b):
            undo.callback(peer.close)
            peer.connect()
        b.app.send(0, ether(BROADCAST, B))
        a.recv()
        total, sent, got = 4 * b.opts.num_slots, 0, []

        def send_what_fits() -> None:
            nonlocal sent
            while sent < total:
                dst = BROADCAST if sent % 5 == 0 else B
                if not a.app.send(0, ether(dst, A, sent.to_bytes(4, "big")), more=sent % 16 != 15):
                    return
                sent += 1

        def blocked() -> bool:
            send_what_fits()  # what the worker took before the first ring was full left room
            return stats.read().port(a.port.id)["tx_blocked"] > 0

        until(blocked, "the sender to be blocked")
        while not got or got[-1] < total - 1:
            send_what_fits()
            got.append(int.from_bytes(b.recv()[14:18], "big"))
        assert got == sorted(set(got))
        assert [n for n in got if n % 5] == [n for n in range(total) if n % 5]
