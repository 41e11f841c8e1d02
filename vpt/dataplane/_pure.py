# SPDX-License-Identifier: BSD-2-Clause
"""Functions that need no engine; any thread."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vpt.dataplane._native import check, ffi, lib, mac_bytes, name_bytes, new
from vpt.dataplane._types import RegionOptions, VnetHdr

__all__ = [
    "MAX_PAIRS",
    "MAX_WORKERS",
    "PEER_STATUS_OFS",
    "event_passed",
    "offload_frames",
    "region_create",
    "region_opts",
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

MAX_PAIRS: int = lib.VPT_MAX_PAIRS
MAX_WORKERS: int = lib.VPT_MAX_WORKERS
# Where in a region the peer's status word is, for who must reset a peer that vanished.
PEER_STATUS_OFS: int = ffi.offsetof("struct vpt_hdr", "peer_status")

# Room for what one packet can become: 64 KiB of payload, a header and a length for each of 2048 segments.
_OFFLOAD_CAP = 65550 + 2048 * (256 + 4)


def region_opts(opts: RegionOptions) -> Any:
    """The C form of region options."""
    return new(
        "struct vpt_region_opts *",
        {
            "name": name_bytes(opts.name, "region"),
            "pairs": opts.pairs,
            "num_slots": opts.num_slots,
            "buf_size": opts.buf_size,
            "mtu": opts.mtu,
            "mac": list(mac_bytes(opts.mac)),
            "features": opts.features,
        },
    )


def region_size(opts: RegionOptions) -> int:
    """Bytes of the region that these options give: a power of two."""
    return check(lib.vpt_region_size(region_opts(opts)), f"size of region {opts.name}")


def region_create(opts: RegionOptions) -> int:
    """A sealed memfd with header and empty rings. The caller closes it."""
    return check(lib.vpt_region_create(region_opts(opts)), f"create region {opts.name}")


def vec_tx(pairs: int, ring: int) -> int:
    """Doorbell and interrupt vector of a tx ring."""
    return int(lib.VPT_VEC_TX(pairs, ring))


def vec_rx(pairs: int, ring: int) -> int:
    """Doorbell and interrupt vector of an rx ring."""
    return int(lib.VPT_VEC_RX(pairs, ring))


def vec_cfg(pairs: int) -> int:
    """Vector of status, link and generation changes."""
    return int(lib.VPT_VEC_CFG(pairs))


def vec_count(pairs: int) -> int:
    """How many vectors, and so eventfds in each direction, a region has."""
    return int(lib.VPT_VEC_COUNT(pairs))


def event_passed(at: int, old: int, new_index: int, slots: int) -> bool:
    """Is `at` in the cyclic range [old, new_index) of a ring of that many slots?"""
    return bool(lib.vpt_event_passed(at, old, new_index, slots))


def vhost_features() -> int:
    """virtio-net, vhost and ring feature bits that the data plane implements."""
    return int(lib.vpt_vhost_features())


def signal_eventfd(fd: int) -> None:
    """Add one to an eventfd that an untrusted process has too; never blocks, whatever that does to it."""
    lib.vpt_eventfd_signal(fd)


def vhost_inflight_size(*, packed: bool, queues: int, queue_size: int) -> int:
    """Bytes that a record of what is in flight takes, for so many queues of so many descriptors."""
    return int(lib.vpt_vhost_inflight_size(packed, queues, queue_size))


def vhost_max_mem_regions() -> int:
    """Entries that a vhost-user memory table may have."""
    return int(lib.vpt_vhost_max_mem_regions())


def offload_frames(hdr: VnetHdr, frame: bytes, accepts: int) -> list[bytes]:
    """The frames that a packet becomes for a receiver that accepts those VPT_F_GUEST_* offloads only."""
    out = ffi.new("uint8_t[]", _OFFLOAD_CAP)
    c_hdr = new("struct vpt_vnet_hdr *", asdict(hdr))
    size = check(
        lib.vpt_offload_frames(c_hdr, ffi.from_buffer(frame), len(frame), accepts, out, _OFFLOAD_CAP),
        f"offload of a frame of {len(frame)} bytes",
    )
    raw = bytes(ffi.buffer(out, size))
    frames, at = [], 0
    while at < size:
        length = int.from_bytes(raw[at : at + 4], "little")
        frames.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return frames
