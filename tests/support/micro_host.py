# SPDX-License-Identifier: BSD-2-Clause
"""The host's end of a passthrough port, moved by the test one step at a time.

It is the ivshmem server and the host's side of the rings, over a region that the real data plane made. What
the micro guest does in answer to an index or a wish is then exact, whatever the machine's load.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pytest

from vpt.bench.micro import choose_accel
from vpt.dataplane import RegionOptions, event_passed, region_create, vec_cfg, vec_count, vec_rx, vec_tx
from vpt.dataplane._native import ffi, lib

SLOTS = 256


def accel_or_skip(name: str) -> Literal["kvm", "tcg"]:
    """An accelerator that runs the micro guest on this host."""
    if name == "tcg":
        return "tcg"
    chosen = choose_accel()
    if chosen.name != "kvm":
        pytest.skip(f"missing: a KVM that runs the micro guest ({chosen.why})")
    return "kvm"


def drain(fd: int) -> int:
    """What has been added to a non-blocking eventfd."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class IvshmemSocket:
    """The server's side of QEMU's ivshmem protocol, for one virtual machine."""

    def __init__(self, path: Path, region_fd: int, kick_fds: Sequence[int], intr_fds: Sequence[int]) -> None:
        self.path = path
        self._messages: list[tuple[int, list[int]]] = [(0, []), (1, []), (-1, [region_fd])]
        self._messages += [(lib.VPT_IVSHMEM_HOST_ID, [fd]) for fd in kick_fds]
        self._messages += [(lib.VPT_IVSHMEM_GUEST_ID, [fd]) for fd in intr_fds]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._conn: socket.socket | None = None

    def serve(self) -> None:
        """Let QEMU in, if it is there."""
        if self._conn is None:
            with contextlib.suppress(BlockingIOError):
                self._conn, _ = self._listener.accept()
                for number, fds in self._messages:
                    socket.send_fds(self._conn, [struct.pack("<q", number)], fds)

    def close(self) -> None:
        self._listener.close()
        if self._conn is not None:
            self._conn.close()


class MicroHost:
    """A region, its eventfds, and both rings' host side. Pass `serve` to MicroGuest."""

    def __init__(self, folder: Path, *, features: int = lib.VPT_F_EVENT_IDX, mac: str | None = None) -> None:
        opts = RegionOptions("scripted", num_slots=SLOTS, features=features, mac=mac)
        count = vec_count(1)
        fd = region_create(opts)
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._memory = ffi.from_buffer(self._map, require_writable=True)
        self._fds = [fd, *(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2 * count))]
        self.kick_fds, self.intr_fds = self._fds[1 : 1 + count], self._fds[1 + count :]
        self.socket = IvshmemSocket(folder / "ivshmem", fd, self.kick_fds, self.intr_fds)
        self.hdr = ffi.cast("struct vpt_hdr *", self._memory)
        self._atok = ffi.cast("struct vpt_csb_atok *", self._memory + self.hdr.csb_atok_ofs)
        self._ktoa = ffi.cast("struct vpt_csb_ktoa *", self._memory + self.hdr.csb_ktoa_ofs)
        self.kicks = 0
        self.interrupts = 0
        self._reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.socket.close()
        for fd in self._fds:
            os.close(fd)
        self.hdr = self._atok = self._ktoa = None
        ffi.release(self._memory)
        self._map.close()

    # ---- handshake ----

    def serve(self) -> None:
        """Let QEMU in; mirror the guest's status."""
        self.socket.serve()
        if drain(self.kick_fds[vec_cfg(1)]):
            status = self.hdr.peer_status
            if status == lib.VPT_S_RESET:
                self._reset()
            self.hdr.host_status = status

    def _reset(self) -> None:
        self._tx_at = self._rx_at = 0  # next slot to read, next slot to fill
        ffi.buffer(self._ktoa, 2 * ffi.sizeof("struct vpt_csb_ktoa"))[:] = bytes(128)
        self._ktoa[0].hwtail = SLOTS - 1

    # ---- notification ----

    def want_kick(self, at: int | None) -> None:
        """Ask for a kick when head moves past slot `at`; None: ask for none."""
        self._ktoa[0].kick_at = at or 0
        self._ktoa[0].kern_need_kick = at is not None

    def count_kicks(self) -> int:
        """Kicks of the tx ring so far."""
        self.kicks += drain(self.kick_fds[vec_tx(1, 0)])
        return self.kicks

    def _interrupt(self, ring: int, old: int, new: int, fd: int) -> None:
        wish = self._atok[ring]
        if wish.appl_need_kick and event_passed(wish.intr_at, old, new, SLOTS):
            os.eventfd_write(fd, 1)
            self.interrupts += 1

    # ---- packets ----

    def _slot(self, ring: int, index: int) -> tuple[Any, Any]:
        nifp = ffi.cast("struct vpt_nm_if *", self._memory + self.hdr.netmap_if_ofs)
        nm = ffi.cast("struct vpt_nm_ring *", ffi.cast("char *", nifp) + nifp.ring_ofs[ring])
        slot = ffi.addressof(nm.slot[index])
        return slot, ffi.cast("char *", nm) + nm.buf_ofs + slot.buf_idx * nm.nr_buf_size

    @property
    def waiting(self) -> int:
        """Packets that the guest has sent and nobody has taken."""
        return int(self._atok[0].head - self._tx_at) % SLOTS

    def take(self, most: int = SLOTS) -> list[bytes]:
        """Take packets from the guest and give their slots back."""
        frames = []
        for _ in range(min(most, self.waiting)):
            slot, data = self._slot(0, self._tx_at)
            frames.append(bytes(ffi.buffer(data, slot.len)))
            self._tx_at = (self._tx_at + 1) % SLOTS
        self._give_room(len(frames))
        return frames

    def discard(self) -> int:
        """Take packets from the guest without looking at them; how many."""
        n = self.waiting
        self._tx_at = (self._tx_at + n) % SLOTS
        self._give_room(n)
        return n

    def _give_room(self, n: int) -> None:
        if n:
            old, new = self._ktoa[0].hwtail, (self._tx_at - 1) % SLOTS
            self._ktoa[0].hwtail = new
            self._interrupt(0, old, new, self.intr_fds[vec_tx(1, 0)])

    def give(self, frames: Sequence[bytes]) -> int:
        """Send packets to the guest; how many it had room for."""
        old = self._rx_at
        room = int(self._atok[1].head - old - 1) % SLOTS
        for frame in frames[:room]:
            slot, data = self._slot(1, self._rx_at)
            ffi.buffer(data, len(frame))[:] = frame
            slot.len = len(frame)
            self._rx_at = (self._rx_at + 1) % SLOTS
        if self._rx_at != old:
            self._ktoa[1].hwtail = self._rx_at
            self._interrupt(1, old, self._rx_at, self.intr_fds[vec_rx(1, 0)])
        return min(room, len(frames))
