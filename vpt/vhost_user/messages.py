# SPDX-License-Identifier: BSD-2-Clause
"""The vhost-user messages as data: what each carries, who may send it when, and how it is answered.

A message is one entry in ``_SPECS``. Decoder, encoder, back-end session and test front-end all read the rules
from there; adding a message is an entry here and a handler in the session. What is not in the table is
unknown on the wire.

Payloads are in native byte order, as the protocol has it: both ends are on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import Enum, IntEnum, IntFlag, StrEnum
from struct import Struct
from types import MappingProxyType
from typing import ClassVar, Self

from vpt.errors import ProtocolError
from vpt.vhost_user.features import ProtocolFeature

HEADER = Struct("=III")  # request, flags, size of the payload
VERSION = 1
MAX_FDS = 8  # of one message
MAX_REGIONS = 8  # of one SET_MEM_TABLE
MAX_PAYLOAD = 4096  # bytes; nothing in the protocol comes near, a larger size is a lie


class Flag(IntFlag):
    """Header flags; the version is in the two lowest bits."""

    VERSION_MASK = 3
    REPLY = 4
    NEED_REPLY = 8


class Rule(StrEnum):
    """What a message can break. The value names the rule in logs and is the counter's name."""

    BAD_VERSION = "bad_version"
    RESERVED_FLAGS = "reserved_flags"
    REPLY_FLAG = "reply_flag"
    BAD_SIZE = "bad_size"
    BAD_FD_COUNT = "bad_fd_count"
    BAD_PAYLOAD = "bad_payload"
    TRUNCATED_FDS = "truncated_fds"
    CUT_MESSAGE = "cut_message"
    MESSAGE_TIMEOUT = "message_timeout"
    REPLY_TIMEOUT = "reply_timeout"
    UNKNOWN_REQUEST = "unknown_request"
    NOT_NEGOTIATED = "not_negotiated"
    BEFORE_OWNER = "before_owner"
    RING_RUNNING = "ring_running"
    RING_INDEX = "ring_index"
    NOT_OFFERED = "not_offered"
    BAD_VALUE = "bad_value"
    BAD_FD = "bad_fd"
    BAD_MEMORY = "bad_memory"
    BAD_RING = "bad_ring"
    BAD_INFLIGHT = "bad_inflight"
    FEATURES_LOST = "features_lost"
    UNCLOSED_FDS = "unclosed_fds"


class RuleError(ProtocolError):
    """A peer broke a rule of the protocol: `rule` says which, `detail` what was seen.

    fatal: a negative acknowledgement is not enough.

    No user's error, so it carries no hint: the session turns it into a counter, a log line and the end of the
    connection.
    """

    def __init__(self, rule: Rule, detail: str, *, fatal: bool = False) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.fatal = fatal
        self.detail = detail


class Request(IntEnum):
    """Front-end to back-end requests."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Back-end to front-end requests, on the socket of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


@dataclass(frozen=True, slots=True)
class Payload:
    """Base of the payloads: fields in wire order, packed by the class's ``WIRE``."""

    WIRE: ClassVar[Struct] = Struct("=")

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """May a payload of this kind be that many bytes long?"""
        return size == cls.WIRE.size

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Parse bytes whose length passed size_ok(); raises RuleError(BAD_PAYLOAD)."""
        return cls(*cls.WIRE.unpack(data))

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return self.WIRE.pack(*astuple(self))

    def check_fds(self, count: int) -> None:
        """Raise RuleError(BAD_FD_COUNT) if this payload cannot come with so many descriptors."""


@dataclass(frozen=True, slots=True)
class Empty(Payload):
    """No payload."""


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """One number: feature bits, a status, an acknowledgement."""

    WIRE: ClassVar[Struct] = Struct("=Q")
    value: int


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    """A ring's index and a number: size, base or enable."""

    WIRE: ClassVar[Struct] = Struct("=II")
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr(Payload):
    """Where a ring's three parts are, in the front-end's address space."""

    WIRE: ClassVar[Struct] = Struct("=IIQQQQ")
    LOG: ClassVar[int] = 1  # flag: writes to the used ring are to be logged, at address `log`
    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int

    def same_place(self, other: VringAddr) -> bool:
        """Does it describe the same ring, logged or not?"""
        return (self.desc, self.used, self.avail) == (other.desc, other.used, other.avail)


