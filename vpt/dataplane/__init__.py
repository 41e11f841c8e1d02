# SPDX-License-Identifier: BSD-2-Clause
"""The data plane as Python objects: typed handles over the C API (backend_c/include/vpt/vpt.h), no policy.

Everything here does what the C function of the same name does, and says so when it can't: a negative errno
becomes a DataplaneError, a value that does not fit becomes a UsageError, and a handle that is used after its
end raises ConflictError.

    Engine ── Switch ── Port       what vptd owns; closing a parent ends its children
       └──── Capture               copies of ports' packets
    App                            the application side of an app port, in any process
    CaptureReader                  takes a capture's packets, in any process
    StatsReader                    the counters, read from their mapping without asking anybody

Threads are the C API's: one control thread at a time for an engine and all that belongs to it; an App belongs
to one thread at a time and direction. No call holds the GIL while it is in C.

File descriptors that are passed in stay the caller's: the data plane duplicates those that it keeps.
"""

from vpt.dataplane._app import App
from vpt.dataplane._bench import (
    CopyResult,
    VirtqueueDriver,
    VirtqueueRing,
    bench_copy,
    bench_memcpy,
    line_ns,
    litmus,
)
from vpt.dataplane._capture import BpfInsn, Capture, CaptureInterface, CaptureReader, bpf_matches
from vpt.dataplane._engine import Engine, Port, Switch
from vpt.dataplane._gen import Receiver, Sender
from vpt.dataplane._pc import PcNotify, PcResult, PcSide, PcSpec, bench_pc
from vpt.dataplane._pure import (
    MAX_PAIRS,
    MAX_WORKERS,
    PEER_STATUS_OFS,
    event_passed,
    offload_frames,
    region_create,
    region_size,
    signal_eventfd,
    vec_cfg,
    vec_count,
    vec_rx,
    vec_tx,
    vhost_features,
    vhost_inflight_size,
    vhost_max_mem_regions,
)
from vpt.dataplane._types import (
    Event,
    EventType,
    Feature,
    InflightRecord,
    Kind,
    MacEntry,
    MemRegion,
    Policy,
    PolicyKind,
    PortState,
    Rate,
    Reason,
    RegionOptions,
    Rules,
    VnetHdr,
    Vring,
)
from vpt.dataplane.stats import QueueStats, Snapshot, StatsReader, WorkerStats

__all__ = [
    "MAX_PAIRS",
    "MAX_WORKERS",
    "PEER_STATUS_OFS",
    "App",
    "BpfInsn",
    "Capture",
    "CaptureInterface",
    "CaptureReader",
    "CopyResult",
    "Engine",
    "Event",
    "EventType",
    "Feature",
    "InflightRecord",
    "Kind",
    "MacEntry",
    "MemRegion",
    "PcNotify",
    "PcResult",
    "PcSide",
    "PcSpec",
    "Policy",
    "PolicyKind",
    "Port",
    "PortState",
    "QueueStats",
    "Rate",
    "Reason",
    "Receiver",
    "RegionOptions",
    "Rules",
    "Sender",
    "Snapshot",
    "StatsReader",
    "Switch",
    "VirtqueueDriver",
    "VirtqueueRing",
    "VnetHdr",
    "Vring",
    "WorkerStats",
    "bench_copy",
    "bench_memcpy",
    "bench_pc",
    "bpf_matches",
    "event_passed",
    "line_ns",
    "litmus",
    "offload_frames",
    "region_create",
    "region_size",
    "signal_eventfd",
    "vec_cfg",
    "vec_count",
    "vec_rx",
    "vec_tx",
    "vhost_features",
    "vhost_inflight_size",
    "vhost_max_mem_regions",
]
