# SPDX-License-Identifier: BSD-2-Clause
"""The claims that a run of `exits` is held against: reached, missed, or not to be decided by this run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vpt.bench.micro import _guest, choose_accel
from vpt.bench.result import Point, Sample, Variant
from vpt.bench.scenario import Settings
from vpt.bench.scenarios import _rig
from vpt.bench.scenarios._claims import verdicts
from vpt.bench.scenarios._threads import agreement
from vpt.bench.scenarios.exits import SCENARIO
from vpt.bench.stats import LEAST_SAMPLES
from vpt.errors import GuestError, MissingError
from vpt.qemu import Accel, KvmFault, Qemu


@pytest.fixture
def undecided() -> Iterator[None]:
    """What KVM can do here is found out once in a process; not so what a test pretends."""
    choose_accel.cache_clear()
    yield
    choose_accel.cache_clear()


def point(
    params: dict[str, str | int | float], samples: int = LEAST_SAMPLES, **policies: dict[str, float]
) -> Point:
    return Point(
        params=params,
        variants=[
            Variant(name=name, samples=[Sample(repetition=i, at=0, values=values) for i in range(samples)])
            for name, values in policies.items()
        ],
    )


def said(points: list[Point], about: str, *, native: bool = True) -> list[str]:
    return [line for line in verdicts(points, native=native) if about in line]


@pytest.mark.parametrize(("exits", "verdict"), [(1.0, "Reached"), (0.97, "Reached"), (0.5, "MISSED")])
def test_control_must_show_one_exit_per_packet(exits: float, verdict: str) -> None:
    """Where kicking each packet is not one exit each, the counters are wrong, and so is all the rest."""
    points = [point({"device": "virtio-net, kicks each", "rate": 1000}, notify={"exits": exits})]
    assert [line.partition(":")[0] for line in said(points, "kicking every packet")] == [verdict]


@pytest.mark.parametrize(("exits", "verdict"), [(0.125, "Reached"), (0.14, "MISSED")])
def test_a_batch_of_n_is_one_nth(exits: float, verdict: str) -> None:
    points = [point({"device": "passthrough", "batch": 8}, notify={"exits": exits})]
    assert said(points, "every 8 packets")[0].startswith(verdict)


def test_a_rate_that_is_not_reached_is_shown_as_it_is() -> None:
    points = [
        point({"device": "passthrough", "load": "saturation"}, adaptive={"exits": 0.0001, "mpps": 7.25})
    ]
    assert said(points, "exits per packet")[0].startswith("Reached")
    assert said(points, "Mpps") == ["MISSED: passthrough at saturation, adaptive, >= 20 Mpps: 7.25."]


@pytest.mark.parametrize(
    ("values", "about", "numbers"),
    [
        ({"mpps": 0.0098}, "Mpps", "0.0098"),
        ({"mpps": 19.996}, "Mpps", "19.996"),
        ({"exits": 0.00100004}, "exits per packet", "0.00100004"),
    ],
)
def test_what_is_missed_is_shown_with_digits_that_miss_it(
    values: dict[str, float], about: str, numbers: str
) -> None:
    points = [point({"device": "passthrough", "load": "saturation"}, adaptive=values)]
    (line,) = said(points, about)
    assert line.startswith("MISSED")
    assert line.endswith(f": {numbers}.")


def test_a_batch_that_is_off_by_a_little_too_much_shows_it() -> None:
    points = [point({"device": "passthrough", "batch": 8}, notify={"exits": 1.0504 / 8})]
    (line,) = said(points, "every 8 packets")
    assert line.endswith("within 5%: 0.131 (+5.04%).")


def test_numbers_that_are_held_against_each_other_differ_where_they_do() -> None:
    at, theirs = {"device": "passthrough", "rate": 1000}, {"device": "virtio-net, event index", "rate": 1000}
    points = [
        point(at, adaptive={"exits": 0.00001, "cpu": 0.31, "p99": 12.41}, notify={"p99": 12.38}),
        point(theirs, notify={"exits": 0.0000121}),
    ]
    (exits,), (p99,) = said(points, "event index"), said(points, "p99")
    assert "1e-05 (1e-05..1e-05) against 1.21e-05 (1.21e-05..1.21e-05); adaptive takes 0.31% of a" in exits
    assert p99.endswith("12.41 (12.4..12.4) us against 12.38 (12.4..12.4) us.")


@pytest.mark.parametrize(("ours", "verdict"), [(0.4, "Reached"), (0.8, "MISSED")])
def test_adaptive_is_held_against_virtio_net_with_event_index_at_the_same_rate(
    ours: float, verdict: str
) -> None:
    points = [
        point({"device": "passthrough", "rate": 10000}, adaptive={"exits": ours, "cpu": 40}),
        point({"device": "virtio-net, event index", "rate": 10000}, notify={"exits": 0.7}),
        point({"device": "virtio-net, event index", "rate": 1000}, notify={"exits": 0.9}),
    ]
    (line,) = said(points, "virtio-net with event index")
    assert line.startswith(verdict)
    assert "adaptive takes 40% of a core" in line


@pytest.mark.parametrize(("p99", "verdict"), [(90, "Reached"), (200, "MISSED")])
def test_adaptive_must_not_be_later_than_notify(p99: float, verdict: str) -> None:
    points = [point({"device": "passthrough", "rate": 1000}, adaptive={"p99": p99}, notify={"p99": 100})]
    assert said(points, "p99")[0].startswith(verdict)


def test_what_a_latency_costs_stands_beside_it() -> None:
    ours, theirs = {"p99": 90.0, "trip_cpu": 41.2}, {"p99": 100.0, "trip_cpu": 0.3}
    points = [point({"device": "passthrough", "rate": 1000}, adaptive=ours, notify=theirs)]
    assert said(points, "p99")[0].endswith("; that takes 41.2% against 0.3% of a core.")


def test_more_but_by_less_than_it_varies_is_neither_reached_nor_missed() -> None:
    """A claim that holds only because the samples scatter is not held."""
    notify, adaptive = (90, 95, 95, 100, 115, 115, 130), (95, 102, 102, 110, 125, 125, 140)
    repeated = [
        Variant(name=name, samples=[Sample(repetition=i, at=0, values={"p99": v}) for i, v in enumerate(p99)])
        for name, p99 in (("notify", notify), ("adaptive", adaptive))
    ]
    (line,) = said([Point(params={"device": "passthrough", "rate": 1000}, variants=repeated)], "p99")
    assert line.startswith("Undecided")
    assert line.endswith("110 (102..125) us against 100 (95..115) us.")


def test_a_claim_is_not_missed_by_too_few_samples() -> None:
    params = {"device": "passthrough", "rate": 1000}
    few = point(params, LEAST_SAMPLES - 1, adaptive={"p99": 200}, notify={"p99": 100})
    assert said([few], "p99")[0].startswith("Undecided")


def test_under_tcg_kicks_are_judged_and_exits_are_not() -> None:
    points = [
        point({"device": "passthrough", "batch": 1}, notify={"kicks": 1.0, "dispatches": 0.0}),
        point({"device": "passthrough", "load": "saturation"}, adaptive={"kicks": 0.0, "mpps": 30}),
    ]
    lines = verdicts(points, native=False)
    assert lines[0].startswith("Reached: a kick every 1 packets, 1/1 kicks per packet")
    assert not any("Mpps" in line for line in lines)
    assert lines[-1].startswith("Undecided")


@pytest.mark.parametrize(
    ("exits", "verdict"),
    [(0.0001, "Reached"), (0.00104, "Undecided"), (1 / 64, "Undecided"), (0.02, "MISSED")],
)
def test_on_an_emulated_processor_exits_are_judged_beyond_a_kick_per_burst_and_times_are_not(
    exits: float, verdict: str
) -> None:
    """There, worker and guest wait for each other's turns. Elsewhere nothing is excused."""
    points = [
        point({"device": "passthrough", "load": "saturation"}, adaptive={"exits": exits, "mpps": 1}),
        point({"device": "passthrough", "rate": 1000}, adaptive={"p99": 9}, notify={"p99": 1}),
    ]
    lines = verdicts(points, native=True, timed=False)
    assert [line.partition(":")[0] for line in lines] == [verdict, "Undecided"]
    assert "emulated" in lines[-1]
    (line,) = said(points, "0.001 exits per packet")
    assert line.startswith("Reached" if verdict == "Reached" else "MISSED")


