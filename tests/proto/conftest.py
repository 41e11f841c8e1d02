# SPDX-License-Identifier: BSD-2-Clause
"""Ports on a switch, and front-ends for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from support.host import Host, VhostPort
from support.scene import FAULTS, MAX_LOG_LINES, Neighbours, logged, most_of_a_level
from support.stream import HostStream
from vpt.conform.frames import MAC_C
from vpt.conform.front_end import FrontEnd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """An engine with one worker and one switch."""
    with Host(tmp_path) as h:
        yield h


@pytest.fixture
def connect() -> Iterator[Callable[..., FrontEnd]]:
    """Make front-ends that are closed at the end: connect(port, ...) takes what FrontEnd takes."""
    with ExitStack() as stack:

        def make(port: VhostPort, **options: Any) -> FrontEnd:
            return stack.enter_context(FrontEnd(port.path, **options))

        yield make


MAC_D = b"\x52\x54\0\0\0\x04"


@pytest.fixture
def bystanders(host: Host) -> Iterator[Neighbours]:
    """Ports at work beside those of the test, which its acts must not concern: for what is hostile."""
    with (
        logged() as lines,
        closing(HostStream(host)) as stream,
        closing(Neighbours(host, ("one", "other"), (MAC_C, MAC_D))) as neighbours,
    ):
        yield neighbours
        stream.check()
        neighbours.forward()
        assert not [line for line in lines if "internal error" in line]
        for port in host.vhost_ports:
            said = [line for line in lines if line.startswith(f"port={port.port.name} ")]
            assert most_of_a_level(said) <= MAX_LOG_LINES
            if any(port.faults.get(name) for name in FAULTS):
                assert said, f"{port.port.name} has counted {port.faults} in silence"
