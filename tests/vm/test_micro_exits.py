# SPDX-License-Identifier: BSD-2-Clause
"""KVM's own count of exits, of a guest that knows how often it kicked: what the product claims, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.micro_host import accel_or_skip
from support.micro_port import MicroRig
from vpt.bench.micro import Kick, MicroGuest, Order, Report, Role
from vpt.dataplane import Kind, Policy, PolicyKind
from vpt.exits import delta, measure
from vpt.exits.session import open_session

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]

Run = Callable[[Order], tuple[Report, float]]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[MicroRig]:
    with MicroRig(tmp_path, accel_or_skip("kvm")) as made:
        made.switch.add_port("sink", Kind.NULL, touch=True)
        yield made


def run_with(rig: MicroRig, folder: Path, policy: Policy) -> Iterator[Run]:
    """Runs orders on a guest, and says how many exits each packet took, the host's interrupts left out."""
    qmp = folder / "qmp"
    guest, _ = rig.guest("guest", "02:00:00:00:00:0a", policy, qmp)
    warm_up(guest)
    with open_session(f"qmp:{qmp}") as session:

        def run(order: Order) -> tuple[Report, float]:
            before = session.sample()
            report = guest.run(order)
            read = measure(session.identity, delta(session.identity, before, session.sample()))
            assert read.counted is not None, read.refused
            assert report.complete
            assert report.drained
            return report, read.counted / report.packets

        yield run


def warm_up(guest: MicroGuest) -> None:
    """The first touch of each page is an exit where KVM shadows page tables."""
    guest.run(Order(role=Role.GEN, packets=5000, kick=Kick.EVERY, kick_every=64))


@pytest.fixture
def on_notifying_port(rig: MicroRig, tmp_path: Path) -> Iterator[Run]:
    yield from run_with(rig, tmp_path, Policy(PolicyKind.NOTIFY))


@pytest.fixture
def on_sleeping_port(rig: MicroRig, tmp_path: Path) -> Iterator[Run]:
    yield from run_with(rig, tmp_path, Policy(PolicyKind.SLEEP, sleep_us=50))


@pytest.mark.parametrize("every", [1, 8, 32])
def test_a_kick_every_n_packets_is_one_nth_of_an_exit_each(on_notifying_port: Run, every: int) -> None:
    """The control: doorbells that nobody suppresses are exits, one each, and nothing else is."""
    order = Order(role=Role.GEN, packets=32_000, burst=every, kick=Kick.EVERY, kick_every=every, seconds=60)
    report, exits = on_notifying_port(order)
    assert report.kicks_per_packet == 1 / every
    assert exits == pytest.approx(1 / every, rel=0.05)


def test_a_host_that_wants_no_kicks_costs_no_exits(on_sleeping_port: Run) -> None:
    """How often an adaptive host wants one is a benchmark's question: it depends on who gets the CPU."""
    report, exits = on_sleeping_port(Order(role=Role.GEN, packets=1_000_000, seconds=60))
    assert report.counters.kicks == 0
    assert exits <= 0.001
