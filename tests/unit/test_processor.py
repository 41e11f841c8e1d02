# SPDX-License-Identifier: BSD-2-Clause
"""Where the processor is emulated, what takes time is given more of it."""

from __future__ import annotations

import pytest

from vpt import processor


@pytest.mark.parametrize(
    ("name", "times"),
    [("AMD EPYC", 1), ("QEMU TCG CPU version 2.5+", processor._EMULATED_TIMES), ("", 1)],
    ids=["real", "emulated", "unknown"],
)
def test_limits_grow_where_the_processor_is_emulated(
    monkeypatch: pytest.MonkeyPatch, name: str, times: float
) -> None:
    monkeypatch.setattr(processor, "cpuinfo", lambda: {"model name": name} if name else {})
    assert processor.emulated() is (times > 1)
    assert processor.patience(5) == 5 * times
