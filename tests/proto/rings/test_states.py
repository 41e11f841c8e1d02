# SPDX-License-Identifier: BSD-2-Clause
"""Rings that are disabled, not enabled yet, or suspended."""

from __future__ import annotations

from collections.abc import Callable

from support.host import VhostPort
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import FrontEnd

Connect = Callable[..., FrontEnd]


def test_without_protocol_features_rings_are_enabled(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(protocol=None), connect(b).start(protocol=None)
    one.transmit(frame(MAC_B, MAC_A, 3))
    assert number(two.receive()[0].frame) == 3
    assert all(ring["enabled"] for ring in a.describe["session"]["rings"])


def test_a_disabled_transmit_ring_is_emptied_and_nothing_is_forwarded(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    one.enable_ring(1, False)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    assert a.counters["tx_drop_disabled"] == 10
    one.enable_ring(1, True)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert [number(r.frame) for r in two.receive()] == [10]


def test_a_disabled_receive_ring_is_not_filled(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    two.enable_ring(0, False)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    assert two.pairs[0].rx.used_idx == 0
    two.enable_ring(0, True)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert [number(r.frame) for r in two.receive()] == [10]


def test_a_ring_not_yet_enabled_is_disabled(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    two = connect(b).start()
    one = connect(a)
    one.negotiate()
    one.share_memory()
    one.make_queues()
    one.start_ring(1)
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert a.counters["tx_drop_disabled"] == 1
    assert two.poll() == []


def test_a_suspended_device_writes_nothing(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    """All rings stopped: no byte of guest memory changes and nobody is called."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    one.transmit(frame(MAC_B, MAC_A, 1))
    two.receive()
    for index in (0, 1):
        two.stop_ring(index)
    for queue in two.queues():
        queue.take_calls()
    region = two.memory.regions[0]
    before = bytes(region.map)
    two.pairs[0].tx.kick(force=True)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(50)))
    assert bytes(region.map) == before
    assert [queue.take_calls() for queue in two.queues()] == [0, 0]
