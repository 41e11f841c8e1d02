# SPDX-License-Identifier: BSD-2-Clause
"""Exits per packet of the micro guest on a passthrough port: what the policy says, counted by KVM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.micro_host import MicroHost
from vpt.bench.micro import Kick, Machine, MicroGuest, Order, Role, choose_accel
from vpt.exits import meter
from vpt.exits.model import Identity, Quantity
from vpt.exits.session import open_session
from vpt.qemu import Ivshmem

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]


@dataclass
class Bench:
    host: MicroHost
    guest: MicroGuest
    vm: str
    identity: Identity | None = None

    def exits(self, order: Order) -> meter.Measure:
        """Those of one order, divided by the packets that the guest sent."""
        with open_session(self.vm) as session:
            self.guest.run(order)  # the first touch of each page is an exit under some KVMs
            before = session.sample().model_copy(update={"packets": 0})
            report = self.guest.run(order)
            assert report.complete
            after = session.sample().model_copy(update={"packets": report.packets})
        self.identity = session.identity
        return meter.measure(session.identity, meter.delta(session.identity, before, after))


@pytest.fixture(params=["kvm", "tcg"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "kvm":
        chosen = choose_accel()
        if chosen.name != "kvm":
            pytest.skip(f"missing: a KVM that runs the micro guest ({chosen.why})")
    with MicroHost(tmp_path) as host:
        nic = Ivshmem(host.socket.path, vectors=3)
        qmp = tmp_path / "qmp"

        def serve() -> None:
            host.serve()
            host.discard()

        guest = MicroGuest(Machine(accel=request.param, nic=nic, qmp=qmp), serve=serve)
        with guest:
            guest.open()
            yield Bench(host, guest, f"qmp:{qmp}")


@pytest.mark.parametrize("every", [1, 8])
def test_a_kick_every_n_packets_costs_one_nth_of_an_exit(bench: Bench, every: int) -> None:
    m = bench.exits(
        Order(role=Role.GEN, packets=2000 * every, burst=every, kick=Kick.EVERY, kick_every=every)
    )
    if bench.identity and bench.identity.quantity is Quantity.DISPATCHES:
        assert m.raw == 0
        assert "ioeventfd" in str(m.refused), "a zero would look like a result"
    else:
        assert m.refused is None
        assert m.per_packet == pytest.approx(1 / every, rel=0.05)


def test_without_kicks_packets_cost_no_exits(bench: Bench) -> None:
    m = bench.exits(Order(role=Role.GEN, packets=50_000, burst=64, kick=Kick.NEVER))
    if bench.identity and bench.identity.quantity is Quantity.DISPATCHES:
        assert (m.raw, m.per_packet) == (0, None), "this can't be told from a kick per packet"
    else:
        assert m.per_packet is not None
        assert m.per_packet <= 0.001