def _beside_model(threads: dict[str, float], model: dict[str, float], wp: int = 2500) -> Point:
    return point({"wp": wp}, threads=threads, model=model)


def test_what_is_off_the_model_is_told_by_its_name_and_in_numbers() -> None:
    silent = {"rate": 100.0, "per_batch": 0.0, "notifications": 0.0}
    points = [
        _beside_model(
            {"rate": 100.0, "per_batch": 0.5, "notifications": 0.5}, silent | {"per_batch": 0.5}, 1
        ),
        _beside_model({"rate": 97.0, "per_batch": 0.02, "notifications": 0.02}, silent, 2),
    ]
    head, off = agreement(points, told="per_batch")
    assert head.startswith("1 of 2 points agree")
    assert off.startswith("Off: wp 2: throughput -3.0%, 1/b 0.02 where the model has none; ")
    head, *_ = agreement(points, told="notifications")
    assert head.startswith("0 of 2 points agree")


@pytest.mark.parametrize("there", ["threads", "model"])
def test_a_point_at_which_only_one_was_measured_does_not_agree(there: str) -> None:
    points = [point({"wp": 1}, **{there: {"rate": 1.0, "notifications": 1.0}})]
    head, off = agreement(points)
    assert head.startswith("0 of 1 points agree")
    assert "inf" not in off


