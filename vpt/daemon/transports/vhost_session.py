# SPDX-License-Identifier: BSD-2-Clause
"""State of one vhost-user connection, and a handler for each message.

No sockets here: messages go in, replies come out, the port is told. A message that breaks a rule ends in a
RuleError; whether that costs the sender its connection or only a negative acknowledgement is decided in one
place, ``Session.handle``.

What the specification leaves open, and what was chosen:

- A request that is unknown or was not negotiated is refused like any other fault: with a negative
acknowledgement if
  one was asked for, else by closing. Ignoring it would leave a sender that expects an answer waiting for
  ever.
- A ring starts at SET_VRING_KICK, complete or not at all, and not at the first kick: what arrives between the
two is
  found without one.
- RESET_OWNER is acknowledged and otherwise ignored, as the specification recommends.
- RESET_DEVICE and status 0 stop and disable all rings and forget the features, but keep memory and call
descriptors:
  QEMU sends only what changed in its memory table since the connection began.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpt.dataplane import MemRegion, Vring, vhost_features, vhost_max_mem_regions
from vpt.errors import DataplaneError
from vpt.vhost_user import (
    SPECS,
    U64,
    MemReg,
    MemTable,
    Message,
    Payload,
    ProtocolFeature,
    Region,
    Request,
    Rings,
    Rule,
    RuleError,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    encode,
    feature_names,
)

if TYPE_CHECKING:
    from vpt.dataplane import Port

OFFERED_PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)

MIN_MTU = 68  # RFC 791
MAX_RING = 32768
_FIRST_LAP = 0x8000_8000  # base of a packed ring: index 0 and wrap counter 1, for available and for used
_NACK = U64(1)
_ACK = U64(0)


@dataclass(slots=True)
class Ring:
    """One ring as the front-end has described it. The data plane knows of it while it is running."""

    index: int
    num: int = 0
    base: int | None = None  # where a ring begins that has not been told otherwise depends on its layout
    addr: VringAddr | None = None
    enabled: bool = False
    running: bool = False
    call_fd: int = -1  # owned

    def reset(self) -> None:
        """As it was before the first message, but for the call descriptor."""
        self.num = 0
        self.base = None
        self.addr = None
        self.enabled = self.running = False

    def set_call(self, fd: int) -> None:
        """Own fd from now on (-1: none) in place of the one before."""
        old, self.call_fd = self.call_fd, fd
        if old >= 0:
            os.close(old)


def is_eventfd(fd: int) -> bool:
    """Is it an eventfd? A file or a pipe would be read and written like one, with other consequences."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


@contextmanager
def _port_refuses(rule: Rule, what: str) -> Iterator[None]:
    """Turn the data plane's refusal into a broken rule of the protocol."""
    try:
        yield
    except DataplaneError as error:
        raise RuleError(rule, f"{what}: {os.strerror(error.errno)}") from error


