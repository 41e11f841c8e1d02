# SPDX-License-Identifier: BSD-2-Clause
"""The scenario `exits` with real guests. What is asserted are counts; times are the machine's business."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Literal

import pytest

from support.micro_host import accel_or_skip
from vpt.bench.micro import MicroGuest
from vpt.bench.scenario import Params, Runnable, Settings
from vpt.bench.scenarios._latency import PERCENTILES
from vpt.bench.scenarios.exits import SCENARIO
from vpt.errors import GuestError

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc", "make")]

PACED: Params = {"device": "passthrough", "rate": 1000}


@pytest.fixture(params=["tcg", "kvm"])
def settings(request: pytest.FixtureRequest) -> Settings:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("missing: a second CPU")
    return Settings(repetitions=1, scale=0.5, accel=accel_or_skip(request.param))


@contextlib.contextmanager
def ran(params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
    with SCENARIO.session(params, settings) as variants:
        yield variants


def counted(settings: Settings) -> Literal["exits", "kicks"]:
    """What a kick shows up as: under TCG the ioeventfd takes it, and no exit exists."""
    return "exits" if settings.accel == "kvm" else "kicks"


@pytest.mark.parametrize("batch", [1, 8])
def test_a_kick_every_n_packets_is_one_nth(settings: Settings, batch: int, no_leaks: None) -> None:
    with ran({"device": "passthrough", "batch": batch}, settings) as variants:
        values = variants["notify"]().values
    assert values[counted(settings)] == pytest.approx(1 / batch, rel=0.05)


def test_virtio_net_that_kicks_each_packet_shows_one(settings: Settings) -> None:
    with ran({"device": "virtio-net, kicks each", "load": "saturation"}, settings) as variants:
        values = variants["notify"]().values
    assert values["kicks"] == pytest.approx(1, rel=0.01)
    assert values[counted(settings)] == pytest.approx(1, rel=0.05)


def test_round_trips_are_measured_beside_the_counts(settings: Settings) -> None:
    with ran(PACED, settings) as variants:
        assert list(variants) == ["notify", "sleep", "poll", "adaptive"]
        values = variants["sleep"]().values
    # A host that is too busy for as many round trips as a percentile takes leaves it out.
    times = [values[name] for name in PERCENTILES if name in values]
    assert "min" in values
    assert times == sorted(times)
    assert values["kicks"] <= 0.1, "a host that sleeps and looks wants no kicks"


def test_results_carry_tier_and_source(settings: Settings) -> None:
    with ran({"device": "passthrough", "batch": 8}, settings) as variants:
        values = variants["notify"]().values
    where = SCENARIO.provenance()
    if settings.accel == "tcg":
        assert (where["tier"], where["counted"], where["source"]) == ("tcg", "dispatches", "qemu-trace")
        assert "exits" not in values, "under TCG nothing may look like an exit"
        assert any(line.startswith("Undecided") for line in SCENARIO.notes(settings, []))
    else:
        assert where["tier"].startswith("kvm")
        assert where["counted"] == "exits"
        assert "dispatches" not in values


def test_a_guest_that_dies_ends_the_run_with_a_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a zero, never a hang: what was counted until then is no result."""
    with ran({"device": "passthrough", "load": "saturation"}, settings) as variants:
        begin = MicroGuest.begin

        def begin_and_die(guest: MicroGuest, order: object) -> None:
            begin(guest, order)  # type: ignore[arg-type]
            os.kill(guest.pid, signal.SIGKILL)

        monkeypatch.setattr(MicroGuest, "begin", begin_and_die)
        with pytest.raises(GuestError, match="QEMU ended") as caught:
            variants["notify"]()
    assert caught.value.exit_code == 1