@dataclass(frozen=True, slots=True)
class VringFd(Payload):
    """A ring's index in the lowest byte; bit 8 says that no descriptor comes with it."""

    WIRE: ClassVar[Struct] = Struct("=Q")
    NOFD: ClassVar[int] = 1 << 8
    value: int

    @property
    def index(self) -> int:
        """Ring index, 0..255."""
        return self.value & 0xFF

    @property
    def nofd(self) -> bool:
        """The sender polls, or wants to be polled."""
        return bool(self.value & self.NOFD)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Refuses the bits that have no meaning: cutting them off would let 0x10000 through as ring 0."""
        (value,) = cls.WIRE.unpack(data)
        if value >> 9:
            raise RuleError(Rule.BAD_PAYLOAD, f"ring and flags {value:#x}")
        return cls(value)

    def check_fds(self, count: int) -> None:
        """One descriptor, unless NOFD."""
        if count != (0 if self.nofd else 1):
            raise RuleError(Rule.BAD_FD_COUNT, f"{count} with NOFD {'set' if self.nofd else 'clear'}")


@dataclass(frozen=True, slots=True)
class VringArea(VringFd):
    """A ring, and where in a file the page is that its kicks shall go to; with NOFD, that there is none."""

    WIRE: ClassVar[Struct] = Struct("=QQQ")
    size: int
    offset: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Refuses the bits of the first number that have no meaning."""
        value, size, offset = cls.WIRE.unpack(data)
        return cls(VringFd.unpack(VringFd.WIRE.pack(value)).value, size, offset)


