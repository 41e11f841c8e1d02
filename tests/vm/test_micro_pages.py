# SPDX-License-Identifier: BSD-2-Clause
"""Pages for kicks under stock QEMU: the micro guest kicks after each packet, whatever it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.host import Host, VhostPort
from support.micro_host import accel_or_skip
from support.waiting import until
from vpt.bench.micro import Kick, Machine, MicroGuest, Order, Role
from vpt.dataplane import Policy
from vpt.qemu import VhostUser

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]

MAC = "52:54:00:76:70:01"
PACKETS = 4000
Boot = Callable[..., MicroGuest]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as h:
        h.null("sink")
        yield h


@pytest.fixture(params=["tcg", "kvm"])
def accel(request: pytest.FixtureRequest) -> str:
    return accel_or_skip(request.param)


def machine(accel: str, port: VhostPort, *, pages: bool) -> Machine:
    return Machine(accel=accel, nic=VhostUser(port.path, MAC, doorbell_pages=pages))  # type: ignore[arg-type]


def send(guest: MicroGuest, port: VhostPort) -> int:
    """Send packets, with a kick after each; how many of the kicks the worker heard."""
    before = port.counters
    order = Order(role=Role.GEN, packets=PACKETS, burst=1, kick=Kick.EVERY, seconds=60)
    report = guest.run(order)
    assert report.drained
    assert report.counters.kicks == PACKETS
    assert port.counters["tx_packets"] - before["tx_packets"] == PACKETS
    return port.counters["kicks"] - before["kicks"]


def pages(port: VhostPort) -> list[int]:
    session = port.describe["session"]
    return [ring["index"] for ring in session["rings"] if ring["kicks_to_page"]]


def test_kicks_go_to_the_page_while_the_port_polls_and_are_heard_when_it_does_not(
    host: Host, accel: str
) -> None:
    port = host.vhost("guest", policy=Policy.poll())
    with MicroGuest(machine(accel, port, pages=True)) as guest:
        guest.open()
        # A ring is listed from when its page is on the way; QEMU maps it a moment later.
        until(lambda: pages(port) == [0, 1], "both rings' pages to be given")
        until(lambda: send(guest, port) == 0, "no kick to be heard", 60)
        for policy in (Policy.notify(), Policy.adaptive(20)):
            port.set_policy(policy)
            until(lambda: pages(port) == [], "both pages to be taken back", 60)
            assert send(guest, port) == PACKETS
            port.set_policy(Policy.poll())
            until(lambda: pages(port) == [0, 1], "both rings' pages to be given")
            until(lambda: send(guest, port) == 0, "no kick to be heard", 60)
        assert "pages_refused" not in port.faults


def test_a_device_without_a_page_per_queue_refuses_once_and_works(host: Host, accel: str) -> None:
    port = host.vhost("guest", policy=Policy.poll())
    with MicroGuest(machine(accel, port, pages=False)) as guest:
        guest.open()
        until(lambda: port.faults.get("pages_refused"), "the refusal to be counted")
        assert send(guest, port) == PACKETS
        port.set_policy(Policy.notify())
        port.set_policy(Policy.poll())
        assert send(guest, port) == PACKETS
        assert port.faults["pages_refused"] == 1
        assert pages(port) == []


def test_packets_flow_while_the_policy_changes(host: Host, accel: str) -> None:
    """A kick that went to a page when nobody polled any more would leave the guest waiting."""
    port = host.vhost("guest", policy=Policy.poll())
    with MicroGuest(machine(accel, port, pages=True)) as guest:
        guest.open()
        until(lambda: pages(port) == [0, 1], "both rings' pages to be given")
        guest.begin(Order(role=Role.GEN, packets=400_000, burst=1, seconds=120))
        for n in range(100):
            port.set_policy((Policy.notify(), Policy.poll())[n % 2])
            time.sleep(0.01)  # the guest's turn, on a machine with few processors
        for policy, wanted in ((Policy.notify(), []), (Policy.poll(), [0, 1])) * 2:
            port.set_policy(policy)
            until(lambda: pages(port) == wanted, "the pages to be as the policy wants")  # noqa: B023
        report = guest.finish()
        assert report.complete
        assert report.drained
        assert host.stats.read().workers[0].counters["late_wakes"] == 0
