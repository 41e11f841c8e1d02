# SPDX-License-Identifier: BSD-2-Clause
"""Ports on a switch, and front-ends for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.host import Host, VhostPort
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
