# SPDX-License-Identifier: BSD-2-Clause
"""The peer of a region, byte by byte: what a driver does, and what no driver should.

Offsets come from the region's header and netmap structures, as a guest finds them; the layout is abi.h's.
"""

from __future__ import annotations

import mmap
import os
import struct

from support.waiting import until
from vpt.dataplane import vec_cfg, vec_rx, vec_tx

from .apps import AppPeer, pump

HDR_HOST = struct.Struct("<QIIQQIIIIIIIIIH6sIIII32s")
PEER_FEATURES = 2048
PEER_STATUS = 2056
PEER_GENERATION = 2060
SLOT = struct.Struct("<IHHQ")
RING_SLOTS_OFS = 256
MOREFRAG = 0x20

RESET, DRIVER_OK, FAILED = 0, 4, 128


class RawRing:
    """One ring and its CSB entries. Index arithmetic is the caller's."""

    def __init__(self, peer: RawPeer, index: int) -> None:
        self.mem = peer.mem
        self.n = peer.num_slots
        self.atok = peer.atok_ofs + 64 * index
        self.ktoa = peer.ktoa_ofs + 64 * index
        (ring_ofs,) = struct.unpack_from("<q", self.mem, peer.netmap_if_ofs + 56 + 8 * index)
        self.ring = peer.netmap_if_ofs + ring_ofs
        (self.buf_ofs,) = struct.unpack_from("<q", self.mem, self.ring)
        self.buf_size = peer.buf_size

    def _u32(self, ofs: int) -> int:
        return int(struct.unpack_from("<I", self.mem, ofs)[0])

    def _put(self, ofs: int, value: int) -> None:
        struct.pack_into("<I", self.mem, ofs, value)

    head = property(lambda self: self._u32(self.atok), lambda self, v: self._put(self.atok, v))
    need_intr = property(lambda self: self._u32(self.atok + 8), lambda self, v: self._put(self.atok + 8, v))
    intr_at = property(lambda self: self._u32(self.atok + 16), lambda self, v: self._put(self.atok + 16, v))
    hwcur = property(lambda self: self._u32(self.ktoa))
    hwtail = property(lambda self: self._u32(self.ktoa + 4))
    need_kick = property(lambda self: self._u32(self.ktoa + 8))
    kick_at = property(lambda self: self._u32(self.ktoa + 12))

    def slot_ofs(self, i: int) -> int:
        return int(self.ring + RING_SLOTS_OFS + SLOT.size * i)

    def slot(self, i: int) -> tuple[int, int, int, int]:
        """buf_idx, len, flags, ptr"""
        return SLOT.unpack_from(self.mem, self.slot_ofs(i))

    def set_slot(self, i: int, buf_idx: int | None = None, length: int | None = None, flags: int = 0) -> None:
        old_idx, old_len, _, ptr = self.slot(i)
        idx = old_idx if buf_idx is None else buf_idx
        SLOT.pack_into(self.mem, self.slot_ofs(i), idx, old_len if length is None else length, flags, ptr)

    def buf(self, i: int) -> int:
        """Offset of slot i's buffer."""
        return int(self.ring + self.buf_ofs + self.slot(i)[0] * self.buf_size)

    def fill(self, i: int, data: bytes, flags: int = 0) -> None:
        ofs = self.buf(i)
        self.mem[ofs : ofs + len(data)] = data
        self.set_slot(i, length=len(data), flags=flags)

    def read(self, i: int) -> bytes:
        ofs = self.buf(i)
        return bytes(self.mem[ofs : ofs + self.slot(i)[1]])


class RawPeer:
    """The other side of an AppPeer's region (use its port, not its App)."""

    def __init__(self, port: AppPeer) -> None:
        self.port = port
        self.mem = mmap.mmap(port.region_fd, os.fstat(port.region_fd).st_size)
        host = HDR_HOST.unpack_from(self.mem)
        self.magic, self.host_features = host[0], host[4]
        self.netmap_if_ofs, self.atok_ofs, self.ktoa_ofs, self.pairs, self.num_slots, self.buf_size = host[
            5:11
        ]
        self.num_bufs = host[12]
        self.tx = [RawRing(self, i) for i in range(self.pairs)]
        self.rx = [RawRing(self, self.pairs + i) for i in range(self.pairs)]

    @property
    def host_status(self) -> int:
        return int(HDR_HOST.unpack_from(self.mem)[18])

    @property
    def host_error(self) -> int:
        return int(HDR_HOST.unpack_from(self.mem)[19])

    @property
    def generation(self) -> int:
        return int(HDR_HOST.unpack_from(self.mem)[17])

    def kick(self, vector: int, times: int = 1) -> None:
        os.eventfd_write(self.port.kick_fds[vector], times)

    def kick_tx(self, ring: int = 0, times: int = 1) -> None:
        self.kick(vec_tx(self.pairs, ring), times)

    def interrupts(self, ring: int = 0, *, tx: bool = False) -> int:
        """Interrupts that came on a ring's vector since the last call."""
        try:
            return os.eventfd_read(self.port.intr_fds[(vec_tx if tx else vec_rx)(self.pairs, ring)])
        except BlockingIOError:
            return 0

    def say(self, status: int) -> None:
        """Write the status word and ring for it."""
        struct.pack_into("<I", self.mem, PEER_STATUS, status)
        self.kick(vec_cfg(self.pairs))

    def await_status(self, status: int) -> None:
        """Let the control plane act until the host mirrors the status."""

        def mirrored() -> bool:
            pump(self.port.switch.engine, {self.port.port.id: self.port.port})
            return self.host_status == status

        until(mirrored, lambda: f"host status {status}, which is {self.host_status}")

    def start(self, features: int) -> None:
        """The whole handshake of abi.h."""
        self.say(RESET)
        self.await_status(RESET)
        self.mem[self.atok_ofs : self.atok_ofs + 64 * 2 * self.pairs] = bytes(64 * 2 * self.pairs)
        struct.pack_into("<Q", self.mem, PEER_FEATURES, features)
        struct.pack_into("<I", self.mem, PEER_GENERATION, self.generation)
        self.say(DRIVER_OK)
        self.await_status(DRIVER_OK)

    def close(self) -> None:
        self.mem.close()
