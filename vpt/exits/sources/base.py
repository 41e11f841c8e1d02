# SPDX-License-Identifier: BSD-2-Clause
"""What each source of exit counts looks like to the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from vpt.closing import Closing
from vpt.exits.model import Quantity

__all__ = ["Source", "Units"]

Units = dict[str, dict[str, int]]
"""Unit ("vcpu0", "vm", "serial", a port) -> counter -> value since the VM started."""


class Source(Closing, ABC):
    """Counters of one VM by one way. Made open; close it.

    A constructor raises MissingError where this host or this QEMU lacks what the source needs, so that
    choosing one is trying one after the other. `read` raises GuestError once the VM is gone.
    """

    name: ClassVar[str]
    quantity: Quantity = Quantity.EXITS
    missing: tuple[str, ...] = ()
    kicks_per_query: int = 0

    @abstractmethod
    def read(self) -> Units:
        """All counters now."""

    def close(self) -> None:
        """Give back what the source holds and undo what it changed in the VM."""
