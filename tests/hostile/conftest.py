# SPDX-License-Identifier: BSD-2-Clause
"""The stage that the hostile tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A villain's port and two neighbours at work."""
    s = Scene.build(tmp_path)
    yield s
    s.close()


@pytest.fixture
def hasty_scene(tmp_path: Path) -> Iterator[Scene]:
    """The same, with a port that waits 0.2 s for a message to be completed."""
    s = Scene.build(tmp_path, message_timeout_s=0.2)
    yield s
    s.close()
