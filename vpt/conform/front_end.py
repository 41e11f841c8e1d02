# SPDX-License-Identifier: BSD-2-Clause
"""A vhost-user net front-end: handshake, guest memory, rings, frames; raw messages to misbehave with.

Blocking, with time-outs; the back-end runs in another thread or process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from vpt.closing import Closing
from vpt.conform.guest_memory import GuestMemory, GuestRegion
from vpt.conform.packed_queue import PackedQueue
from vpt.conform.split_queue import Buffer, SplitQueue, pieces
from vpt.vhost_user import (
    U64,
    Decoder,
    DeviceStatus,
    Inflight,
    MemReg,
    MemTable,
    Message,
    Opaque,
    Payload,
    ProtocolFeature,
    Request,
    VirtioFeature,
    VringFd,
    VringState,
    encode,
    receive,
    send_message,
)

T = TypeVar("T")
F = VirtioFeature
Queue = SplitQueue | PackedQueue
TIMEOUT_S = 10.0
VNET_HDR = 12
FIRST_LAP = 0x8000_8000  # base of a packed ring: index 0, wrap counter 1, for both sides
ALL_PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.DEVICE_STATE
)
PLAIN = F.VERSION_1 | F.PROTOCOL_FEATURES
USUAL = PLAIN | F.MRG_RXBUF | F.INDIRECT_DESC | F.EVENT_IDX
OFFLOADS = (
    F.CSUM | F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN
)


class Failure(AssertionError):  # noqa: N818 - the back-end's, and no error of ours
    """The back-end did what it may not, or did not do what it must."""


def eventually(probe: Callable[[], T], what: str, timeout_s: float) -> T:
    """The first true value of probe(); Failure when it takes too long."""
    end = time.monotonic() + timeout_s
    while not (value := probe()):
        if time.monotonic() > end:
            raise Failure(f"did not happen in {timeout_s:g} s: {what}")
        time.sleep(0.0005)
    return value


@dataclass(slots=True)
class Received:
    """One packet from the back-end: virtio-net header, frame, buffers that it took."""

    header: bytes
    frame: bytes
    buffers: int


@dataclass(frozen=True, slots=True)
class Record:
    """The record of what is in flight, which the front-end keeps for the back-end. fd: owned."""

    info: Inflight
    fd: int


@dataclass(slots=True)
class _Pair:
    """Receive and transmit queue of a pair, and a buffer for each of their descriptors."""

    rx: Queue
    tx: Queue
    rx_buffers: int
    tx_buffers: int
    rx_pending: list[bytes] = field(default_factory=list)


class FrontEnd(Closing):
    """One connection to a back-end.

    features are cut down to what is offered, unless exact. buffer_size: bytes of each receive and transmit
    buffer.
    """

    def __init__(
        self,
        target: Path | str | socket.socket,
        *,
        features: int = USUAL,
        pairs: int = 1,
        num: int = 256,
        memory: GuestMemory | None = None,
        buffer_size: int = 2048,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._connect(target)
        self.wanted = int(features)
        self.features = 0
        self.offered = 0
        self.pairs_wanted = pairs
        self.num = num
        self.memory = memory or GuestMemory()
        self.buffer_size = buffer_size
        self.pairs: list[_Pair] = []
        self.record: Record | None = None

    def _connect(self, target: Path | str | socket.socket) -> None:
        if isinstance(target, socket.socket):
            self.sock = target
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout_s)
            self.sock.connect(str(target))
        self.sock.settimeout(self.timeout_s)
        self._decoder = Decoder(replies=True)
        self._inbox: list[Message] = []
        self.protocol = 0

    def set_timeout(self, timeout_s: float) -> None:
        """How long to wait for anything from now on."""
        self.timeout_s = timeout_s
        self.sock.settimeout(timeout_s)

    def disconnect(self) -> None:
        """Close the socket only; memory and rings stay."""
        self.sock.close()
        self._decoder.close()

    def close(self) -> None:
        """Free all."""
        self.disconnect()
        for queue in self.queues():
            queue.close()
        self.pairs.clear()
        if self.record is not None:
            os.close(self.record.fd)
            self.record = None
        self.memory.close()

    def queues(self) -> list[Queue]:
        """All queues by ring index."""
        return [queue for pair in self.pairs for queue in (pair.rx, pair.tx)]

    # ---- messages ----

    def send(
        self,
        request: int,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Send a message and wait for nothing."""
        send_message(self.sock, encode(request, payload, need_reply=need_reply), fds)

    def reply(self) -> Message:
        """The next reply. ConnectionError when the back-end has closed the connection."""
        while not self._inbox:
            messages = receive(self.sock, self._decoder)
            if messages is None:
                raise ConnectionError("closed by the back-end")
            self._inbox += messages
        return self._inbox.pop(0)

    def closed_by_peer(self) -> bool:
        """Wait for the back-end to close the connection; anything but the end of the stream is False."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def ask(self, request: int, payload: Payload | None = None) -> Payload:
        """Send a message that has a reply of its own; returns the reply's payload."""
        self.send(request, payload)
        return self._reply_to(request).payload

    def _reply_to(self, request: int) -> Message:
        message = self.reply()
        if message.request != request:
            raise Failure(f"request {request} was answered by a reply to {message.request}")
        return message

    def ask_u64(self, request: int) -> int:
        """The same for those that are answered with a number."""
        payload = self.ask(request)
        assert isinstance(payload, U64)
        return payload.value

    def try_(self, request: int, payload: Payload | None = None, fds: Sequence[int] = ()) -> int:
        """Send a message and ask for an acknowledgement; returns it. 0: done."""
        self.send(request, payload, fds, need_reply=True)
        payload = self._reply_to(request).payload
        if isinstance(payload, Opaque):  # to a request that is not in the table
            payload = U64.unpack(payload.data)
        if not isinstance(payload, U64):
            raise Failure(f"request {request} was not acknowledged but answered: {payload}")
        return payload.value

    def do(self, request: int, payload: Payload | None = None, fds: Sequence[int] = ()) -> None:
        """Send a message that must succeed."""
        if self.protocol & ProtocolFeature.REPLY_ACK:
            answer = self.try_(request, payload, fds)
            if answer != 0:
                raise Failure(f"{Request(request).name} was refused: {answer:#x}")
        else:
            self.send(request, payload, fds)

    # ---- handshake ----

    def negotiate(self, protocol: int | None = int(ALL_PROTOCOL)) -> None:
        """Features, owner; protocol features too unless protocol is None."""
        self.offered = self.ask_u64(Request.GET_FEATURES)
        if protocol is not None and self.offered & F.PROTOCOL_FEATURES:
            self.protocol = self.ask_u64(Request.GET_PROTOCOL_FEATURES) & protocol
            self.send(Request.SET_PROTOCOL_FEATURES, U64(self.protocol))
        self.do(Request.SET_OWNER)
        self.features = self.wanted & self.offered
        if protocol is None:
            self.features &= ~int(F.PROTOCOL_FEATURES)
        self.do(Request.SET_FEATURES, U64(self.features))

    def share_memory(self) -> None:
        """Tell the back-end of all regions."""
        table = MemTable(tuple(region.info for region in self.memory.regions))
        self.do(Request.SET_MEM_TABLE, table, [region.fd for region in self.memory.regions])

    def add_region(self, region: GuestRegion) -> int:
        """Tell it of one more; returns the acknowledgement."""
        return self.try_(Request.ADD_MEM_REG, MemReg(region.info), [region.fd])

    def remove_region(self, region: GuestRegion, *, with_fd: bool = False) -> int:
        """Take one away again; returns the acknowledgement."""
        return self.try_(Request.REM_MEM_REG, MemReg(region.info), [region.fd] if with_fd else [])

    def make_queues(self) -> None:
        """Lay out rings and buffers in guest memory."""
        for _ in range(self.pairs_wanted):
            rx, tx = self._make_queue(), self._make_queue()
            size = self.num * self.buffer_size
            self.pairs.append(_Pair(rx, tx, self.memory.alloc(size, 64), self.memory.alloc(size, 64)))

    def _make_queue(self) -> Queue:
        event_idx = bool(self.features & F.EVENT_IDX)
        if self.features & F.RING_PACKED:
            in_order = bool(self.features & F.IN_ORDER)
            return PackedQueue(self.memory, self.num, event_idx=event_idx, in_order=in_order)
        return SplitQueue(self.memory, self.num, event_idx=event_idx)

    def start_ring(
        self, index: int, *, base: int | None = None, kick: bool = True, call: bool = True
    ) -> None:
        """Describe a ring and start it. kick, call: with descriptors, or NOFD."""
        queue = self.queues()[index]
        self.do(Request.SET_VRING_NUM, VringState(index, queue.num))
        self.do(Request.SET_VRING_BASE, VringState(index, queue.base if base is None else base))
        self.do(Request.SET_VRING_ADDR, queue.addresses(index))
        self.set_call(index, queue.call_fd if call else None)
        self.set_kick(index, queue.kick_fd if kick else None)

    def set_kick(self, index: int, fd: int | None) -> None:
        """Give a ring its kick descriptor, which starts it."""
        self._set_fd(Request.SET_VRING_KICK, index, fd)

    def set_call(self, index: int, fd: int | None) -> None:
        """Give a ring its call descriptor."""
        self._set_fd(Request.SET_VRING_CALL, index, fd)

    def _set_fd(self, request: Request, index: int, fd: int | None) -> None:
        if fd is None:
            self.do(request, VringFd(index | VringFd.NOFD))
        else:
            self.do(request, VringFd(index), [fd])

    def stop_ring(self, index: int) -> int:
        """Stop a ring; returns its base."""
        state = self.ask(Request.GET_VRING_BASE, VringState(index, 0))
        assert isinstance(state, VringState)
        if state.index != index:
            raise Failure(f"GET_VRING_BASE of ring {index} was answered with ring {state.index}")
        return state.num

    def enable_ring(self, index: int, on: bool = True) -> None:
        """Enable or disable a ring."""
        self.do(Request.SET_VRING_ENABLE, VringState(index, int(on)))

    def ask_record(self) -> Record:
        """Let the back-end make a record of what is in flight, to keep."""
        self.send(Request.GET_INFLIGHT_FD, Inflight(0, 0, 2 * self.pairs_wanted, self.num))
        message = self.reply()
        assert isinstance(message.payload, Inflight)
        fd = message.take_fd()
        assert fd is not None
        self.record = Record(message.payload, fd)
        return self.record

    def give_record(self) -> None:
        """Hand it in, as has to be done with each connection."""
        assert self.record is not None
        self.do(Request.SET_INFLIGHT_FD, self.record.info, [self.record.fd])

    def resume(
        self,
        target: Path | str | socket.socket,
        *,
        protocol: int = int(ALL_PROTOCOL),
        enable_first: bool = False,
    ) -> Self:
        """Go on with the same rings at a back-end that has come back, by the record of what is in flight.

        Ring bases are those of the beginning, as of a front-end that did not count. enable_first: rings are
        enabled before they start, as by QEMU; else after it, as by DPDK's virtio-user.
        """
        self.disconnect()
        self._connect(target)
        self.negotiate(protocol)
        self.share_memory()
        self.give_record()
        for index in range(len(self.queues())):
            if enable_first:
                self.enable_ring(index)
            self.start_ring(index, base=FIRST_LAP if self.features & F.RING_PACKED else 0)
            if not enable_first:
                self.enable_ring(index)
        self.driver_ok()
        self.ask(Request.GET_FEATURES)
        return self

    def start_rings(self) -> None:
        """Start all rings, enabled where that has to be said, as a driver does when it is ready."""
        for index in range(len(self.queues())):
            self.start_ring(index)
            if self.features & F.PROTOCOL_FEATURES:
                self.enable_ring(index)
        self.driver_ok()

    def restart(self) -> None:
        """The same driver's way back to running rings after a reset of the device; memory stays shared."""
        self.do(Request.SET_FEATURES, U64(self.features))
        for queue in self.queues():
            queue.restart()
        self.start_rings()

    def driver_ok(self) -> None:
        """Tell that the driver is at work, where that is told: there are back-ends that wait for it."""
        if self.protocol & ProtocolFeature.STATUS:
            s = DeviceStatus
            self.do(Request.SET_STATUS, U64(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK | s.DRIVER_OK))

    def start(
        self, *, protocol: int | None = int(ALL_PROTOCOL), fill: int | None = None, record: bool = False
    ) -> Self:
        """The whole way to running and enabled rings, with `fill` receive buffers posted per pair.

        record: have one kept of what is in flight.
        """
        self.negotiate(protocol)
        self.share_memory()
        if not self.pairs:
            self.make_queues()
        if record:
            self.ask_record()
            self.give_record()
        self.start_rings()
        for pair in range(len(self.pairs)):
            self.fill(pair, fill)
        self.ask(Request.GET_FEATURES)  # what went unacknowledged has been acted on when the answer is there
        return self

    # ---- frames ----

    def fill(self, pair: int = 0, count: int | None = None, *, kick: bool = True) -> None:
        """Post receive buffers, by default as many as there are descriptors. kick: and say so by eventfd."""
        p = self.pairs[pair]
        for _ in range(p.rx.free if count is None else count):
            self._post(p)
        if kick:
            p.rx.kick()
        else:
            p.rx.publish()

    def _post(self, p: _Pair) -> None:
        (slot,) = p.rx.peek_free(1)
        p.rx.add([Buffer(p.rx_buffers + slot * self.buffer_size, self.buffer_size, True)])

    def queue_frame(
        self,
        frame: bytes,
        header: bytes = bytes(VNET_HDR),
        *,
        pair: int = 0,
        sizes: Sequence[int] = (),
        indirect: bool = False,
    ) -> None:
        """Make a packet available, unpublished.

        sizes: of the pieces to split header and frame into, the last one takes the rest; none: as few as
        possible.
        """
        p = self.pairs[pair]
        data = header + frame
        cuts = [*sizes, len(data) - sum(sizes)] if sizes else []
        (slot,) = p.tx.peek_free(1)
        start = p.tx_buffers + slot * self.buffer_size
        if len(data) <= self.buffer_size:
            self.memory.write(start, data)
            p.tx.add(pieces(start, cuts or [len(data)]), indirect=indirect)
            return
        chunks = [data[i : i + self.buffer_size] for i in range(0, len(data), self.buffer_size)]
        buffers = []
        for slot, chunk in zip(p.tx.peek_free(len(chunks)), chunks, strict=True):
            buffers.append(Buffer(p.tx_buffers + slot * self.buffer_size, len(chunk)))
            self.memory.write(buffers[-1].gpa, chunk)
        p.tx.add(buffers)

    def transmit(
        self,
        *frames: bytes,
        header: bytes = bytes(VNET_HDR),
        pair: int = 0,
        sizes: Sequence[int] = (),
        indirect: bool = False,
    ) -> None:
        """Send frames as one burst, waiting for room, and for the back-end to have taken them all."""
        tx = self.pairs[pair].tx
        for frame in frames:
            need = max(1, len(sizes) + 1, -(-(len(frame) + VNET_HDR) // self.buffer_size))
            if tx.free < need:
                tx.kick()
                self._wait(lambda: (list(tx.take_used()), tx.free >= need)[1], "room in the transmit ring")  # noqa: B023
            self.queue_frame(frame, header, pair=pair, sizes=sizes, indirect=indirect)
        tx.kick()
        self.flush(pair)

    def flush(self, pair: int = 0) -> None:
        """Wait until the back-end has taken all that was sent."""
        tx = self.pairs[pair].tx
        self._wait(lambda: (list(tx.take_used()), tx.free == tx.num)[1], "transmit ring to be emptied")

    def _wait(self, probe: Callable[[], T], what: str) -> T:
        return eventually(probe, what, self.timeout_s)

    def poll(self, pair: int = 0, *, refill: bool = True) -> list[Received]:
        """Packets that have arrived; their buffers are posted again."""
        p = self.pairs[pair]
        out = []
        for head, size in p.rx.take_used():
            p.rx_pending.append(self.memory.read(p.rx_buffers + head * self.buffer_size, size))
            needed = int.from_bytes(p.rx_pending[0][10:12], "little") if self.features & F.MRG_RXBUF else 1
            if len(p.rx_pending) < max(1, needed):
                continue
            data = b"".join(p.rx_pending)
            out.append(Received(data[:VNET_HDR], data[VNET_HDR:], len(p.rx_pending)))
            p.rx_pending.clear()
        if refill and out:
            self.fill(pair)
        return out

    def receive(self, count: int = 1, *, pair: int = 0) -> list[Received]:
        """Wait for that many packets, and take what else has arrived with them."""
        got: list[Received] = []

        def enough() -> bool:
            got.extend(self.poll(pair))
            return len(got) >= count

        self._wait(enough, f"{count} packets")
        return got
