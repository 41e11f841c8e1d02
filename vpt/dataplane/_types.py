# SPDX-License-Identifier: BSD-2-Clause
"""Values that cross the seam: enumerations and plain records. Numbers come from the C headers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self

from vpt.dataplane._native import lib
from vpt.errors import UsageError

__all__ = [
    "Event",
    "EventType",
    "Feature",
    "Kind",
    "MacEntry",
    "MemRegion",
    "Policy",
    "PolicyKind",
    "PortState",
    "Rate",
    "Reason",
    "RegionOptions",
    "Rules",
    "VnetHdr",
    "Vring",
]


class _Named(IntEnum):
    """An enumeration whose members people write in lower case, with dashes."""

    @property
    def label(self) -> str:
        """The member's name as the command line and the docs spell it: vhost-user."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def parse(cls, label: str) -> Self:
        """The member of that label; UsageError that lists them otherwise."""
        for member in cls:
            if member.label == label:
                return member
        known = ", ".join(member.label for member in cls)
        raise UsageError(f"unknown {cls.__name__.lower()}: {label!r}", hint=f"one of: {known}")


class Kind(_Named):
    """What a port is connected to (enum vpt_kind)."""

    PASSTHROUGH = lib.VPT_KIND_PASSTHROUGH
    APP = lib.VPT_KIND_APP
    VHOST_USER = lib.VPT_KIND_VHOST_USER
    TAP = lib.VPT_KIND_TAP
    NULL = lib.VPT_KIND_NULL


class PolicyKind(_Named):
    """When the host spins, sleeps and asks to be notified (enum vpt_policy_kind)."""

    POLL = lib.VPT_POLICY_POLL
    SLEEP = lib.VPT_POLICY_SLEEP
    NOTIFY = lib.VPT_POLICY_NOTIFY
    ADAPTIVE = lib.VPT_POLICY_ADAPTIVE


class EventType(_Named):
    """What the data plane reports (enum vpt_event_type)."""

    BROKEN = lib.VPT_EVENT_BROKEN
    STATUS = lib.VPT_EVENT_STATUS


class Reason(_Named):
    """Why a port was taken down (enum vpt_reason)."""

    NONE = lib.VPT_REASON_NONE
    BAD_INDEX = lib.VPT_REASON_BAD_INDEX
    BAD_DESC = lib.VPT_REASON_BAD_DESC
    BAD_ADDR = lib.VPT_REASON_BAD_ADDR
    LOOP = lib.VPT_REASON_LOOP
    SIGBUS = lib.VPT_REASON_SIGBUS
    BAD_SLOT = lib.VPT_REASON_BAD_SLOT
    IO = lib.VPT_REASON_IO


class Feature(IntFlag):
    """Feature bits of a region (VPT_F_*); those that virtio-net has too have virtio-net's numbers."""

    CSUM = lib.VPT_F_CSUM
    GUEST_CSUM = lib.VPT_F_GUEST_CSUM
    MTU = lib.VPT_F_MTU
    MAC = lib.VPT_F_MAC
    GUEST_TSO4 = lib.VPT_F_GUEST_TSO4
    GUEST_TSO6 = lib.VPT_F_GUEST_TSO6
    GUEST_ECN = lib.VPT_F_GUEST_ECN
    HOST_TSO4 = lib.VPT_F_HOST_TSO4
    HOST_TSO6 = lib.VPT_F_HOST_TSO6
    HOST_ECN = lib.VPT_F_HOST_ECN
    STATUS = lib.VPT_F_STATUS
    EVENT_IDX = lib.VPT_F_EVENT_IDX
    GUEST_USO4 = lib.VPT_F_GUEST_USO4
    GUEST_USO6 = lib.VPT_F_GUEST_USO6
    HOST_USO = lib.VPT_F_HOST_USO
    VNET_HDR = lib.VPT_F_VNET_HDR


