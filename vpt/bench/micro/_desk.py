# SPDX-License-Identifier: BSD-2-Clause
"""The desk: guest-driver/micro/micro.h in Python. A test holds the two equal."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

__all__ = [
    "CMD_OPEN",
    "CMD_RUN",
    "DESK_ADDR",
    "HIST_SIZE",
    "HIST_STEPS",
    "MAGIC",
    "MAX_BURST",
    "MIN_FRAME",
    "STATE_DEAD",
    "VERSION",
    "Desk",
    "DeskFound",
    "DeskOrder",
    "DeskResult",
    "Device",
    "Flow",
    "Kick",
    "Role",
    "Touch",
    "Wait",
]

MAGIC = 0x6F7263696D747076
VERSION = 1
DESK_ADDR = 0x400000
MAX_BURST = 512
MIN_FRAME = 60
HIST_STEPS = 32
HIST_SIZE = HIST_STEPS * 40

CMD_OPEN, CMD_RUN = 1, 2
STATE_DEAD = 3


class Device(IntEnum):
    """What to open: enum micro_device."""

    ANY = 0
    RING = 1
    VIRTIO_PCI = 2
    VIRTIO_MMIO = 3


class Role(IntEnum):
    """enum micro_role"""

    GEN = 1
    SINK = 2
    ECHO = 3
    PING = 4


class Touch(IntEnum):
    """How much of a packet is written or read: enum micro_touch."""

    NONE = 0
    SLOT = 1
    STAMP = 2
    ALL = 3


class Kick(IntEnum):
    """The guest's notification policy: enum micro_kick."""

    NEVER = 0
    EVERY = 1
    WANTED = 2


class Wait(IntEnum):
    """enum micro_wait"""

    POLL = 0
    IRQ = 1


class Flow(IntFlag):
    """Where the flow number goes: enum micro_flow."""

    PORT = 1
    DMAC = 2
    SMAC = 4


_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class DeskOrder(ctypes.Structure):
    """struct micro_order"""

    _fields_ = (
        ("cmd", _u32),
        ("device", _u32),
        ("features", _u64),
        ("role", _u32),
        ("touch", _u32),
        ("kick", _u32),
        ("kick_every", _u32),
        ("wait", _u32),
        ("frame_len", _u32),
        ("burst", _u32),
        ("window", _u32),
        ("flows", _u32),
        ("flow_fields", _u32),
        ("count", _u64),
        ("duration", _u64),
        ("interval", _u64),
        ("linger", _u64),
        ("dst", _u8 * 6),
        ("src", _u8 * 6),
        ("pad", _u32 * 7),
    )


class DeskFound(ctypes.Structure):
    """struct micro_found"""

    _fields_ = (
        ("device", _u32),
        ("slots", _u32),
        ("features", _u64),
        ("mac", _u8 * 6),
        ("irq", _u16),
        ("max_frame", _u32),
        ("name", ctypes.c_char * 32),
    )


class DeskResult(ctypes.Structure):
    """struct micro_result"""

    _fields_ = tuple(
        (name, _u64)
        for name in (
            *("tx_packets", "tx_bytes", "tx_bursts", "tx_full"),
            *("rx_packets", "rx_bytes", "rx_bursts", "rx_empty"),
            *("kicks", "kicks_suppressed", "sleeps", "interrupts", "ticks", "late"),
            *("seq_lost", "seq_late", "foreign", "sum", "start", "end", "drained"),
            *("lat_count", "lat_sum", "lat_min", "lat_max"),
        )
    )


class Desk(ctypes.Structure):
    """struct micro_desk"""

    _fields_ = (
        ("magic", _u64),
        ("version", _u32),
        ("size", _u32),
        ("state", _u32),
        ("done_seq", _u32),
        ("error", ctypes.c_int32),
        ("pad0", _u32),
        ("tsc", _u64),
        ("message", ctypes.c_char * 88),
        ("order_seq", _u32),
        ("stop", _u32),
        ("pad1", _u64 * 7),
        ("order", DeskOrder),
        ("found", DeskFound),
        ("result", DeskResult),
        ("hist", _u32 * HIST_SIZE),
    )
