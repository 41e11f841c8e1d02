# SPDX-License-Identifier: BSD-2-Clause
"""Real vptd processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.vptd import Vptd


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
