# SPDX-License-Identifier: BSD-2-Clause
"""Counters of the kernel and the processor, by perf_event_open(2)."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vpt.errors import MissingError
from vpt.perf_event import SOFTWARE_PAGE_FAULTS, EventType, open_counter, read_counter

PAGES = 64


@contextmanager
def page_faults() -> Iterator[int]:
    try:
        fd = open_counter(EventType.SOFTWARE, SOFTWARE_PAGE_FAULTS, threading.get_native_id(), user_only=True)
    except MissingError as why:
        pytest.skip(f"missing: {why}")
    try:
        yield fd
    finally:
        os.close(fd)


def test_what_a_thread_does_is_counted() -> None:
    with page_faults() as fd, mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        before = read_counter(fd)
        for page in range(PAGES):
            memory[page * mmap.PAGESIZE] = 1
        assert PAGES <= read_counter(fd) - before < 2 * PAGES


def test_no_such_thread_is_said_as_of_processes() -> None:
    with pytest.raises(ProcessLookupError):
        open_counter(EventType.SOFTWARE, SOFTWARE_PAGE_FAULTS, 2**22 + 1, user_only=True)
