# SPDX-License-Identifier: BSD-2-Clause
"""The fuzz target of the vhost-user socket without a fuzzer: its seeds, and changes to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fuzz_vhost_user import LEAVE, RAW, REQUESTS, Target, seeds
from vpt.vhost_user import Request, Rule

SEEDS = seeds()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    t = Target()
    yield t
    t.close()


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_breaks_no_rule(target: Target, name: str) -> None:
    """Else it would lead a fuzzer nowhere."""
    reached = target.one_input(SEEDS[name])
    assert not reached & ({rule.name for rule in Rule} | {"refused"})


def test_the_seeds_reach_every_message(target: Target) -> None:
    reached = set().union(*map(target.one_input, SEEDS.values()))
    assert {Request(request).name for request in REQUESTS} <= reached


def test_descriptors_that_stay_behind_would_be_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpt.daemon.transports.vhost.held.Held.drop", lambda _: None)
    with pytest.raises(AssertionError, match="descriptors"):
        target.one_input(SEEDS["split"])
    monkeypatch.undo()
    target.settle()


STEPS = st.one_of(
    st.builds(
        lambda request, fds, more: bytes([request, fds]) + more,
        st.integers(0, RAW - 1),
        st.integers(0, 255),
        st.binary(max_size=60),
    ),
    st.builds(
        lambda data, fds: bytes([RAW | len(data), *data, fds]), st.binary(max_size=100), st.integers(0, 9)
    ),
    st.just(bytes([LEAVE])),
    st.sampled_from([*SEEDS.values()]),
)


@given(st.lists(STEPS, max_size=6), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_said_nothing_is_held_and_nothing_escapes(
    target: Target, steps: list[bytes], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(steps))
    for at, value in changes:
        if data:
            data[at % len(data)] = value
    target.one_input(bytes(data))
