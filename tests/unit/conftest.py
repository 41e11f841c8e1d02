# SPDX-License-Identifier: BSD-2-Clause
"""Real vptd processes, and what needs none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.vptd import Vptd
from vpt.daemon.transports.peer import Bundle
from vpt.daemon.transports.ring import create_bundle
from vpt.dataplane import RegionOptions


@pytest.fixture
def vptd() -> Iterator[Vptd]:
    """One that is not started yet."""
    daemon = Vptd()
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Vptd]:
    """One for all tests that only talk to it."""
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="lab")
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def cpus() -> tuple[int, int]:
    """Two that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("needs two CPUs")
    return usable[0], usable[1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own folder: sockets in it must fit an address."""
    with tempfile.TemporaryDirectory(prefix="vpt-") as name:
        yield Path(name)


@pytest.fixture
def pairs(request: pytest.FixtureRequest) -> int:
    """Of `bundle`."""
    count: int = getattr(request, "param", 1)
    return count


@pytest.fixture
def bundle(pairs: int) -> Iterator[Bundle]:
    """The memory of a port that no vptd has, and its eventfds."""
    made = create_bundle(RegionOptions("p", pairs=pairs, num_slots=64, buf_size=256))
    yield made
    made.close()
