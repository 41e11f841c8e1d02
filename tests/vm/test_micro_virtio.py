# SPDX-License-Identifier: BSD-2-Clause
"""The micro guest on virtio-net, with DPDK's testpmd as the vhost-user back-end: a device by other hands."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.micro_host import accel_or_skip
from support.waiting import until
from vpt.bench.micro import Device, Kick, Machine, MicroGuest, Order, Role, Touch, Wait
from vpt.doctor._daemon import listeners
from vpt.errors import GuestError
from vpt.qemu import VhostUser, find_qemu

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make", "dpdk-testpmd")]

MAC = "52:54:00:76:70:01"
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32


@pytest.fixture(params=["tcg", "kvm"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(accel=accel_or_skip(request.param), nic=VhostUser(tmp_path / "vhost", MAC))


@contextlib.contextmanager
def back_end(socket: Path, forward: str) -> Iterator[None]:
    """testpmd with a net_vhost port on `socket`, forwarding as told on one core."""
    log = socket.with_name("testpmd.log")
    command = [
        "dpdk-testpmd", "-l", "0,1", "--no-huge", "-m", "128", "--no-pci", "--no-shconf",
        "--vdev", f"net_vhost0,iface={socket},queues=1",
        "--", f"--forward-mode={forward}", "--auto-start", "--nb-cores=1", "--total-num-mbufs=4096",
        "--no-mlockall",
    ]  # fmt: skip
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out) as pmd,
    ):
        try:

            def listens() -> bool:
                assert pmd.poll() is None, f"testpmd ended:\n{log.read_text()}"
                return str(socket) in listeners()

            until(listens, lambda: f"testpmd's socket:\n{log.read_text()}")
            yield
        finally:
            pmd.kill()


def socket_of(machine: Machine) -> Path:
    assert machine.nic is not None
    return machine.nic.socket


@pytest.mark.parametrize("mmio", [False, True], ids=["pci", "mmio"])
def test_device_takes_what_the_guest_sends(machine: Machine, mmio: bool) -> None:
    with back_end(socket_of(machine), "rxonly"), MicroGuest(replace(machine, virtio_mmio=mmio)) as guest:
        found = guest.open()
        assert found.device is (Device.VIRTIO_MMIO if mmio else Device.VIRTIO_PCI)
        assert found.mac == MAC
        assert found.slots == 1024
        assert found.features & (VERSION_1 | EVENT_IDX) == VERSION_1 | EVENT_IDX
        report = guest.run(Order(role=Role.GEN, packets=50_000, touch=Touch.STAMP, seconds=60))
        assert report.complete
        assert report.drained
        kicked = guest.run(Order(role=Role.GEN, packets=4000, burst=1, kick=Kick.EVERY, seconds=60))
        assert kicked.drained
        assert kicked.counters.kicks == 4000


@pytest.mark.parametrize("features", [0, EVENT_IDX], ids=["flag", "event-index"])
def test_device_that_polls_gets_hardly_a_kick(machine: Machine, features: int) -> None:
    """Without event index its flag says no; with it, a stale index is passed once in 65536 packets."""
    with back_end(socket_of(machine), "rxonly"), MicroGuest(machine) as guest:
        guest.open(features=features)
        # QEMU does not wait for its back-end to start: the packet that was taken says that it polls by now.
        assert guest.run(Order(role=Role.GEN, packets=1, burst=1, seconds=60)).drained
        report = guest.run(Order(role=Role.GEN, packets=200_000, seconds=60))
        assert report.complete
        assert report.counters.kicks <= (200_000 // 65536 + 1 if features else 0) + 1


@pytest.mark.parametrize("wait", [Wait.POLL, Wait.IRQ])
def test_round_trips_are_counted_once(machine: Machine, wait: Wait) -> None:
    if wait is Wait.IRQ and machine.accel == "tcg" and not find_qemu().tcg_vhost_msix:
        pytest.skip(f"missing: a QEMU whose vhost-user has MSI-X under TCG (this is {find_qemu()})")
    with back_end(socket_of(machine), "macswap"), MicroGuest(machine) as guest:
        found = guest.open()
        assert found.irq is (machine.accel == "kvm" or find_qemu().tcg_vhost_msix)
        report = guest.run(
            Order(role=Role.PING, packets=2000, burst=1, window=1, touch=Touch.STAMP, wait=wait, seconds=60)
        )
        assert report.complete
        assert report.latency is not None
        assert report.latency.count == 2000
        assert report.counters.seq_lost == report.counters.seq_late == report.counters.foreign == 0
        assert (report.counters.interrupts > 0) is (wait is Wait.IRQ)


def test_sleep_is_refused_where_no_interrupt_comes(machine: Machine) -> None:
    with back_end(socket_of(machine), "rxonly"), MicroGuest(replace(machine, virtio_mmio=True)) as guest:
        assert not guest.open().irq
        with pytest.raises(GuestError, match=r"no interrupt.*"):
            guest.run(Order(role=Role.SINK, wait=Wait.IRQ))
