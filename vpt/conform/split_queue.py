# SPDX-License-Identifier: BSD-2-Clause
"""Driver side of a split virtqueue (virtio 1.2, 2.7) in guest memory: well-behaved, each step separate.

A test that misbehaves uses the parts (``set_desc``, ``set_avail``, ``publish``) and leaves the bookkeeping
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vpt.conform.guest_memory import GuestMemory
from vpt.conform.virtqueue import DESC, INDIRECT, MAX_INDIRECT, NEXT, WRITE, Buffer, Virtqueue

__all__ = ["DESC", "INDIRECT", "MAX_INDIRECT", "NEXT", "WRITE", "Buffer", "SplitQueue", "pieces"]

NO_INTERRUPT = 1  # in avail.flags
NO_NOTIFY = 1  # in used.flags


class SplitQueue(Virtqueue):
    """One queue: memory, descriptors, and the two eventfds."""

    def __init__(self, memory: GuestMemory, num: int, *, event_idx: bool = False, base: int = 0) -> None:
        super().__init__(
            memory, num, event_idx=event_idx, avail=(4 + 2 * num + 2, 2), used=(4 + 8 * num + 2, 4)
        )
        self._restart(base)

    def _restart(self, base: int) -> None:
        self.avail_idx = base & 0xFFFF  # next to be published
        self.published = self.avail_idx
        self.last_used = self.avail_idx
        self._free = list(range(self.num))
        self._chains: dict[int, list[int]] = {}
        self.memory.write(self.avail, bytes(4 + 2 * self.num + 2))
        self.memory.write(self.used, bytes(4 + 8 * self.num + 2))
        self.memory.store16(self.avail + 2, base)
        self.memory.store16(self.used + 2, base)

    def restart(self, base: int = 0) -> None:
        """Forget what is in flight, as a driver does that has been reset."""
        self._restart(base)

    @property
    def base(self) -> int:
        """For SET_VRING_BASE: go on after what has been made available."""
        return self.avail_idx

    # ---- parts, for those that misbehave ----

    def set_desc(self, i: int, gpa: int, size: int, flags: int = 0, following: int = 0) -> None:
        """Write descriptor i."""
        self.memory.write(
            self.desc + 16 * i, DESC.pack(gpa & (1 << 64) - 1, size & 0xFFFFFFFF, flags, following & 0xFFFF)
        )

    def set_avail(self, head: int) -> None:
        """Put a head into the next slot of the available ring, unpublished."""
        self.memory.store16(self.avail + 4 + 2 * (self.avail_idx % self.num), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def publish(self, idx: int | None = None) -> None:
        """Store the available index, by default the true one."""
        self.memory.store16(self.avail + 2, self.avail_idx if idx is None else idx)

    # ---- the well-behaved driver ----

    def add(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Make a chain available, unpublished; returns its head. IndexError: not enough descriptors."""
        if indirect:
            return self._add_indirect(buffers)
        if len(buffers) > len(self._free):
            raise IndexError("no free descriptors")
        chain = [self._free.pop() for _ in buffers]
        for i, following, buffer in zip(chain, [*chain[1:], 0], buffers, strict=True):
            flags = (WRITE if buffer.device_writes else 0) | (NEXT if i != chain[-1] else 0)
            self.set_desc(i, buffer.gpa, buffer.size, flags, following)
        self._chains[chain[0]] = chain
        self.set_avail(chain[0])
        return chain[0]

    def _add_indirect(self, buffers: Sequence[Buffer]) -> int:
        table = self._table(self._free[-1], len(buffers))
        head = self._free.pop()
        for i, buffer in enumerate(buffers):
            flags = (WRITE if buffer.device_writes else 0) | (NEXT if i + 1 < len(buffers) else 0)
            self.memory.write(table + 16 * i, DESC.pack(buffer.gpa, buffer.size, flags, i + 1))
        self.set_desc(head, table, 16 * len(buffers), INDIRECT)
        self._chains[head] = [head]
        self.set_avail(head)
        return head

    def kick(self, *, force: bool = False) -> bool:
        """Publish, and ring the doorbell if the device wants to hear it (or if forced); did it?"""
        old, self.published = self.published, self.avail_idx
        self.publish()
        if not (force or self._kick_wanted(old)):
            return False
        self._ring_doorbell()
        return True

    def _kick_wanted(self, old: int) -> bool:
        if not self.event_idx:
            return not self.memory.load16(self.used) & NO_NOTIFY
        event = self.memory.load16(self.used + 4 + 8 * self.num)
        return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF

    @property
    def used_idx(self) -> int:
        """As the device has published it."""
        return self.memory.load16(self.used + 2)

    def take_used(self) -> Iterator[tuple[int, int]]:
        """What the device gave back: head and bytes written. The head may be used again at once."""
        while self.last_used != self.used_idx:
            at = self.used + 4 + 8 * (self.last_used % self.num)
            head, size = self.memory.load32(at), self.memory.load32(at + 4)
            self.last_used = (self.last_used + 1) & 0xFFFF
            chain = self._chains.pop(head)
            self._free.extend(reversed(chain))
            yield head, size

    def want_calls(self, after: int = 0, *, wanted: bool = True) -> None:
        """Ask to be called when `after` more than the next buffer are used, or not at all."""
        if self.event_idx:
            at = self.last_used + after if wanted else self.last_used - 1
            self.memory.store16(self.avail + 4 + 2 * self.num, at)
        else:
            self.memory.store16(self.avail, 0 if wanted else NO_INTERRUPT)


def pieces(gpa: int, sizes: Iterable[int], *, device_writes: bool = False) -> list[Buffer]:
    """Buffers that follow each other in memory."""
    out = []
    for size in sizes:
        out.append(Buffer(gpa, size, device_writes))
        gpa += size
    return out
