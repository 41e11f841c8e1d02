# SPDX-License-Identifier: BSD-2-Clause
"""The rules for reading exit counters with care."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vpt.errors import GuestError, UsageError
from vpt.exits import meter, render
from vpt.exits.model import Identity, Quantity, Sample, Tier


def identity(
    tier: Tier = Tier.KVM, quantity: Quantity = Quantity.EXITS, source: str = "qmp", **more: object
) -> Identity:
    fields = {"tier": tier, "tier_evidence": "because", "source": source, "quantity": quantity, "vm": "vm1"}
    return Identity.model_validate(fields | more)


def sample(second: float, packets: int | None = None, cpu_ms: int | None = None, **counters: int) -> Sample:
    return Sample(at_ns=int(second * 1e9), units={"vcpu0": dict(counters)}, packets=packets, cpu_ms=cpu_ms)


def measured(who: Identity, before: Sample, after: Sample) -> meter.Measure:
    return meter.measure(who, meter.delta(who, before, after))


def test_interrupts_are_taken_off_before_dividing_by_packets() -> None:
    m = measured(identity(), sample(0, 0, exits=0, irq_exits=0), sample(1, 1000, exits=1470, irq_exits=470))
    assert (m.raw, m.noise, m.counted) == (1470, 470, 1000)
    assert m.per_packet == 1.0
    assert m.per_second == 1000.0


def test_a_signal_is_not_taken_off_twice() -> None:
    """The interrupt that carries it is in irq_exits already: these are numbers that were measured."""
    m = measured(
        identity(),
        sample(0, exits=0, irq_exits=0, signal_exits=0),
        sample(1, exits=116, irq_exits=116, signal_exits=100),
    )
    assert m.refused is None
    assert m.counted == 0


def test_the_signal_that_a_query_of_old_qemu_sends_is_taken_off_signal_exits() -> None:
    before, after = sample(0, exits=0, signal_exits=5), sample(1, exits=9, signal_exits=8)
    for per_query, left in ((0, 3), (1, 2)):
        d = meter.delta(identity(kicks_per_query=per_query), before, after)
        assert d.total("signal_exits") == left
    idle = meter.delta(identity(kicks_per_query=1), before, sample(1, exits=9, signal_exits=5))
    assert idle.total("signal_exits") == 0, "a vCPU that was not in the guest took no signal"


def test_every_query_of_a_recording_is_taken_off_signal_exits() -> None:
    samples = [sample(i, exits=10 * i, signal_exits=3 * i) for i in range(11)]
    assert meter.span(identity(kicks_per_query=1), samples).total("signal_exits") == 20


def test_emulated_code_gets_no_verdict() -> None:
    m = measured(
        identity(),
        sample(0, exits=0, irq_exits=0, insn_emulation=0),
        sample(1, exits=2000, irq_exits=0, insn_emulation=2_000_000),
    )
    assert m.counted is None
    assert m.per_second is None
    assert m.refused is not None
    assert "emulated" in m.refused


def test_one_emulated_instruction_per_exit_is_how_port_io_works() -> None:
    m = measured(
        identity(),
        sample(0, exits=0, irq_exits=0, insn_emulation=0),
        sample(1, exits=10_040, irq_exits=18, insn_emulation=10_022),
    )
    assert m.refused is None
    assert m.counted == 10_022


def test_a_missing_counter_is_none_and_never_zero() -> None:
    d = meter.delta(identity(missing=("io_exits",)), sample(0, exits=1), sample(1, exits=2))
    assert d.units["vcpu0"]["io_exits"] is None
    assert d.total("io_exits") is None
    assert d.total("no such counter") is None


def test_without_irq_exits_nothing_is_divided() -> None:
    m = measured(identity(missing=("irq_exits",)), sample(0, 0, exits=1), sample(1, 100, exits=101))
    assert (m.raw, m.noise, m.counted, m.per_packet) == (100, None, None, None)
    with pytest.raises(GuestError, match="irq_exits"):
        meter.rate(identity(missing=("irq_exits",)), [sample(0, 0, exits=1), sample(1, 100, exits=101)])


def test_io_exits_says_nothing_on_pvm() -> None:
    before, after = sample(0, exits=0, irq_exits=0, io_exits=0), sample(1, exits=9, irq_exits=0, io_exits=0)
    assert meter.delta(identity(Tier.KVM), before, after).total("io_exits") == 0
    assert meter.delta(identity(Tier.KVM_PVM), before, after).total("io_exits") is None


def test_mmio_exits_of_pvm_come_with_their_meaning() -> None:
    m = measured(
        identity(Tier.KVM_PVM),
        sample(0, exits=0, irq_exits=0, mmio_exits=0),
        sample(1, exits=9, irq_exits=0, mmio_exits=9),
    )
    assert any("user space" in note for note in m.notes)


def test_exits_that_do_not_move_are_not_a_zero() -> None:
    stuck = measured(
        identity(), sample(0, cpu_ms=0, exits=7, irq_exits=1), sample(1, cpu_ms=900, exits=7, irq_exits=1)
    )
    assert stuck.counted is None
    assert "does not count" in str(stuck.refused)
    halted = measured(
        identity(), sample(0, cpu_ms=0, exits=7, irq_exits=1), sample(1, cpu_ms=0, exits=7, irq_exits=1)
    )
    assert halted.counted is None
    assert "did not run" in str(halted.refused)


BLIND = pytest.mark.parametrize(
    ("tier", "quantity"), [(Tier.TCG, Quantity.DISPATCHES), (Tier.KVM_PVM, Quantity.USERSPACE_EXITS)]
)
"""What does not hold the kicks that an ioeventfd takes, under the tier that has it."""


@BLIND
def test_nothing_counted_is_no_result_where_an_ioeventfd_may_have_taken_the_kicks(
    tier: Tier, quantity: Quantity
) -> None:
    """A guest that polls memory counts nothing here, and so does one that kicks each packet."""
    who = identity(tier, quantity, source="of that kind")
    name = quantity.value

    def after(packets: int | None, cpu_ms: int) -> meter.Measure:
        before = Sample(at_ns=0, units={}, cpu_ms=0, packets=None if packets is None else 0)
        units = {"serial": {name: 0}}
        return measured(who, before, Sample(at_ns=10**9, units=units, cpu_ms=cpu_ms, packets=packets))

    for packets in (None, 0):
        computed = after(packets, cpu_ms=900)
        assert computed.counted is None
        assert "the VM used 900 ms of CPU" in str(computed.refused)
        assert "did not run" in str(after(packets, cpu_ms=0).refused)
    passed = after(500, cpu_ms=900)
    assert (passed.counted, passed.per_packet) == (None, None)
    assert f"no {name} while 500 packets passed: of that kind does not count" in str(passed.refused)
    assert "--source vpt" in str(passed.refused)


@BLIND
def test_an_interval_without_any_counts_as_one_where_others_have_some(tier: Tier, quantity: Quantity) -> None:
    counts = (0, 40, 40, 40, 80, 80, 80)
    samples = [
        Sample(at_ns=i * 10**9, units={"vm": {quantity.value: n}}, packets=1000 * i)
        for i, n in enumerate(counts)
    ]
    r = meter.rate(identity(tier, quantity), samples)
    assert (r.intervals, r.low) == (6, 0.0)


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("quantity", list(Quantity))
def test_what_an_ioeventfd_takes_is_said_of_each_quantity_that_lacks_it(
    tier: Tier, quantity: Quantity
) -> None:
    who = identity(tier, quantity)
    m = measured(
        who,
        sample(0, 0, **{quantity.value: 0}, irq_exits=0),
        sample(1, 9, **{quantity.value: 9}, irq_exits=0),
    )
    lacks = quantity in (Quantity.DISPATCHES, Quantity.USERSPACE_EXITS)
    assert any("ioeventfd" in note for note in m.notes) == lacks
    if quantity is Quantity.KICKS:
        assert not any("dispatches" in note for note in m.notes), "kicks are what is counted"


def test_no_kick_is_a_result_only_where_packets_passed() -> None:
    who = identity(quantity=Quantity.KICKS, source="vpt")
    before = sample(0, 0, 0, kicks=7)
    assert measured(who, before, sample(1, 500, 900, kicks=7)).per_packet == 0
    assert "no packet" in str(measured(who, before, sample(1, 0, 900, kicks=7)).refused)


def test_a_region_seen_for_the_first_time_began_at_zero() -> None:
    who = identity(Tier.TCG, Quantity.DISPATCHES)
    m = measured(who, Sample(at_ns=0, units={}), Sample(at_ns=10**9, units={"serial": {"dispatches": 4}}))
    assert m.counted == 4


def test_counters_that_run_backwards_are_another_vm() -> None:
    with pytest.raises(GuestError, match="ran backwards"):
        meter.delta(identity(), sample(0, exits=9), sample(1, exits=8))


def test_packets_that_run_backwards_are_an_error_and_no_number() -> None:
    """-188711 packets would have made -0.0035 exits each."""
    before, after = sample(0, 200_000, exits=0, irq_exits=0), sample(1, 11_289, exits=664, irq_exits=0)
    with pytest.raises(GuestError, match="ran backwards, from 200000 to 11289") as caught:
        meter.delta(identity(), before, after)
    assert caught.value.hint
    with pytest.raises(GuestError, match="ran backwards"):
        meter.span(identity(), [before, after])


def test_a_vm_that_was_stopped_for_part_of_the_time_is_said_to_have_been() -> None:
    samples = [sample(i, exits=100 * i, irq_exits=0) for i in range(5)]
    samples[2] = samples[2].model_copy(update={"stopped": True})
    parts = [meter.measure(identity(), d) for d in meter.intervals(identity(), samples)]
    assert [meter.STOPPED in m.notes for m in parts] == [False, True, True, False]
    assert meter.STOPPED in meter.measure(identity(), meter.span(identity(), samples)).notes
    awake = meter.span(identity(), samples[3:])
    assert meter.STOPPED not in meter.measure(identity(), awake).notes


def test_a_vcpu_that_goes_away_is_named() -> None:
    with pytest.raises(GuestError, match="vcpu0"):
        meter.delta(identity(), sample(0, exits=9), Sample(at_ns=10**9, units={"vcpu1": {"exits": 10}}))


def test_contradicting_counters_get_no_verdict() -> None:
    m = measured(identity(), sample(0, exits=0, irq_exits=0), sample(1, exits=5, irq_exits=6))
    assert m.counted is None
    assert "contradict" in str(m.refused)


def recording(*steps: int, who: Identity | None = None) -> tuple[Identity, list[Sample]]:
    """Samples a second and 1000 packets apart with so many exits between them."""
    total, samples = 0, [sample(0, 0, exits=0, irq_exits=0)]
    for i, step in enumerate(steps, 1):
        total += step
        samples.append(sample(i, i * 1000, exits=total, irq_exits=0))
    return who or identity(), samples


def test_a_clear_difference_is_called_one() -> None:
    c = meter.compare(recording(1000, 990, 1010, 1000, 1000), recording(30, 31, 33, 30, 31))
    assert c.clear
    assert c.a.unit == "per packet"
    assert c.factor == pytest.approx(0.031)
    assert c.verdict.startswith("B fewer")


def test_differences_within_the_spread_or_five_percent_are_not_called_one() -> None:
    wide = meter.compare(recording(100, 900, 200, 800, 500), recording(200, 1000, 300, 900, 600))
    assert not wide.clear
    assert "overlap" in wide.verdict
    small = meter.compare(recording(100, 100, 100, 100), recording(104, 104, 104, 104))
    assert not small.clear
    assert small.verdict.startswith("no difference")


@pytest.mark.parametrize("other", [30, 1000], ids=["differs", "equal"])
def test_few_intervals_tell_neither_a_difference_nor_that_there_is_none(other: int) -> None:
    for steps in ((1000,), (1000, 1000, 1000)):
        few = meter.compare(recording(*steps), recording(other, other, other, other))
        assert not few.clear
        assert few.verdict.startswith("undecided")
        assert "too few to tell" in few.verdict


def test_four_intervals_tell_a_difference() -> None:
    assert meter.compare(recording(1000, 1000, 1000, 1000), recording(30, 30, 30, 30)).clear


@pytest.mark.parametrize(
    ("a", "b"), [(Tier.KVM, Tier.KVM_PVM), (Tier.KVM, Tier.TCG), (Tier.KVM_PVM, Tier.TCG)]
)
def test_tiers_are_never_compared(a: Tier, b: Tier) -> None:
    with pytest.raises(UsageError, match="not comparable") as caught:
        meter.compare(recording(100, who=identity(a)), recording(100, who=identity(b)))
    assert a.value in str(caught.value)
    assert b.value in str(caught.value)
    assert caught.value.hint


def test_what_is_counted_must_be_the_same_too() -> None:
    with pytest.raises(UsageError, match="counts userspace_exits"):
        meter.compare(
            recording(100),
            recording(100, who=identity(quantity=Quantity.USERSPACE_EXITS, source="tracepoints")),
        )


def test_per_packet_and_per_second_are_not_compared() -> None:
    without = [s.model_copy(update={"packets": None}) for s in recording(100, 100)[1]]
    with pytest.raises(UsageError, match="per second"):
        meter.compare(recording(100, 100), (identity(), without))


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=8),
    st.integers(0, 2),
)
def test_parts_add_up_to_the_whole(steps: list[tuple[int, int]], kicks: int) -> None:
    """What is counted over a recording is the sum of its intervals, however it is cut."""
    who = identity(kicks_per_query=kicks)
    guest = noise = 0
    samples = [sample(0, exits=0, irq_exits=0)]
    for i, (g, n) in enumerate(steps, 1):
        guest, noise = guest + g, noise + n
        samples.append(sample(i, exits=guest + noise, irq_exits=noise))
    parts = meter.intervals(who, samples)
    whole = meter.span(who, samples)
    for name in ("exits", "irq_exits"):
        assert sum(part.total(name) or 0 for part in parts) == whole.total(name)
    m = meter.measure(who, whole)
    assert m.counted == (guest if guest + noise else None)


def test_the_title_of_a_table_without_counters_is_one_line() -> None:
    who = identity()
    nothing = measured(who, Sample(at_ns=0, units={}), Sample(at_ns=10**9, units={}))
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render.table(who, nothing))
    first, *_ = console.export_text().splitlines()
    assert first.strip() == f"{who.vm}: {who.tier.value}, source {who.source}"
