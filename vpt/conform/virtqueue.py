# SPDX-License-Identifier: BSD-2-Clause
"""What split and packed virtqueues have in common on the driver's side: memory, eventfds, what is free."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass
from struct import Struct

from vpt.conform.guest_memory import GuestMemory
from vpt.vhost_user import VringAddr

__all__ = ["DESC", "INDIRECT", "MAX_INDIRECT", "NEXT", "WRITE", "Buffer", "Virtqueue"]

NEXT = 1
WRITE = 2
INDIRECT = 4
DESC = Struct("<QIHH")  # address, length; then flags and next, or id and flags
MAX_INDIRECT = 64


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of guest memory that a descriptor names."""

    gpa: int
    size: int
    device_writes: bool = False


class Virtqueue(ABC):
    """One queue: memory, descriptors, and the two eventfds.

    avail, used: what the driver and what the device writes besides descriptors; (bytes, alignment) of each.
    """

    _free: list[int]
    _chains: Sized  # in flight
    last_used: int

    def __init__(
        self,
        memory: GuestMemory,
        num: int,
        *,
        event_idx: bool,
        avail: tuple[int, int],
        used: tuple[int, int],
    ) -> None:
        self.memory = memory
        self.num = num
        self.event_idx = event_idx
        self.desc = memory.alloc(DESC.size * num, 16)
        self.avail = memory.alloc(*avail)
        self.used = memory.alloc(*used)
        self.tables = 0  # indirect tables, made when first asked for
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kicks = 0

    def close(self) -> None:
        """Close the eventfds."""
        os.close(self.kick_fd)
        os.close(self.call_fd)

    def addresses(self, index: int) -> VringAddr:
        """What SET_VRING_ADDR says about it."""
        uva = self.memory.uva
        return VringAddr(index, 0, uva(self.desc), uva(self.used), uva(self.avail), 0)

    @property
    @abstractmethod
    def used_idx(self) -> int:
        """How many chains the device has given back, modulo 2^16."""

    @property
    def free(self) -> int:
        """Descriptors not in flight."""
        return len(self._free)

    @property
    def unfinished(self) -> int:
        """Chains that the device has not given back yet."""
        return len(self._chains) - (self.used_idx - self.last_used & 0xFFFF)

    def peek_free(self, count: int) -> list[int]:
        """The descriptors or ids that the next chain of `count` will take, what it goes by first."""
        return self._free[: -count - 1 : -1]

    def take_calls(self, timeout_s: float = 0.0) -> int:
        """Interrupts since last asked; waits up to timeout_s for the first."""
        if not select.select([self.call_fd], [], [], timeout_s)[0]:
            return 0
        return os.eventfd_read(self.call_fd)

    def _ring_doorbell(self) -> None:
        os.eventfd_write(self.kick_fd, 1)
        self.kicks += 1

    def _table(self, slot: int, entries: int) -> int:
        """Address of an indirect table for so many; IndexError if it has no room for them."""
        if entries > MAX_INDIRECT:
            raise IndexError(f"an indirect table has {MAX_INDIRECT} entries here")
        size = DESC.size * MAX_INDIRECT
        if not self.tables:
            self.tables = self.memory.alloc(size * self.num)
        return self.tables + size * slot