@dataclass(frozen=True, slots=True)
class Policy:
    """A port's notification policy. Only the time that belongs to its kind counts; both in microseconds."""

    kind: PolicyKind
    spin_us: int = 0
    sleep_us: int = 0

    @classmethod
    def poll(cls) -> Policy:
        """Spin; no wake-up delay, one core burnt."""
        return cls(PolicyKind.POLL)

    @classmethod
    def sleep(cls, sleep_us: int) -> Policy:
        """Sleep that long when idle; the peer never kicks."""
        return cls(PolicyKind.SLEEP, sleep_us=sleep_us)

    @classmethod
    def notify(cls) -> Policy:
        """Arm and sleep as soon as idle."""
        return cls(PolicyKind.NOTIFY)

    @classmethod
    def adaptive(cls, spin_us: int = 50) -> Policy:
        """Spin that long, then arm and sleep."""
        return cls(PolicyKind.ADAPTIVE, spin_us=spin_us)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the control plane has to act on."""

    type: EventType
    port_id: int
    reason: Reason
    queue: int
    rx: bool
    detail: int


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit in one direction. 0: none; burst 0: what comes in 10 ms, 128 KiB or 64 packets at least."""

    bits_per_s: int = 0
    packets_per_s: int = 0
    burst_bytes: int = 0
    burst_packets: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a port's peer may send, and gets.

    isolated:      exchanges packets only with ports that are not
    anti_spoofing: sends from the port's own address only
    access:        the one VLAN of a port that knows nothing of VLANs; 0: not such a port
    trunk:         VLANs carried with tags; None: no trunk. Neither access nor trunk: all VLANs
    native:        trunk: VLAN of frames without tag; 0: there are none
    tx, rx:        from the peer and toward it
    broadcast:     packets per second from the peer to everybody; 0: no limit; also the next two
    multicast:     to groups
    unknown:       to addresses that the switch has not learned
    """

    isolated: bool = False
    anti_spoofing: bool = False
    access: int = 0
    trunk: frozenset[int] | None = None
    native: int = 0
    tx: Rate = Rate()
    rx: Rate = Rate()
    broadcast: int = lib.VPT_BROADCAST_PER_S
    multicast: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class MacEntry:
    """A learned address. vlan 0: of frames without tag; of a configured one: all."""

    mac: str
    vlan: int
    port_id: int
    age_s: int


@dataclass(frozen=True, slots=True)
class PortState:
    """What a port and its peer are up to. `reason` other than NONE: taken down."""

    up: bool
    reason: Reason
    features: int
    workers: tuple[int, ...]
    peer_status: int
    driver: str


@dataclass(frozen=True, slots=True)
class RegionOptions:
    """Shape of a region; 0 means the C side's default (1024 slots, 2112-byte buffers, every feature)."""

    name: str
    pairs: int = 1
    num_slots: int = 0
    buf_size: int = 0
    mtu: int = 1500
    mac: str | bytes | None = None
    features: int = 0


@dataclass(frozen=True, slots=True)
class MemRegion:
    """One entry of a vhost-user memory table; `fd` is not needed to delete one."""

    gpa: int
    size: int
    uva: int
    mmap_offset: int
    fd: int = -1


@dataclass(frozen=True, slots=True)
class InflightRecord:
    """A front-end's record of what is in flight: where in its file, for how many queues of which size."""

    mmap_size: int
    mmap_offset: int
    queues: int
    queue_size: int
    fd: int


@dataclass(frozen=True, slots=True)
class Vring:
    """A virtqueue that is to be started. Addresses are the front-end's (uva); fd -1: none."""

    num: int
    base: int
    desc_uva: int
    avail_uva: int
    used_uva: int
    kick_fd: int = -1
    call_fd: int = -1


@dataclass(frozen=True, slots=True)
class VnetHdr:
    """A packet's offload request (struct vpt_vnet_hdr)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0
