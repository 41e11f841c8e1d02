# SPDX-License-Identifier: BSD-2-Clause
"""Micro guests on passthrough ports of a real switch: what they count is what the data plane counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apps import AppPeer
from support.micro_host import accel_or_skip
from support.micro_port import MicroRig
from support.waiting import until
from vpt.bench.micro import Kick, Order, Role, Touch, Wait
from vpt.dataplane import Kind, Policy, PolicyKind, Receiver, Sender

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def address(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@pytest.fixture(params=["tcg", "kvm"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, no_leaks: None) -> Iterator[MicroRig]:
    with MicroRig(tmp_path, accel_or_skip(request.param)) as made:
        yield made


@pytest.mark.parametrize(
    "kind", [PolicyKind.SLEEP, PolicyKind.NOTIFY, PolicyKind.ADAPTIVE], ids=lambda k: k.label
)
def test_what_the_guest_sends_the_switch_delivers(rig: MicroRig, kind: PolicyKind) -> None:
    """A lost wake-up or a lost slot would leave the generator's ring undrained."""
    sink = rig.switch.add_port("sink", Kind.NULL, touch=True)
    guest, port = rig.guest("guest", A, Policy(kind, spin_us=20, sleep_us=20))
    report = guest.run(Order(role=Role.GEN, packets=50_000, burst=32, touch=Touch.STAMP, seconds=60))
    assert report.complete
    assert report.drained
    until(lambda: rig.counters(sink)["rx_packets"] == 50_000, "the sink to have counted all")
    assert rig.counters(sink)["rx_bytes"] == 50_000 * 60
    assert rig.counters(port)["tx_packets"] == 50_000
    if kind is PolicyKind.SLEEP:
        assert report.counters.kicks == 0


@pytest.mark.parametrize("every", [1, 16])
def test_each_kick_is_counted_once_by_both(rig: MicroRig, every: int) -> None:
    rig.switch.add_port("sink", Kind.NULL)
    guest, port = rig.guest("guest", A, Policy(PolicyKind.NOTIFY))
    before = rig.counters(port)["kicks"]
    order = Order(role=Role.GEN, packets=8000, burst=every, kick=Kick.EVERY, kick_every=every, seconds=60)
    report = guest.run(order)
    assert report.counters.kicks == 8000 // every
    until(lambda: rig.counters(port)["kicks"] - before == 8000 // every, "the worker to have read each kick")


@pytest.mark.parametrize("wait", [Wait.POLL, Wait.IRQ])
def test_from_guest_to_guest_nothing_is_lost_or_reordered(rig: MicroRig, wait: Wait) -> None:
    receiver, receiver_port = rig.guest("receiver", B)
    sender, sender_port = rig.guest("sender", A)
    receiver.begin(Order(role=Role.SINK, packets=20_000, touch=Touch.ALL, wait=wait, seconds=60))
    sent = sender.run(
        Order(role=Role.GEN, packets=20_000, size=500, touch=Touch.ALL, wait=wait, dst=address(B), seconds=60)
    )
    received = receiver.finish()
    assert sent.complete
    assert received.complete
    assert received.counters.rx_bytes == 20_000 * 500
    assert received.counters.seq_lost == received.counters.seq_late == received.counters.foreign == 0
    assert rig.counters(receiver_port)["copies"] == 20_000
    if wait is Wait.IRQ:
        assert received.counters.interrupts <= rig.counters(receiver_port)["rx_interrupts"]
        assert sent.counters.interrupts <= rig.counters(sender_port)["tx_interrupts"]


def test_a_receiver_of_vpt_gen_counts_what_the_guest_stamps(rig: MicroRig) -> None:
    """One layout of stamps, kept in two places."""
    guest, _ = rig.guest("guest", A)
    with contextlib.closing(AppPeer(rig.switch, "app", mac=B)) as peer:
        receiver = Receiver(peer.connect())
        for total in (20_000, 40_000):
            order = Order(role=Role.GEN, packets=20_000, touch=Touch.ALL, dst=address(B), seconds=60)
            guest.begin(order)
            while receiver.received + receiver.other < total:
                receiver.run(0.05)
            assert guest.finish().complete
    assert (receiver.received, receiver.timed, receiver.other) == (40_000, 0, 0)
    assert (receiver.lost, receiver.late, receiver.duplicate) == (0, 0, 0), "another order is another sender"
    assert receiver.pps is not None


def test_the_guest_counts_what_vpt_gen_sends(rig: MicroRig) -> None:
    guest, _ = rig.guest("guest", A)
    guest.begin(Order(role=Role.SINK, packets=20_000, touch=Touch.STAMP, seconds=60))
    with contextlib.closing(AppPeer(rig.switch, "app", lossless=True, mac=B)) as peer:
        sender = Sender(peer.connect(), dst=A, src=B, packets=20_000)
        while not sender.run(0.2):
            pass
        report = guest.finish()
    assert report.complete
    assert (report.counters.seq_lost, report.counters.seq_late, report.counters.foreign) == (0, 0, 0)


@pytest.mark.parametrize("wait", [Wait.POLL, Wait.IRQ])
def test_ping_to_an_echoing_guest_comes_back(rig: MicroRig, wait: Wait) -> None:
    echo, _ = rig.guest("echo", B)
    ping, _ = rig.guest("ping", A)
    echo.begin(Order(role=Role.ECHO, packets=500, wait=wait, seconds=60))
    order = Order(
        role=Role.PING,
        packets=500,
        burst=1,
        window=1,
        touch=Touch.STAMP,
        wait=wait,
        dst=address(B),
        seconds=60,
    )
    report = ping.run(order)
    echoed = echo.finish()
    assert report.latency is not None
    assert report.latency.count == 500 == echoed.counters.tx_packets
    assert report.counters.foreign == 0
