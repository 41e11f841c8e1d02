# SPDX-License-Identifier: BSD-2-Clause
"""Driver side of a packed virtqueue (virtio 1.2, 2.8) of any size; same interface as the split one.

Places in the ring are *positions*, in [0, 2 * num): index and wrap counter in one number; below num the wrap
counter is 1. A test that misbehaves uses the parts (``put``, ``flags_for``) and leaves the bookkeeping out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from vpt.conform.guest_memory import GuestMemory
from vpt.conform.virtqueue import DESC, INDIRECT, NEXT, WRITE, Buffer, Virtqueue

AVAIL = 1 << 7
USED = 1 << 15
ENABLE, DISABLE, AT_DESC = 0, 1, 2  # event suppression (2.8.14)
WRAP = 1 << 15  # in an event structure's first half, and in either half of a base


class PackedQueue(Virtqueue):
    """One queue: memory, descriptors, eventfds. avail, used: the driver's and the device's event area."""

    def __init__(
        self, memory: GuestMemory, num: int, *, event_idx: bool = False, in_order: bool = False
    ) -> None:
        super().__init__(memory, num, event_idx=event_idx, avail=(4, 4), used=(4, 4))
        self.in_order = in_order
        self.restart()

    def restart(self, base: int = WRAP | WRAP << 16) -> None:
        """Forget what is in flight, as a driver does that has been reset. base: as in SET_VRING_BASE."""
        self.position = self._from_wire(base & 0xFFFF)  # of the next chain
        self.published = self.position
        self.used_position = self.position
        self.last_used = 0  # chains taken back
        self._free = list(range(self.num))
        self._chains: dict[int, tuple[list[int], int]] = {}  # by id: ids that it holds, descriptors
        self._order: deque[int] = deque()  # ids in flight, oldest first
        self._heads: list[tuple[int, int]] = []  # unpublished: position, flags
        # What a device that had come so far would have left: used in this lap below, before that beyond.
        at, wrap = self.position % self.num, self.position < self.num
        below, beyond = (AVAIL | USED, 0) if wrap else (0, AVAIL | USED)
        self.memory.write(
            self.desc, DESC.pack(0, 0, 0, below) * at + DESC.pack(0, 0, 0, beyond) * (self.num - at)
        )
        self.memory.write(self.avail, bytes(4))
        self.memory.write(self.used, bytes(4))

    # ---- positions ----

    def _from_wire(self, wire: int) -> int:
        return (wire & ~WRAP) % self.num + (0 if wire & WRAP else self.num)

    def wire(self, position: int) -> int:
        """As bases and event structures carry it: 15 bits of index, one of wrap counter."""
        return position % self.num | (WRAP if position < self.num else 0)

    def later(self, position: int, by: int) -> int:
        """The position that is `by` descriptors further."""
        return (position + by) % (2 * self.num)

    def ahead(self, position: int, start: int) -> int:
        """Descriptors from one position to a later one."""
        return (position - start) % (2 * self.num)

    @property
    def base(self) -> int:
        """For SET_VRING_BASE: go on after what has been made available; nothing is in flight."""
        return self.wire(self.position) | self.wire(self.used_position) << 16

    # ---- parts, for those that misbehave ----

    def flags_for(self, position: int) -> int:
        """The two bits that make a descriptor available there."""
        return AVAIL if position < self.num else USED

    def put(self, position: int, gpa: int, size: int, flags: int = 0, buffer_id: int = 0) -> None:
        """Write a descriptor: flags last, and exactly these."""
        at = self.desc + 16 * (position % self.num)
        raw = DESC.pack(gpa & (1 << 64) - 1, size & 0xFFFFFFFF, buffer_id & 0xFFFF, 0)
        self.memory.write(at, raw[:14])
        self.memory.store16(at + 14, flags)

    def flags_at(self, position: int) -> int:
        """A descriptor's flags as they are now."""
        return self.memory.load16(self.desc + 16 * (position % self.num) + 14)

    # ---- the well-behaved driver ----

    def add(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Write a chain, its first descriptor not yet available; returns its id. IndexError: no room."""
        count = 1 if indirect else len(buffers)
        if count > len(self._free):
            raise IndexError("no free descriptors")
        ids = [self._free.pop() for _ in range(count)]
        if indirect:
            buffers = [self._indirect(ids[0], buffers)]
        for i, buffer in enumerate(buffers):
            position = self.later(self.position, i)
            flags = (WRITE if buffer.device_writes else 0) | (NEXT if i + 1 < count else 0)
            flags |= (INDIRECT if indirect else 0) | self.flags_for(position)
            if i == 0:  # becomes available last of all (2.8.21.1)
                self._heads.append((position, flags))
                flags = self.flags_at(position)
            self.put(position, buffer.gpa, buffer.size, flags, ids[0])
        self._chains[ids[0]] = (ids, count)
        self._order.append(ids[0])
        self.position = self.later(self.position, count)
        return ids[0]

    def _indirect(self, slot: int, buffers: Sequence[Buffer]) -> Buffer:
        table = self._table(slot, len(buffers))
        for i, buffer in enumerate(buffers):
            flags = WRITE if buffer.device_writes else 0
            self.memory.write(table + 16 * i, DESC.pack(buffer.gpa, buffer.size, 0, flags))
        return Buffer(table, 16 * len(buffers))

    def publish(self) -> None:
        """Make available what has been added, the last chain first: the device sees all of it or nothing."""
        for position, flags in reversed(self._heads):
            self.memory.store16(self.desc + 16 * (position % self.num) + 14, flags)
        self._heads.clear()

    def kick(self, *, force: bool = False) -> bool:
        """Publish, and ring the doorbell if the device wants to hear it (or if forced); did it?"""
        old, self.published = self.published, self.position
        self.publish()
        if not (force or self._kick_wanted(old)):
            return False
        self._ring_doorbell()
        return True

    def _kick_wanted(self, old: int) -> bool:
        both = self.memory.load32(self.used)  # one load: the device changes the halves one after the other
        how = both >> 16 & 3
        if how == AT_DESC and self.event_idx:
            return self.ahead(self._from_wire(both & 0xFFFF), old) < self.ahead(self.position, old)
        return how != DISABLE

    def _is_used(self, position: int) -> bool:
        flags = self.flags_at(position)
        wrap = position < self.num
        return bool(flags & AVAIL) == bool(flags & USED) == wrap

    def _visible(self) -> Iterator[tuple[int, int, int]]:
        """What the device has given back by now: id, bytes written, descriptors. Takes nothing."""
        position, order = self.used_position, deque(self._order)
        while order and self._is_used(position):
            at = self.desc + 16 * (position % self.num)
            last, size = self.memory.load16(at + 12), self.memory.load32(at + 8)
            size = size if self.flags_at(position) & WRITE else 0  # else it means nothing (2.8.6)
            batch = [order.popleft()] if self.in_order else [last]
            while batch[-1] != last:  # in order, one stands for all up to itself (2.8.9)
                batch.append(order.popleft())
            for buffer_id in batch:
                count = self._chains[buffer_id][1]
                position = self.later(position, count)
                yield buffer_id, size if buffer_id == last else 0, count
            if not self.in_order:
                order.remove(last)

    @property
    def used_idx(self) -> int:
        """last_used as it would be after taking all that the device has given back."""
        return self.last_used + len(list(self._visible()))

    def take_used(self) -> Iterator[tuple[int, int]]:
        """What the device gave back: id and bytes written. The id may be used again at once."""
        for buffer_id, size, count in list(self._visible()):
            ids, _ = self._chains.pop(buffer_id)
            self._order.remove(buffer_id)
            self._free.extend(reversed(ids))
            self.used_position = self.later(self.used_position, count)
            self.last_used += 1
            yield buffer_id, size

    def want_calls(self, after: int = 0, *, wanted: bool = True) -> None:
        """Ask to be called when `after` more than the next descriptor are used, or not at all."""
        how = DISABLE if not wanted else AT_DESC if self.event_idx else ENABLE
        if how == AT_DESC:
            self.memory.store16(self.avail, self.wire(self.later(self.used_position, after)))
        self.memory.store16(self.avail + 2, how)
