# SPDX-License-Identifier: BSD-2-Clause
"""What each kind of reset takes away: one table, and the one place where it is done.

QEMU sends only what changed in its memory table since the connection began, so nothing but the connection's
end takes that away; and QEMU 7.2 asks where the rings have come to after status 0, when a guest is stopped
or migrates.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, Flag, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpt.daemon.transports.vhost.state import Ring, State


class Part(Flag):
    """What there is to lose."""

    RUNNING = auto()  # rings run; with their kick descriptors
    ENABLED = auto()  # rings are
    SHAPE = auto()  # rings have size and addresses
    BASE = auto()  # rings have come somewhere
    FEATURES = auto()  # virtio's; with the log, if it is in use
    STATUS = auto()
    NOTIFIERS = auto()  # descriptors to call by, and to tell of errors and logging
    MEMORY = auto()  # regions, and the record of what is in flight
    PROTOCOL = auto()  # its features, the owner, the MTU, the back channel


class Reset(Enum):
    """What takes something away."""

    STOP = "GET_VRING_BASE"  # of that ring
    OWNER = "RESET_OWNER"
    DEVICE = "RESET_DEVICE"
    STATUS = "SET_STATUS 0"
    END = "disconnect"  # the session ends, and the port is reset


_DEVICE = Part.RUNNING | Part.ENABLED | Part.SHAPE | Part.BASE | Part.FEATURES | Part.STATUS
TAKES = {
    Reset.STOP: Part.RUNNING,
    Reset.OWNER: Part(0),  # "should be ignored", the specification says
    Reset.DEVICE: _DEVICE,
    Reset.STATUS: _DEVICE & ~Part.BASE,
    Reset.END: ~Part(0),
}


def reset(state: State, why: Reset, rings: Iterable[Ring]) -> None:
    """Take away what the table says, of these rings and of the device; not for the connection's end."""
    taken = TAKES[why]
    for ring in rings:
        if Part.RUNNING in taken:
            _stop(state, ring)
        if Part.ENABLED in taken:
            ring.enabled = False
            state.port.vring_enable(ring.index, False)
        if Part.SHAPE in taken:
            ring.num, ring.addr = 0, None
        if Part.BASE in taken:
            ring.base = None
    if Part.FEATURES in taken:
        state.port.vhost_set_features(0)
        state.take_features(None)
    if Part.STATUS in taken:
        state.status = 0


def _stop(state: State, ring: Ring) -> None:
    base = state.port.vring_stop(ring.index)
    if base is not None:
        ring.base = base
    ring.running = False
    ring.kick.drop()