class Session:
    """Back-end side of one connection. The caller resets the port before the first and after the last one."""

    def __init__(self, port: Port, *, max_pairs: int, mtu: int, counters: Counter[str]) -> None:
        self._port = port
        self._mtu_limit = mtu
        self._max_pairs = max_pairs
        self._counters = counters
        self._offered = vhost_features() | VirtioFeature.PROTOCOL_FEATURES.value
        self._owner = False
        self._features: int | None = None
        self._protocol = 0
        self._status = 0
        self._mtu: int | None = None
        self.rings = [Ring(index) for index in range(2 * max_pairs)]

    def close(self) -> None:
        """Let go of the descriptors."""
        for ring in self.rings:
            ring.set_call(-1)

    def describe(self) -> dict[str, Any]:
        """What was negotiated and how the rings are, for people and for ``vpt show``."""
        return {
            "features": feature_names(self._features or 0, VirtioFeature),
            "protocol_features": feature_names(self._protocol, ProtocolFeature),
            "status": self._status,
            "mtu": self._mtu,
            "rings": [
                {
                    "index": r.index,
                    "num": r.num,
                    "enabled": r.enabled or self._always_enabled(),
                    "running": r.running,
                }
                for r in self.rings
                if r.num
            ],
        }

    def handle(self, message: Message) -> bytes:
        """Act on a message; returns the reply's bytes, or none. The caller closes the message.

        Raises RuleError when the connection must end.
        """
        spec = message.spec
        self._counters["messages"] += 1
        acknowledge = (
            message.need_reply
            and bool(self._protocol & ProtocolFeature.REPLY_ACK)
            and (spec is None or spec.reply is None)
        )
        reply: Payload | None
        try:
            self._admit(message)
            reply = _HANDLERS[Request(message.request)](self, message)
        except RuleError as error:
            if not acknowledge:
                raise RuleError(error.rule, f"{message.name}: {error.detail}") from error
            self._counters[error.rule] += 1
            self._counters["refused"] += 1
            reply = _NACK
        else:
            if acknowledge:
                reply = _ACK
        return encode(message.request, reply, reply=True) if reply is not None else b""

    def _admit(self, message: Message) -> None:
        """The table's rules about the connection's state."""
        spec = message.spec
        if spec is None:
            raise RuleError(Rule.UNKNOWN_REQUEST, "not one that this back-end knows")
        if spec.needs & ~self._protocol:
            raise RuleError(Rule.NOT_NEGOTIATED, f"needs {spec.needs.name}")
        if not (self._owner or spec.before_owner):
            raise RuleError(Rule.BEFORE_OWNER, "comes before SET_OWNER")
        if isinstance(message.payload, VringState | VringAddr | VringFd):
            ring = self._ring(message.payload.index)
            if spec.rings is Rings.STOPPED and ring.running:
                raise RuleError(Rule.RING_RUNNING, f"ring {ring.index} is running")

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise RuleError(Rule.RING_INDEX, f"ring {index} of {len(self.rings)}")
        return self.rings[index]

    # ---- negotiation ----

    def _get_features(self, _message: Message) -> Payload:
        return U64(self._offered)

    def _set_features(self, message: Message) -> None:
        value = _u64(message)
        if value & ~self._offered:
            names = ", ".join(feature_names(value & ~self._offered, VirtioFeature))
            raise RuleError(Rule.NOT_OFFERED, names)
        if any(ring.running for ring in self.rings):
            # With several pairs QEMU repeats it for each one, when the first are running already.
            if value != self._features:
                raise RuleError(Rule.RING_RUNNING, "other features while rings are running")
            return
        with _port_refuses(Rule.BAD_VALUE, f"features {value:#x}"):
            self._port.vhost_set_features(value)
        self._features = value

    def _get_protocol_features(self, _message: Message) -> Payload:
        return U64(OFFERED_PROTOCOL.value)

    def _set_protocol_features(self, message: Message) -> None:
        value = _u64(message)
        if value & ~OFFERED_PROTOCOL.value:
            names = ", ".join(feature_names(value & ~OFFERED_PROTOCOL.value, ProtocolFeature))
            raise RuleError(Rule.NOT_OFFERED, names)
        self._protocol = value

    def _set_owner(self, _message: Message) -> None:
        self._owner = True

    def _reset_owner(self, _message: Message) -> None:
        pass

    def _get_queue_num(self, _message: Message) -> Payload:
        return U64(self._max_pairs)

    def _net_set_mtu(self, message: Message) -> None:
        value = _u64(message)
        if not MIN_MTU <= value <= self._mtu_limit:
            raise RuleError(Rule.BAD_VALUE, f"MTU {value}, {MIN_MTU}..{self._mtu_limit} allowed")
        self._mtu = value

    # ---- device ----

    def _reset_device(self, _message: Message) -> None:
        self._reset()

    def _set_status(self, message: Message) -> None:
        value = _u64(message)
        if value > 0xFF:
            raise RuleError(Rule.BAD_VALUE, f"status {value:#x}")
        self._status = value
        if value == 0:
            self._reset()

    def _get_status(self, _message: Message) -> Payload:
        return U64(self._status)

    def _reset(self) -> None:
        for ring in self.rings:
            if ring.running:
                self._port.vring_stop(ring.index)
            ring.reset()
            self._port.vring_enable(ring.index, False)
        self._port.vhost_set_features(0)
        self._features = None
        self._status = 0

    # ---- memory ----

    def _set_mem_table(self, message: Message) -> None:
        assert isinstance(message.payload, MemTable)
        regions = [_mem_region(r, fd) for r, fd in zip(message.payload.regions, message.fds, strict=True)]
        with _port_refuses(Rule.BAD_MEMORY, f"{len(regions)} regions"):
            self._port.vhost_mem_set(regions)

    def _get_max_mem_slots(self, _message: Message) -> Payload:
        return U64(vhost_max_mem_regions())

    def _add_mem_reg(self, message: Message) -> None:
        assert isinstance(message.payload, MemReg)
        region = message.payload.region
        with _port_refuses(Rule.BAD_MEMORY, f"region {region.gpa:#x}+{region.size:#x}"):
            self._port.vhost_mem_add(_mem_region(region, message.fds[0]))

    def _rem_mem_reg(self, message: Message) -> None:
        # Some front-ends send the descriptor along; it is closed with the message.
        assert isinstance(message.payload, MemReg)
        region = message.payload.region
        with _port_refuses(Rule.BAD_MEMORY, f"region {region.gpa:#x}+{region.size:#x}"):
            self._port.vhost_mem_del(_mem_region(region, -1))

    # ---- rings ----

    def _set_vring_num(self, message: Message) -> None:
        state = _state(message)
        if not 1 <= state.num <= MAX_RING or (state.num & (state.num - 1) and not self._packed()):
            raise RuleError(Rule.BAD_VALUE, f"ring of {state.num}")
        self.rings[state.index].num = state.num

    def _set_vring_addr(self, message: Message) -> None:
        addr = message.payload
        assert isinstance(addr, VringAddr)
        ring = self.rings[addr.index]
        if addr.flags:
            raise RuleError(Rule.BAD_VALUE, f"flags {addr.flags:#x}")
        if ring.running and addr != ring.addr:
            raise RuleError(Rule.RING_RUNNING, f"ring {ring.index} is running elsewhere")
        ring.addr = addr

    def _set_vring_base(self, message: Message) -> None:
        state = _state(message)
        if state.num > 0xFFFF and not self._packed():
            raise RuleError(Rule.BAD_VALUE, f"base {state.num:#x}")
        self.rings[state.index].base = state.num

    def _get_vring_base(self, message: Message) -> Payload:
        ring = self.rings[_state(message).index]
        base = self._port.vring_stop(ring.index)
        if base is not None:
            ring.base = base
        ring.running = False
        return VringState(ring.index, self._base(ring))

    def _set_vring_kick(self, message: Message) -> None:
        ring, fd = self._ring_and_eventfd(message)
        if ring.running:
            with _port_refuses(Rule.BAD_FD, f"ring {ring.index}"):
                self._port.vring_set_kick(ring.index, fd)
        else:
            self._start(ring, fd)

    def _set_vring_call(self, message: Message) -> None:
        ring, fd = self._ring_and_eventfd(message)
        if ring.running:
            with _port_refuses(Rule.BAD_FD, f"ring {ring.index}"):
                self._port.vring_set_call(ring.index, fd)
        owned = message.take_fd()
        ring.set_call(-1 if owned is None else owned)

    def _set_vring_err(self, message: Message) -> None:
        # A broken ring is announced by closing the connection, which no front-end can overlook.
        self._ring_and_eventfd(message)

    def _set_vring_enable(self, message: Message) -> None:
        state = _state(message)
        # QEMU enables rings before it sends SET_FEATURES: only a negotiation that left the bit out forbids
        # it.
        if self._always_enabled():
            raise RuleError(Rule.NOT_NEGOTIATED, "needs VHOST_USER_F_PROTOCOL_FEATURES")
        if state.num > 1:
            raise RuleError(Rule.BAD_VALUE, f"enable {state.num}")
        ring = self.rings[state.index]
        ring.enabled = bool(state.num)
        if ring.running:
            self._port.vring_enable(ring.index, ring.enabled)

    def _packed(self) -> bool:
        return bool((self._features or 0) & VirtioFeature.RING_PACKED)

    def _base(self, ring: Ring) -> int:
        if ring.base is not None:
            return ring.base
        return _FIRST_LAP if self._packed() else 0

    def _always_enabled(self) -> bool:
        """Without VHOST_USER_F_PROTOCOL_FEATURES rings are enabled from the start."""
        return self._features is not None and not self._features & VirtioFeature.PROTOCOL_FEATURES

    def _ring_and_eventfd(self, message: Message) -> tuple[Ring, int]:
        """The ring that a VringFd names, and its descriptor (still the message's) or -1 for NOFD."""
        assert isinstance(message.payload, VringFd)
        ring = self.rings[message.payload.index]
        if message.payload.nofd:
            return ring, -1
        if not is_eventfd(message.fds[0]):
            raise RuleError(Rule.BAD_FD, f"ring {ring.index}: not an eventfd")
        return ring, message.fds[0]

    def _start(self, ring: Ring, kick_fd: int) -> None:
        if ring.addr is None or ring.num == 0:
            raise RuleError(Rule.BAD_RING, f"ring {ring.index} has no {'size' if ring.addr else 'addresses'}")
        vring = Vring(
            num=ring.num,
            base=self._base(ring),
            desc_uva=ring.addr.desc,
            avail_uva=ring.addr.avail,
            used_uva=ring.addr.used,
            kick_fd=kick_fd,
            call_fd=ring.call_fd,
        )
        self._port.vring_enable(ring.index, ring.enabled or self._always_enabled())
        with _port_refuses(Rule.BAD_RING, f"ring {ring.index}"):
            self._port.vring_start(ring.index, vring)
        ring.running = True


def _u64(message: Message) -> int:
    assert isinstance(message.payload, U64)
    return message.payload.value


def _state(message: Message) -> VringState:
    assert isinstance(message.payload, VringState)
    return message.payload


def _mem_region(region: Region, fd: int) -> MemRegion:
    return MemRegion(gpa=region.gpa, size=region.size, uva=region.uva, mmap_offset=region.mmap_offset, fd=fd)


_HANDLERS: dict[Request, Callable[[Session, Message], Payload | None]] = {
    request: getattr(Session, f"_{request.name.lower()}") for request in Request if request in SPECS
}
