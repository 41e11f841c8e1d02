# SPDX-License-Identifier: BSD-2-Clause
"""The counters' file: read by others than its writer, so it may be anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpt.dataplane import Engine, Kind, Reason, StatsReader
from vpt.dataplane._native import ffi, lib
from vpt.dataplane.stats import COUNTERS, WORKER_COUNTERS
from vpt.errors import ConflictError, ProtocolError


def test_each_counter_has_a_name_of_its_own() -> None:
    """Names are what --json, `vpt top` and scripts see. A spare has none, so that it can get one later."""
    for prefix, names in (("VPT_C_", COUNTERS), ("VPT_W_", WORKER_COUNTERS)):
        in_header = {n: getattr(lib, n) for n in dir(lib) if n.startswith(prefix) and "SPARE" not in n}
        del in_header[f"{prefix}COUNT"]
        in_header.pop("VPT_C_BROKEN", None)
        assert {at for at in names.values() if at < lib.VPT_C_BROKEN} == set(in_header.values())
        assert all(name.islower() and name.isidentifier() for name in names)


def test_each_reason_has_a_counter_of_its_own() -> None:
    breakdowns = [at - lib.VPT_C_BROKEN for at in COUNTERS.values() if at >= lib.VPT_C_BROKEN]
    assert set(breakdowns) >= {reason.value for reason in Reason if reason is not Reason.NONE}


def test_stats_in_a_file_are_read_by_path(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "stats"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    with Engine(workers=2, stats_fd=fd) as engine:
        os.close(fd)
        engine.add_switch("sw0").add_port("p0", Kind.NULL)
        with StatsReader(path) as stats:
            snapshot = stats.read()
            assert snapshot.pid == os.getpid()
            assert [(q.port, q.switch) for q in snapshot.queues] == [("p0", "sw0")]
            assert len(snapshot.workers) == 2


def test_deleted_port_gives_its_block_back() -> None:
    with Engine() as engine, StatsReader(engine.stats_fd) as stats:
        switch = engine.add_switch("sw0")
        for i in range(10):
            port = switch.add_port(f"p{i}", Kind.NULL)
            assert [q.port for q in stats.read().queues] == [f"p{i}"]
            port.delete()
            assert stats.read().queues == ()


def test_reader_sees_the_last_counts_of_an_engine_that_is_gone() -> None:
    with Engine() as engine:
        stats = StatsReader(engine.stats_fd)
    stats.read()
    stats.close()
    stats.close()
    with pytest.raises(ConflictError):
        stats.read()


@pytest.mark.parametrize("content", ["empty", "zeros", "version", "size"])
def test_what_is_no_stats_file_is_refused(content: str, tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "stats"
    size = ffi.sizeof("struct vpt_stats")
    raw = bytearray(0 if content == "empty" else size)
    if raw:
        header = ffi.from_buffer("struct vpt_stats *", raw)
        header.magic = 0 if content == "zeros" else lib.VPT_STATS_MAGIC
        header.version = 99 if content == "version" else lib.VPT_STATS_VERSION
        header.size = 1 if content == "size" else size
        ffi.release(header)
    path.write_bytes(raw)
    with pytest.raises(ProtocolError) as caught:
        StatsReader(path)
    assert caught.value.hint
