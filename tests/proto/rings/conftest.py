# SPDX-License-Identifier: BSD-2-Clause
"""Every test here runs with rings of each layout, unless it says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.host import Host, VhostPort
from support.layouts import LAYOUTS
from vpt.conform.front_end import USUAL, FrontEnd

Connect = Callable[..., FrontEnd]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> int:
    """Features of a ring layout."""
    bits: int = request.param
    return bits


@pytest.fixture
def connect(connect: Connect, layout: int) -> Connect:
    """Front-ends with rings of that layout."""

    def make(port: VhostPort, *, features: int = int(USUAL), **options: Any) -> FrontEnd:
        return connect(port, features=features | layout, **options)

    return make


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    """Two vhost-user ports of one switch."""
    return host.vhost("a"), host.vhost("b")
