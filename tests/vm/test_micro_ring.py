# SPDX-License-Identifier: BSD-2-Clause
"""The micro guest on a passthrough port whose host side the test plays: counts are exact under any load."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from support.micro_host import SLOTS, MicroHost, accel_or_skip
from vpt.bench.micro import Flow, Kick, Machine, MicroGuest, Order, Report, Role, Touch, Wait
from vpt.dataplane import Feature
from vpt.errors import ConflictError, GuestError, TimeoutExpired
from vpt.qemu import Ivshmem

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]

STAMP = struct.Struct("<H Q Q")  # mark; number and upper half of the run's id; TSC and lower half
MARK_GUEST, MARK_HOST = 0x7671, 0x7670
LOW48 = (1 << 48) - 1


@dataclass
class Bench:
    """A booted guest, its host, and what the host does while it waits."""

    host: MicroHost
    guest: MicroGuest
    step: Callable[[], object] | None = None
    taken: list[bytes] = field(default_factory=list)

    def take(self) -> None:
        self.taken += self.host.take()

    def run(self, order: Order, step: Callable[[], object] | None = None) -> Report:
        self.step = step
        try:
            return self.guest.run(order)
        finally:
            self.step = None


@pytest.fixture(params=["tcg", "kvm"])
def accel(request: pytest.FixtureRequest) -> Literal["kvm", "tcg"]:
    return accel_or_skip(request.param)


@pytest.fixture
def bench(accel: Literal["kvm", "tcg"], tmp_path: Path) -> Iterator[Bench]:
    with MicroHost(tmp_path) as host:
        machine = Machine(accel=accel, nic=Ivshmem(host.socket.path, vectors=3))

        def serve() -> None:
            host.serve()
            if made.step:
                made.step()

        made = Bench(host, MicroGuest(machine, serve=serve))
        with made.guest:
            made.guest.open()
            yield made


def test_all_packets_arrive_in_order_and_as_ordered(bench: Bench) -> None:
    order = Order(role=Role.GEN, packets=2000, burst=16, size=100, touch=Touch.ALL, kick=Kick.NEVER)
    report = bench.run(order, bench.take)
    assert report.complete
    assert report.drained
    assert report.counters.kicks == 0 == bench.host.count_kicks()
    assert [len(frame) for frame in bench.taken] == [100] * 2000
    stamps = [STAMP.unpack_from(frame, 42) for frame in bench.taken]
    assert [(mark, seq & LOW48) for mark, seq, _ in stamps] == [(MARK_GUEST, i) for i in range(2000)]
    times = [tsc & LOW48 for *_, tsc in stamps]
    assert times == sorted(times)
    assert len({(seq >> 48, tsc >> 48) for _, seq, tsc in stamps}) == 1, "one run"


@pytest.mark.parametrize("every", [1, 8, 32])
def test_a_kick_every_n_packets_is_one_nth_and_each_reaches_the_eventfd(bench: Bench, every: int) -> None:
    order = Order(role=Role.GEN, packets=3200, burst=every, kick=Kick.EVERY, kick_every=every)
    report = bench.run(order, bench.host.discard)
    assert report.complete
    assert report.counters.kicks == 3200 // every == bench.host.count_kicks()


def test_leftover_of_a_batch_is_kicked_at_the_end(bench: Bench) -> None:
    order = Order(role=Role.GEN, packets=100, burst=10, kick=Kick.EVERY, kick_every=30)
    report = bench.run(order, bench.host.discard)
    assert report.counters.kicks == 4 == bench.host.count_kicks()


def test_no_kick_when_the_host_wants_none(bench: Bench) -> None:
    report = bench.run(Order(role=Role.GEN, packets=5000, burst=10), bench.host.discard)
    assert report.complete
    assert report.counters.kicks == 0 == bench.host.count_kicks()
    assert report.counters.kicks_suppressed == 500


def test_event_index_gives_one_kick_a_lap(bench: Bench) -> None:
    """kick_at names slot 100 and stays there: head passes it once in each lap, and nothing else kicks."""
    laps = 5
    bench.host.want_kick(100)
    report = bench.run(Order(role=Role.GEN, packets=laps * SLOTS, burst=16), bench.host.discard)
    assert report.counters.kicks == laps == bench.host.count_kicks()


def test_without_event_index_the_flag_alone_decides(bench: Bench) -> None:
    bench.guest.open(features=0)
    bench.host.want_kick(100)
    report = bench.run(Order(role=Role.GEN, packets=320, burst=16), bench.host.discard)
    assert report.counters.kicks == 20 == bench.host.count_kicks()


def test_generator_never_overruns_the_ring(bench: Bench) -> None:
    """The host takes nothing: a ring less one slot is all that may be published, and all that counts."""
    order = Order(role=Role.GEN, packets=10 * SLOTS, burst=1, seconds=0.3, linger=0.05, kick=Kick.NEVER)
    report = bench.run(order)
    assert not report.complete
    assert report.drained is None
    assert report.packets == SLOTS - 1 == bench.host.waiting


def test_sink_receives_all_and_sees_gaps(bench: Bench) -> None:
    def frame(seq: int) -> bytes:
        return bytes(42) + STAMP.pack((MARK_GUEST, MARK_HOST)[seq % 2], seq | 7 << 48, 9 << 48)

    left = [frame(seq) for seq in range(1000) if seq not in (5, 6, 700)]
    left.insert(400, frame(3))
    left.append(bytes(60))
    order = Order(role=Role.SINK, packets=len(left), touch=Touch.STAMP)
    report = bench.run(order, lambda: left.__delitem__(slice(bench.host.give(left[:50]))))
    assert report.complete
    assert report.counters.rx_bytes == report.packets * 60
    assert (report.counters.seq_lost, report.counters.seq_late, report.counters.foreign) == (3, 1, 1)


def test_echo_returns_each_packet_with_addresses_swapped(bench: Bench) -> None:
    sent = [b"\x02dst-a\x02src-b" + struct.pack(">H", i) + bytes(60) for i in range(700)]
    left = list(sent)

    def step() -> None:
        left.__delitem__(slice(bench.host.give(left[:50])))
        bench.take()

    report = bench.run(Order(role=Role.ECHO, packets=len(sent), burst=32), step)
    assert report.counters.rx_packets == report.counters.tx_packets == len(sent)
    assert bench.taken == [frame[6:12] + frame[:6] + frame[12:] for frame in sent]


@pytest.mark.parametrize("wait", [Wait.POLL, Wait.IRQ])
def test_ping_counts_each_round_trip_once(bench: Bench, wait: Wait) -> None:
    """Asleep it is woken by our interrupts; the timer that ticks beside them must not be what saves it."""
    order = Order(role=Role.PING, packets=100, burst=1, window=1, touch=Touch.STAMP, wait=wait)
    report = bench.run(order, lambda: bench.host.give(bench.host.take()))
    latency = report.latency
    assert report.complete
    assert latency is not None
    assert latency.count == 100 == report.counters.rx_packets
    assert 0 < latency.min <= latency.percentile(50) <= latency.percentile(99) <= latency.max
    assert report.counters.seq_lost == report.counters.seq_late == report.counters.foreign == 0
    if wait is Wait.POLL:
        assert report.counters.sleeps == bench.host.interrupts == 0
    else:
        # One may come when the guest is already up, and stay pending at the end.
        assert 0 < report.counters.interrupts <= bench.host.interrupts


def test_sender_sleeps_until_there_is_room(bench: Bench) -> None:
    """A wake-up is asked for when half the ring is free, not for each slot."""
    order = Order(role=Role.GEN, packets=20 * SLOTS, burst=8, kick=Kick.NEVER, wait=Wait.IRQ)
    report = bench.run(order, lambda: [bench.host.take(8) for _ in range(4)])
    assert report.complete
    assert 0 < report.counters.interrupts <= bench.host.interrupts <= 2 * 20 + 1


def test_paced_sender_keeps_its_rate(bench: Bench) -> None:
    """What it sends in its time is what the rate allows, catching up included; never more."""
    order = Order(role=Role.GEN, seconds=0.5, rate=2000, burst=4, kick=Kick.NEVER)
    report = bench.run(order, bench.host.discard)
    assert report.packets <= 0.5 * 2000 + 4
    assert report.packets + 4 * report.counters.late >= 0.5 * 2000 - 64 - 4


def test_flows_differ_where_the_order_says(bench: Bench) -> None:
    order = Order(
        role=Role.GEN,
        packets=64,
        burst=8,
        flows=4,
        flow_fields=Flow.PORT | Flow.SMAC,
        dst=b"\x02dest-",
        src=b"\x02src\0\0",
    )
    bench.run(order, bench.take)
    assert {frame[:6] for frame in bench.taken} == {b"\x02dest-"}
    assert {frame[6:12] for frame in bench.taken} == {b"\x02src\0" + bytes([i]) for i in range(4)}
    assert {struct.unpack_from(">H", frame, 34)[0] for frame in bench.taken} == {1024, 1025, 1026, 1027}


def test_stop_ends_a_run_and_counters_move_meanwhile(bench: Bench) -> None:
    def step() -> None:
        bench.host.discard()
        if bench.guest.live().tx_packets > 1000:
            bench.guest.stop()

    report = bench.run(Order(role=Role.GEN, seconds=30), step)
    assert report.packets > 1000
    assert report.seconds < 30


def test_vnet_header_comes_before_each_frame(accel: Literal["kvm", "tcg"], tmp_path: Path) -> None:
    both = Feature.EVENT_IDX | Feature.VNET_HDR
    with MicroHost(tmp_path, features=both, mac="02:00:00:00:00:07") as host:
        machine = Machine(accel=accel, nic=Ivshmem(host.socket.path, vectors=3))
        with MicroGuest(machine, serve=host.serve) as guest:
            found = guest.open()
            assert found.features == both
            assert found.mac == "02:00:00:00:00:07"
            guest.run(Order(role=Role.GEN, packets=10, burst=5, size=60, linger=0))
            frames = host.take()
    assert [len(frame) for frame in frames] == [72] * 10
    assert {frame[:12] for frame in frames} == {bytes(12)}
    assert {frame[18:24] for frame in frames} == {bytes.fromhex("020000000007")}


def test_status_that_nobody_mirrors_is_reported(accel: Literal["kvm", "tcg"], tmp_path: Path) -> None:
    with MicroHost(tmp_path) as host:
        host.hdr.host_status = 4  # a daemon that died here, so that not even a reset is answered
        machine = Machine(accel=accel, nic=Ivshmem(host.socket.path, vectors=3))
        with (
            MicroGuest(machine, serve=host.socket.serve) as guest,
            pytest.raises(GuestError, match=r"did not mirror.*ETIMEDOUT"),
        ):
            guest.open(timeout=0.2)


def test_region_that_lies_is_refused(accel: Literal["kvm", "tcg"], tmp_path: Path) -> None:
    with MicroHost(tmp_path) as host:
        host.hdr.num_slots = 1 << 20
        machine = Machine(accel=accel, nic=Ivshmem(host.socket.path, vectors=3))
        with (
            MicroGuest(machine, serve=host.serve) as guest,
            pytest.raises(GuestError, match=r"out of range.*EINVAL"),
        ):
            guest.open()


def test_foreign_ivshmem_device_is_left_alone(accel: Literal["kvm", "tcg"], tmp_path: Path) -> None:
    with MicroHost(tmp_path) as host:
        host.hdr.magic = 1
        machine = Machine(accel=accel, nic=Ivshmem(host.socket.path, vectors=3))
        with (
            MicroGuest(machine, serve=host.serve) as guest,
            pytest.raises(GuestError, match=r"no such device.*ENODEV"),
        ):
            guest.open()


def test_second_order_waits_for_the_first(bench: Bench) -> None:
    bench.guest.begin(Order(role=Role.SINK, seconds=30))
    with pytest.raises(ConflictError, match="finish"):
        bench.guest.begin(Order(role=Role.SINK))
    bench.guest.stop()
    bench.guest.finish()


def test_machine_that_dies_is_reported_with_what_was_awaited(bench: Bench) -> None:
    bench.guest.begin(Order(role=Role.SINK, seconds=30))
    bench.guest._qemu.kill()
    with pytest.raises(
        GuestError, match="QEMU ended with status -9 while running as sink for 30 s"
    ) as caught:
        bench.guest.finish()
    assert "measure again" in (caught.value.hint or "")


def test_time_out_says_what_was_awaited_and_how_far_it_came(tmp_path: Path) -> None:
    """Nobody answers QEMU's side of the socket, so it never starts: the boot is what is awaited."""
    with MicroHost(tmp_path) as host:
        machine = Machine(nic=Ivshmem(host.socket.path, vectors=3))
        with (
            pytest.raises(TimeoutExpired, match="booting the micro guest under tcg on microvm"),
            MicroGuest(machine, boot_timeout=0.5),
        ):
            pass
