# SPDX-License-Identifier: BSD-2-Clause
"""Guest memory as a front-end owns it: memfds, at guest-physical addresses, at addresses of its own."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

from vpt.closing import Closing
from vpt.vhost_user import Region

PAGE = 4096
GPA_BASE = 0x4000_0000
UVA_OFFSET = (
    0x7000_0000_0000  # front-end address = guest-physical address + this: neither may be taken for the other
)
MIB = 1 << 20
UNTOUCHED = 0xA5  # what guarded memory is filled with


@dataclass(frozen=True, slots=True)
class Span:
    """Where a region shall be: guest-physical address, bytes, offset in its file, bytes that follow there.

    With a guard, file and region are filled with UNTOUCHED, see GuestMemory.untouched().
    """

    gpa: int
    size: int
    offset: int = 0
    guard: int = 0


class GuestRegion:
    """One memfd, mapped here, and what the back-end is told about it."""

    def __init__(self, span: Span) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        length = span.offset + span.size + span.guard
        os.ftruncate(self.fd, length)
        self.map = mmap.mmap(self.fd, length)
        if span.guard:
            self.map[:] = bytes([UNTOUCHED]) * length
        self.info = Region(span.gpa, span.size, span.gpa + UVA_OFFSET, span.offset)
        self._base = span.offset
        # Indices must be stored whole: struct's little-endian formats write byte by byte.
        self._halves = memoryview(self.map).cast("H")
        self._words = memoryview(self.map).cast("I")

    def close(self) -> None:
        """Unmap and close."""
        self._halves.release()
        self._words.release()
        self.map.close()
        os.close(self.fd)

    def seal(self) -> None:
        """Promise that the file keeps its size."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def holds(self, gpa: int) -> bool:
        """Is this address in it?"""
        return self.info.gpa <= gpa < self.info.gpa + self.info.size

    def index(self, gpa: int) -> int:
        """Offset of the address in the mapping."""
        return gpa - self.info.gpa + self._base

    def load16(self, gpa: int) -> int:
        """One 16-bit load."""
        return self._halves[self.index(gpa) // 2]

    def store16(self, gpa: int, value: int) -> None:
        """One 16-bit store."""
        self._halves[self.index(gpa) // 2] = value & 0xFFFF

    def load32(self, gpa: int) -> int:
        """One 32-bit load."""
        return self._words[self.index(gpa) // 4]


class GuestMemory(Closing):
    """All of a guest's memory, with a bump allocator over its first region."""

    def __init__(self, spans: Sequence[Span] = (Span(GPA_BASE, 16 * MIB),)) -> None:
        self.regions = [GuestRegion(span) for span in spans]
        self._guarded = spans[0].guard > 0
        self._next = spans[0].gpa

    def close(self) -> None:
        """Free all regions."""
        for region in self.regions:
            region.close()
        self.regions.clear()

    def add(self, span: Span) -> GuestRegion:
        """Plug in another region; the back-end is told by others."""
        self.regions.append(GuestRegion(span))
        return self.regions[-1]

    def remove(self, region: GuestRegion) -> None:
        """Take one out."""
        self.regions.remove(region)
        region.close()

    def region_of(self, gpa: int) -> GuestRegion:
        """The region that holds an address; KeyError if none does."""
        for region in self.regions:
            if region.holds(gpa):
                return region
        raise KeyError(hex(gpa))

    def alloc(self, size: int, align: int = 16) -> int:
        """Address of fresh memory in the first region."""
        gpa = -(-self._next // align) * align
        first = self.regions[0].info
        if gpa + size > first.gpa + first.size:
            raise MemoryError(f"guest memory of {first.size} bytes is used up")
        self._next = gpa + size
        return gpa

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes, also across regions that touch."""
        out = b""
        while len(out) < size:
            region = self.region_of(gpa + len(out))
            start = region.index(gpa + len(out))
            end = min(start + size - len(out), region.index(region.info.gpa + region.info.size))
            out += region.map[start:end]
        return out

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes, also across regions that touch."""
        done = 0
        while done < len(data):
            region = self.region_of(gpa + done)
            start = region.index(gpa + done)
            end = min(start + len(data) - done, region.index(region.info.gpa + region.info.size))
            region.map[start:end] = data[done : done + end - start]
            done += end - start

    def load16(self, gpa: int) -> int:
        """One 16-bit load."""
        return self.region_of(gpa).load16(gpa)

    def store16(self, gpa: int, value: int) -> None:
        """One 16-bit store."""
        self.region_of(gpa).store16(gpa, value)

    def load32(self, gpa: int) -> int:
        """One 32-bit load."""
        return self.region_of(gpa).load32(gpa)

    def untouched(self) -> bool:
        """With a guard: is all as it was that was not allocated, in the first region and around it?"""
        if not self._guarded:
            return True
        region = self.regions[0]
        below, above = region.map[: region.index(region.info.gpa)], region.map[region.index(self._next) :]
        return below + above == bytes([UNTOUCHED]) * (len(below) + len(above))

    @staticmethod
    def uva(gpa: int) -> int:
        """The front-end's address of a guest-physical one."""
        return gpa + UVA_OFFSET
