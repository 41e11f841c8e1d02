# SPDX-License-Identifier: BSD-2-Clause
"""The layout in abi.h is a promise to guests that were built yesterday: it may grow, it may not move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vpt
from vpt.dataplane import event_passed, vec_cfg, vec_count, vec_rx, vec_tx
from vpt.dataplane._native import ffi, lib

# netmap's own (net/netmap.h, API 14; net/netmap_virt.h), so that its macros work on our memory.
NETMAP = {
    "struct vpt_nm_slot": (16, {"buf_idx": 0, "len": 4, "flags": 6, "ptr": 8}),
    "struct vpt_nm_ring": (
        256,
        {
            "buf_ofs": 0,
            "num_slots": 8,
            "nr_buf_size": 12,
            "ringid": 16,
            "dir": 18,
            "head": 20,
            "cur": 24,
            "tail": 28,
            "flags": 32,
            "ts": 40,
            "offset_mask": 56,
            "buf_align": 64,
            "sem": 128,
            "slot": 256,
        },
    ),
    "struct vpt_nm_if": (
        56,
        {
            "ni_name": 0,
            "ni_version": 16,
            "ni_flags": 20,
            "ni_tx_rings": 24,
            "ni_rx_rings": 28,
            "ni_bufs_head": 32,
            "ring_ofs": 56,
        },
    ),
    "struct vpt_csb_atok": (64, {"head": 0, "cur": 4, "appl_need_kick": 8, "sync_flags": 12, "intr_at": 16}),
    "struct vpt_csb_ktoa": (64, {"hwcur": 0, "hwtail": 4, "kern_need_kick": 8, "kick_at": 12}),
    # virtio 1.2, 5.1.6
    "struct vpt_vnet_hdr": (
        12,
        {
            "flags": 0,
            "gso_type": 1,
            "hdr_len": 2,
            "gso_size": 4,
            "csum_start": 6,
            "csum_offset": 8,
            "num_buffers": 10,
        },
    ),
}

# Ours.
HDR = {
    "magic": 0,
    "abi_version": 8,
    "hdr_size": 12,
    "region_size": 16,
    "host_features": 24,
    "netmap_if_ofs": 32,
    "csb_atok_ofs": 36,
    "csb_ktoa_ofs": 40,
    "pairs": 44,
    "num_slots": 48,
    "buf_size": 52,
    "buf_pool_ofs": 56,
    "num_bufs": 60,
    "host_peer_id": 64,
    "mtu": 68,
    "mac": 70,
    "link": 76,
    "generation": 80,
    "host_status": 84,
    "host_error": 88,
    "name": 92,
    "peer_features": 2048,
    "peer_status": 2056,
    "peer_generation": 2060,
    "driver": 2064,
}


@pytest.mark.parametrize(("ctype", "layout"), NETMAP.items())
def test_foreign_structures_are_laid_out_as_their_owners_say(
    ctype: str, layout: tuple[int, dict[str, int]]
) -> None:
    size, offsets = layout
    assert ffi.sizeof(ctype) == size
    assert {field: ffi.offsetof(ctype, field) for field in offsets} == offsets


def test_header_fields_do_not_move() -> None:
    assert ffi.sizeof("struct vpt_hdr") == lib.VPT_HDR_SIZE == 4096
    assert {field: ffi.offsetof("struct vpt_hdr", field) for field in HDR} == HDR


def test_magic_reads_as_text_in_memory() -> None:
    assert lib.VPT_MAGIC.to_bytes(8, "little") == b"VPT-RING"
    assert lib.VPT_STATS_MAGIC.to_bytes(8, "little") == b"VPTSTATS"


def test_csb_of_the_largest_region_fits_its_page() -> None:
    room = lib.VPT_CSB_KTOA_OFS - lib.VPT_CSB_ATOK_OFS
    assert 2 * lib.VPT_MAX_PAIRS * ffi.sizeof("struct vpt_csb_atok") == room


@given(pairs=st.integers(1, lib.VPT_MAX_PAIRS))
def test_each_ring_has_a_vector_of_its_own(pairs: int) -> None:
    vectors = [vec_tx(pairs, i) for i in range(pairs)] + [vec_rx(pairs, i) for i in range(pairs)]
    assert sorted([*vectors, vec_cfg(pairs)]) == list(range(vec_count(pairs)))


@st.composite
def _event(draw: st.DrawFn) -> tuple[int, int, int, int]:
    slots = draw(st.integers(lib.VPT_MIN_SLOTS, lib.VPT_MAX_SLOTS))
    index = st.integers(0, slots - 1)
    return draw(index), draw(index), draw(index), slots


@given(_event())
def test_an_event_is_due_when_the_index_walks_over_it(event: tuple[int, int, int, int]) -> None:
    """The same question, asked step by step."""
    at, old, new, slots = event
    moved = (new - old) % slots
    assert event_passed(at, old, new, slots) == ((at - old) % slots < moved)


def test_event_at_the_old_index_counts_and_at_the_new_one_does_not() -> None:
    assert event_passed(5, 5, 6, 64)
    assert not event_passed(6, 5, 6, 64)
    assert not event_passed(5, 5, 5, 64)
    assert event_passed(63, 62, 1, 64)
    assert event_passed(0, 62, 1, 64)
    assert not event_passed(1, 62, 1, 64)


def test_package_and_build_have_one_version() -> None:
    from importlib.metadata import version

    assert vpt.__version__ == version("vpt")
