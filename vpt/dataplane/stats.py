# SPDX-License-Identifier: BSD-2-Clause
"""The counters, read from the mapping that the workers write to; nobody is asked and nothing is locked.

A counter is read whole but two counters are not of the same instant: rates and ratios need a pause between
snapshots, not a lock.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt.closing import Closing
from vpt.dataplane._native import ffi, lib, text
from vpt.dataplane._types import Kind
from vpt.errors import ConflictError, ProtocolError

__all__ = ["COUNTERS", "WORKER_COUNTERS", "QueueStats", "Snapshot", "StatsReader", "WorkerStats"]


def _names(function: Any, count: int) -> dict[str, int]:
    """Counter names to their index; spares have none."""
    raw = ((function(i), i) for i in range(count))
    return {text(name): i for name, i in raw if name != ffi.NULL}


COUNTERS: dict[str, int] = _names(lib.vpt_counter_name, lib.VPT_C_COUNT)
WORKER_COUNTERS: dict[str, int] = _names(lib.vpt_wcounter_name, lib.VPT_W_COUNT)


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Counters of one queue pair of a port."""

    port: str
    switch: str
    port_id: int
    kind: Kind
    queue: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters of one worker."""

    index: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All counters at about one moment. `start_ns` is when the engine started (CLOCK_REALTIME)."""

    pid: int
    start_ns: int
    workers: tuple[WorkerStats, ...]
    queues: tuple[QueueStats, ...]

    def by_port(self) -> dict[int, Counter[str]]:
        """Counters per port id, summed over its queue pairs."""
        total: dict[int, Counter[str]] = {}
        for queue in self.queues:
            total.setdefault(queue.port_id, Counter()).update(queue.counters)
        return total

    def port(self, port_id: int) -> Counter[str]:
        """Counters of one port; all zero if it has no queue."""
        return self.by_port().get(port_id, Counter())


class StatsReader(Closing):
    """A read-only view of a stats file, by path or by file descriptor (which stays the caller's)."""

    def __init__(self, source: int | str | Path) -> None:
        self._map: mmap.mmap | None = None
        if isinstance(source, int):
            self._map = self._open(source)
        else:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._map = self._open(fd)
            finally:
                os.close(fd)
        self._stats: Any = ffi.from_buffer("struct vpt_stats *", self._map)
        try:
            self._verify()
        except ProtocolError:
            self.close()
            raise

    @staticmethod
    def _open(fd: int) -> mmap.mmap:
        if os.fstat(fd).st_size < ffi.sizeof("struct vpt_stats"):
            raise _not_stats("too short")
        return mmap.mmap(fd, ffi.sizeof("struct vpt_stats"), mmap.MAP_SHARED, mmap.PROT_READ)

    def _verify(self) -> None:
        s = self._stats
        if s.magic != lib.VPT_STATS_MAGIC:
            raise _not_stats("no magic")
        if s.version != lib.VPT_STATS_VERSION or s.size != ffi.sizeof("struct vpt_stats"):
            raise _not_stats(f"version {s.version}, {s.size} bytes")

    def close(self) -> None:
        """Unmap. Harmless the second time."""
        if self._map is not None:
            ffi.release(self._stats)
            self._map.close()
            self._map = None

    def read(self) -> Snapshot:
        """All counters of ports that exist and of workers that run."""
        if self._map is None:
            raise ConflictError("this reader is closed")
        s = self._stats
        workers = tuple(
            WorkerStats(i, {name: s.worker[i].w[at] for name, at in WORKER_COUNTERS.items()})
            for i in range(min(s.workers, len(s.worker)))
        )
        blocks = (self._block(s.block[i]) for i in range(min(s.blocks, len(s.block))))
        return Snapshot(s.pid, s.start_ns, workers, tuple(b for b in blocks if b is not None))

    @staticmethod
    def _block(b: Any) -> QueueStats | None:
        """One block, or None if it is free or changed hands while it was read."""
        if not b.in_use:
            return None
        port_id = b.port_id
        counters = {name: b.c[at] for name, at in COUNTERS.items()}
        stats = QueueStats(text(b.port), text(b.sw), port_id, Kind(b.kind), b.queue, counters)
        return stats if b.in_use and b.port_id == port_id else None


def _not_stats(why: str) -> ProtocolError:
    return ProtocolError(
        f"not a stats file of this version of vpt: {why}",
        hint="daemon and command must be of one version: vpt daemon status",
    )