def test_what_was_not_measured_is_not_judged() -> None:
    assert verdicts([], native=True) == []


@pytest.mark.parametrize("why", ["no /dev/kvm on this host", "KVM does not run the micro guest: time is up"])
def test_without_a_kvm_that_runs_the_guest_asking_for_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(_rig, "choose_accel", lambda: Accel("tcg", why))
    settings = Settings(accel="kvm", cpus=(0, 1))
    with (
        pytest.raises(MissingError, match=why) as caught,
        SCENARIO.session(SCENARIO.points(settings)[0], settings),
    ):
        pass
    assert caught.value.exit_code == 3
    assert "--accel tcg" in (caught.value.hint or "")


def test_full_adds_rates_and_drops_none() -> None:
    short, full = (SCENARIO.points(Settings(full=full)) for full in (False, True))
    assert all(p in full for p in short)
    assert len(full) > len(short)


@pytest.mark.usefixtures("undecided")
def test_why_kvm_does_not_run_the_guest_is_said_in_the_words_of_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(guest: object) -> None:
        raise GuestError("QEMU ended with status 1\n--- stderr ---\nqemu: a warning\nqemu: no such ioctl")

    monkeypatch.setattr(_guest, "kvm_fault", lambda: None)
    monkeypatch.setattr(_guest.MicroGuest, "__enter__", fail)
    assert choose_accel().name == "tcg"
    assert choose_accel().why.endswith("QEMU ended with status 1; it last said: qemu: no such ioctl")


@pytest.mark.usefixtures("undecided")
def test_a_kvm_that_may_not_be_opened_is_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vpt doctor names it."""
    choose_accel.cache_clear()
    monkeypatch.setattr(
        _guest, "kvm_fault", lambda: KvmFault("no permission for /dev/kvm", "sudo adduser eve virt")
    )
    settings = Settings(accel="kvm", cpus=(0, 1))
    what = r"no permission for /dev/kvm \(sudo adduser eve virt\)"
    with (
        pytest.raises(MissingError, match=what) as caught,
        SCENARIO.session(SCENARIO.points(settings)[0], settings),
    ):
        pass
    assert caught.value.exit_code == 3


def test_a_qemu_that_is_too_old_is_missing_and_not_a_kvm_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guest, "find_qemu", lambda: Qemu(Path("/old/qemu"), (6, 2, 0)))
    with pytest.raises(MissingError, match=r"QEMU 6\.2\.0 .*too old") as caught:
        _guest.MicroGuest(_guest.Machine(accel="tcg")).start()
    assert "VPT_QEMU" in (caught.value.hint or "")
