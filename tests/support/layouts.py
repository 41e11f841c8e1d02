# SPDX-License-Identifier: BSD-2-Clause
"""The layouts that a ring may have."""

from __future__ import annotations

import pytest

from vpt.vhost_user import VirtioFeature as F

LAYOUTS = [
    pytest.param(0, id="split"),
    pytest.param(int(F.RING_PACKED), id="packed"),
    pytest.param(int(F.RING_PACKED | F.IN_ORDER), id="packed in order"),
]
"""Features of each: parameters of a test or fixture."""