@dataclass(frozen=True, slots=True)
class Log(Payload):
    """Where in its file the dirty log is: bytes, offset."""

    WIRE: ClassVar[Struct] = Struct("=QQ")
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class LogTaken(Payload):
    """That the log before is not written any more: a zero, or nothing at all, as DPDK's back-end has it."""

    WIRE: ClassVar[Struct] = Struct("=Q")
    value: int = 0

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """Either."""
        return size in (0, cls.WIRE.size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The zero, also where there is none."""
        return cls(*cls.WIRE.unpack(data)) if data else cls()


@dataclass(frozen=True, slots=True)
class DeviceConfig(Payload):
    """A piece of the device's configuration space, and what it is for."""

    WIRE: ClassVar[Struct] = Struct("=III")  # offset, size of the data, flags
    MAX_SIZE: ClassVar[int] = 256
    BY_DRIVER: ClassVar[int] = 0
    BY_MIGRATION: ClassVar[int] = 1
    offset: int
    flags: int
    data: bytes

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """The head and no more than the space has."""
        return cls.WIRE.size <= size <= cls.WIRE.size + cls.MAX_SIZE

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The size in the head must be the one that the message gives."""
        offset, size, flags = cls.WIRE.unpack_from(data)
        content = data[cls.WIRE.size :]
        if size != len(content):
            raise RuleError(Rule.BAD_PAYLOAD, f"says {size} bytes of configuration, brings {len(content)}")
        return cls(offset, flags, content)

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return self.WIRE.pack(self.offset, len(self.data), self.flags) + self.data


@dataclass(frozen=True, slots=True)
class DeviceStateFd(Payload):
    """Which way a device's state goes, in which phase of the migration. NOFD, in the reply: no descriptor."""

    WIRE: ClassVar[Struct] = Struct("=II")
    SAVE: ClassVar[int] = 0
    LOAD: ClassVar[int] = 1
    NOFD: ClassVar[int] = 1 << 8
    direction: int
    phase: int


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory: guest-physical address, bytes, the front-end's address, offset in its file."""

    WIRE: ClassVar[Struct] = Struct("=QQQQ")
    gpa: int
    size: int
    uva: int
    mmap_offset: int

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return self.WIRE.pack(self.gpa, self.size, self.uva, self.mmap_offset)


@dataclass(frozen=True, slots=True)
class MemTable(Payload):
    """All of guest memory, one descriptor for each region."""

    WIRE: ClassVar[Struct] = Struct("=II")  # number of regions, padding
    regions: tuple[Region, ...]

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """The head and 1 to MAX_REGIONS regions."""
        body, rest = divmod(size - cls.WIRE.size, Region.WIRE.size)
        return rest == 0 and 1 <= body <= MAX_REGIONS

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The count in the head must be the one that the size gives."""
        count, _ = cls.WIRE.unpack_from(data)
        body = data[cls.WIRE.size :]
        if count != len(body) // Region.WIRE.size:
            raise RuleError(Rule.BAD_PAYLOAD, f"says {count} regions, brings {len(body) // Region.WIRE.size}")
        return cls(tuple(Region(*fields) for fields in Region.WIRE.iter_unpack(body)))

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return self.WIRE.pack(len(self.regions), 0) + b"".join(r.pack() for r in self.regions)

    def check_fds(self, count: int) -> None:
        """As many as regions."""
        if count != len(self.regions):
            raise RuleError(Rule.BAD_FD_COUNT, f"{count} for {len(self.regions)} regions")


@dataclass(frozen=True, slots=True)
class MemReg(Payload):
    """One region, to add or to take away."""

    WIRE: ClassVar[Struct] = Struct("=QQQQQ")  # padding, then a region
    region: Region

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Skips the padding."""
        return cls(Region(*cls.WIRE.unpack(data)[1:]))

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return bytes(8) + self.region.pack()


@dataclass(frozen=True, slots=True)
class Inflight(Payload):
    """Where the record of what is in flight lies in its file, and for how many queues of which size.

    Four fields of 20 bytes in all; a C compiler makes a structure of 24 of them, and front-ends send either.
    """

    WIRE: ClassVar[Struct] = Struct("=QQHH")
    mmap_size: int
    mmap_offset: int
    queues: int
    queue_size: int
    padding: int = 4  # bytes behind it

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """With or without padding."""
        return size in (cls.WIRE.size, cls.WIRE.size + 4)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The fields, and how it was sent."""
        mmap_size, mmap_offset, queues, queue_size = cls.WIRE.unpack_from(data)
        return cls(mmap_size, mmap_offset, queues, queue_size, len(data) - cls.WIRE.size)

    def pack(self) -> bytes:
        """The bytes on the wire."""
        fields = (self.mmap_size, self.mmap_offset, self.queues, self.queue_size)
        return self.WIRE.pack(*fields) + bytes(self.padding)


@dataclass(frozen=True, slots=True)
class Opaque(Payload):
    """Payload of a request that is not in the table."""

    data: bytes

    @classmethod
    def size_ok(cls, size: int) -> bool:
        """Anything that is bounded."""
        return size <= MAX_PAYLOAD

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Kept as it came."""
        return cls(data)

    def pack(self) -> bytes:
        """As it came."""
        return self.data


_NONE = ProtocolFeature(0)


class Rings(Enum):
    """What a message asks of the rings' state."""

    ANY = "any"
    STOPPED = "stopped"  # the ring that it names must not be running


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """Rules of one message.

    payload: what it carries. fds: fewest and most descriptors. reply: payload of its own reply, reply_fds:
    descriptors with that; without one, it is acknowledged with a U64 (0: done) if REPLY_ACK was negotiated
    and the sender asked. needs: protocol feature that must have been negotiated. before_owner: may come ahead
    of SET_OWNER. rings: state that it needs the named ring in.
    """

    request: Request | BackendRequest
    payload: type[Payload] = Empty
    fds: tuple[int, int] = (0, 0)
    reply: type[Payload] | None = None
    reply_fds: tuple[int, int] = (0, 0)
    needs: ProtocolFeature = _NONE
    before_owner: bool = False
    rings: Rings = Rings.ANY

    @property
    def reply_payload(self) -> type[Payload]:
        """What an answer to it carries."""
        return self.reply or U64


_F = ProtocolFeature

# QEMU negotiates, counts queues and asks for memory slots before it sends SET_OWNER; DPDK sends SET_OWNER
# first.
_SPECS = (
    MessageSpec(Request.GET_FEATURES, reply=U64, before_owner=True),
    MessageSpec(Request.SET_FEATURES, U64),
    MessageSpec(Request.SET_OWNER, before_owner=True),
    MessageSpec(Request.RESET_OWNER, before_owner=True),
    MessageSpec(Request.SET_MEM_TABLE, MemTable, fds=(1, MAX_REGIONS)),
    MessageSpec(Request.SET_LOG_BASE, Log, fds=(1, 1), reply=LogTaken, needs=_F.LOG_SHMFD),
    MessageSpec(Request.SET_LOG_FD, fds=(1, 1), needs=_F.LOG_SHMFD),
    MessageSpec(Request.SET_VRING_NUM, VringState, rings=Rings.STOPPED),
    MessageSpec(Request.SET_VRING_ADDR, VringAddr),
    MessageSpec(Request.SET_VRING_BASE, VringState, rings=Rings.STOPPED),
    MessageSpec(Request.GET_VRING_BASE, VringState, reply=VringState),
    MessageSpec(Request.SET_VRING_KICK, VringFd, fds=(0, 1)),
    MessageSpec(Request.SET_VRING_CALL, VringFd, fds=(0, 1)),
    MessageSpec(Request.SET_VRING_ERR, VringFd, fds=(0, 1)),
    MessageSpec(Request.GET_PROTOCOL_FEATURES, reply=U64, before_owner=True),
    MessageSpec(Request.SET_PROTOCOL_FEATURES, U64, before_owner=True),
    MessageSpec(Request.GET_QUEUE_NUM, reply=U64, needs=_F.MQ, before_owner=True),
    MessageSpec(Request.SET_VRING_ENABLE, VringState),
    MessageSpec(Request.SEND_RARP, U64, needs=_F.RARP),
    MessageSpec(Request.SET_BACKEND_REQ_FD, fds=(1, 1), needs=_F.BACKEND_REQ, before_owner=True),
    MessageSpec(Request.GET_CONFIG, DeviceConfig, reply=DeviceConfig, needs=_F.CONFIG, before_owner=True),
    MessageSpec(Request.SET_CONFIG, DeviceConfig, needs=_F.CONFIG),
    MessageSpec(Request.NET_SET_MTU, U64, needs=_F.NET_MTU),
    MessageSpec(Request.GET_INFLIGHT_FD, Inflight, reply=Inflight, reply_fds=(1, 1), needs=_F.INFLIGHT_SHMFD),
    MessageSpec(Request.SET_INFLIGHT_FD, Inflight, fds=(1, 1), needs=_F.INFLIGHT_SHMFD),
    MessageSpec(Request.VRING_KICK, VringState, needs=_F.INBAND_NOTIFICATIONS),
    MessageSpec(Request.RESET_DEVICE, needs=_F.RESET_DEVICE),
    MessageSpec(Request.GET_MAX_MEM_SLOTS, reply=U64, needs=_F.CONFIGURE_MEM_SLOTS, before_owner=True),
    MessageSpec(Request.ADD_MEM_REG, MemReg, fds=(1, 1), needs=_F.CONFIGURE_MEM_SLOTS),
    MessageSpec(Request.REM_MEM_REG, MemReg, fds=(0, 1), needs=_F.CONFIGURE_MEM_SLOTS),
    MessageSpec(Request.SET_STATUS, U64, needs=_F.STATUS),
    MessageSpec(Request.GET_STATUS, reply=U64, needs=_F.STATUS),
    MessageSpec(
        Request.SET_DEVICE_STATE_FD,
        DeviceStateFd,
        fds=(1, 1),
        reply=U64,
        reply_fds=(0, 1),
        needs=_F.DEVICE_STATE,
    ),
    MessageSpec(Request.CHECK_DEVICE_STATE, reply=U64, needs=_F.DEVICE_STATE),
)

SPECS: Mapping[int, MessageSpec] = MappingProxyType({int(spec.request): spec for spec in _SPECS})

_BACKEND_SPECS = (
    MessageSpec(BackendRequest.CONFIG_CHANGE_MSG, needs=_F.CONFIG),
    MessageSpec(
        BackendRequest.VRING_HOST_NOTIFIER_MSG,
        VringArea,
        fds=(0, 1),
        needs=_F.HOST_NOTIFIER | _F.BACKEND_SEND_FD,
    ),
    MessageSpec(BackendRequest.VRING_CALL, VringState, needs=_F.INBAND_NOTIFICATIONS),
    MessageSpec(BackendRequest.VRING_ERR, VringState, needs=_F.INBAND_NOTIFICATIONS),
)

BACKEND_SPECS: Mapping[int, MessageSpec] = MappingProxyType({int(s.request): s for s in _BACKEND_SPECS})
