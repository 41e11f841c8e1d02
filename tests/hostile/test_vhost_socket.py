# SPDX-License-Identifier: BSD-2-Clause
"""S: what a hostile front-end can do with its socket alone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from struct import pack

import pytest

from support.leaks import until_open
from support.scene import MAC_X, Scene
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, USUAL, FrontEnd
from vpt.conform.mischief import STRANGE_FDS, strange_fd
from vpt.vhost_user import (
    U64,
    MemTable,
    Opaque,
    ProtocolFeature,
    Request,
    Rule,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    encode,
    send_message,
)

F = VirtioFeature
TX = 1


def head(request: int, flags: int = 1, size: int = 0) -> bytes:
    return pack("=III", request, flags, size)


def one_eventfd(fe: FrontEnd) -> int:
    """A descriptor that lives as long as the front-end."""
    if not fe.pairs:
        fe.make_queues()
    return fe.queues()[0].kick_fd


def owner_with(protocol: int) -> Callable[[FrontEnd], None]:
    """Negotiate, but only these protocol features."""
    return lambda fe: fe.negotiate(protocol)


def nothing(fe: FrontEnd) -> None:
    """Connected, nothing said."""


def owner(fe: FrontEnd) -> None:
    """Negotiated, without acknowledgements: a refusal ends the connection."""
    fe.negotiate(int(ALL_PROTOCOL & ~ProtocolFeature.REPLY_ACK))


def running(fe: FrontEnd) -> None:
    """All rings at work."""
    fe.start(protocol=int(ALL_PROTOCOL & ~ProtocolFeature.REPLY_ACK))


@dataclass(frozen=True)
class Fault:
    """An act that costs the connection, and the rule that is to be blamed."""

    id: str
    rule: Rule
    act: Callable[[FrontEnd], object]
    before: Callable[[FrontEnd], None] = nothing


def raw(data: bytes, fds: int = 0) -> Callable[[FrontEnd], None]:
    return lambda fe: send_message(fe.sock, data, [one_eventfd(fe)] * fds)


def message(request: int, payload: object = None, fds: int = 0) -> Callable[[FrontEnd], None]:
    return raw(encode(request, payload), fds)  # type: ignore[arg-type]


INDEXED = {
    "NUM": lambda i: (Request.SET_VRING_NUM, VringState(i, 64), 0),
    "ADDR": lambda i: (Request.SET_VRING_ADDR, VringAddr(i, 0, 0, 0, 0, 0), 0),
    "BASE": lambda i: (Request.SET_VRING_BASE, VringState(i, 0), 0),
    "GET_BASE": lambda i: (Request.GET_VRING_BASE, VringState(i, 0), 0),
    "ENABLE": lambda i: (Request.SET_VRING_ENABLE, VringState(i, 1), 0),
    "KICK": lambda i: (Request.SET_VRING_KICK, U64(i), 1),
    "CALL": lambda i: (Request.SET_VRING_CALL, U64(i), 1),
    "ERR": lambda i: (Request.SET_VRING_ERR, U64(i), 1),
}

FAULTS = [
    *(
        Fault(
            f"S1 header cut at {n}",
            Rule.CUT_MESSAGE,
            lambda fe, n=n: (raw(head(1)[:n])(fe), fe.sock.shutdown(1)),
        )
        for n in range(1, 12)
    ),
    Fault("S3 size above the payload", Rule.BAD_SIZE, raw(head(Request.SET_FEATURES, size=9))),
    Fault("S3 size of 4 GiB", Rule.BAD_SIZE, raw(head(Request.SET_FEATURES, size=0xFFFFFFFF))),
    Fault("S3 unknown request of 4 GiB", Rule.BAD_SIZE, raw(head(77, size=0xFFFFFFFF))),
    Fault("S4 size below the payload", Rule.BAD_SIZE, raw(head(Request.SET_FEATURES, size=7))),
    Fault("S6 version 0", Rule.BAD_VERSION, raw(head(1, 0))),
    Fault("S6 version 2", Rule.BAD_VERSION, raw(head(1, 2))),
    Fault("S6 version 3", Rule.BAD_VERSION, raw(head(1, 3))),
    Fault("S7 reserved flag", Rule.RESERVED_FLAGS, raw(head(1, 0x11))),
    Fault("S8 reply bit", Rule.REPLY_FLAG, raw(head(1, 5))),
    Fault("S9 request 0", Rule.UNKNOWN_REQUEST, raw(head(0)), owner),
    Fault("S9 request 45", Rule.UNKNOWN_REQUEST, raw(head(45)), owner),
    Fault("S9 request 2^32-1", Rule.UNKNOWN_REQUEST, raw(head(0xFFFFFFFF)), owner),
    Fault("S9 unknown request with descriptors", Rule.UNKNOWN_REQUEST, raw(head(45), 8), owner),
    *(
        Fault(
            f"S10 {request.name} not negotiated",
            Rule.NOT_NEGOTIATED,
            message(request, payload, fds),
            owner_with(0),
        )
        for request, payload, fds in [
            (Request.GET_QUEUE_NUM, None, 0),
            (Request.NET_SET_MTU, U64(1500), 0),
            (Request.RESET_DEVICE, None, 0),
            (Request.GET_MAX_MEM_SLOTS, None, 0),
            (Request.ADD_MEM_REG, Opaque(bytes(40)), 1),
            (Request.REM_MEM_REG, Opaque(bytes(40)), 0),
            (Request.SET_STATUS, U64(1), 0),
            (Request.GET_STATUS, None, 0),
            (Request.SET_LOG_BASE, Opaque(bytes(16)), 1),
            (Request.SET_LOG_FD, None, 1),
            (Request.SEND_RARP, U64(2), 0),
            (Request.SET_BACKEND_REQ_FD, None, 1),
            (Request.GET_CONFIG, Opaque(bytes(12)), 0),
            (Request.SET_CONFIG, Opaque(bytes(12)), 0),
            (Request.VRING_KICK, VringState(0, 0), 0),
            (Request.SET_DEVICE_STATE_FD, Opaque(bytes(8)), 1),
            (Request.CHECK_DEVICE_STATE, None, 0),
        ]
    ),
    Fault(
        "S10 SET_VRING_ENABLE without protocol features",
        Rule.NOT_NEGOTIATED,
        message(Request.SET_VRING_ENABLE, VringState(0, 1)),
        lambda fe: fe.negotiate(None),
    ),
    Fault("S11 descriptor with SET_OWNER", Rule.BAD_FD_COUNT, message(Request.SET_OWNER, None, 1)),
    Fault("S11 descriptors with GET_FEATURES", Rule.BAD_FD_COUNT, message(Request.GET_FEATURES, None, 8)),
    Fault("S11 descriptor with SET_VRING_NUM", Rule.BAD_FD_COUNT, message(8, VringState(0, 64), 1), owner),
    Fault("S11 descriptor with NOFD", Rule.BAD_FD_COUNT, message(12, VringFd(VringFd.NOFD), 1), owner),
    Fault("S12 no descriptor for a kick", Rule.BAD_FD_COUNT, message(12, VringFd(0)), owner),
    Fault(
        "S12 no descriptor for memory",
        Rule.BAD_FD_COUNT,
        message(5, Opaque(pack("=II", 1, 0) + bytes(32))),
        owner,
    ),
    Fault("S13 two kicks", Rule.BAD_FD_COUNT, message(12, VringFd(0), 2), owner),
    Fault("S13 nine descriptors", Rule.BAD_FD_COUNT, message(12, VringFd(0), 9), owner),
    Fault("S13 253 descriptors", Rule.BAD_FD_COUNT, message(12, VringFd(0), 253), owner),
    Fault(
        "S16 memory before the owner", Rule.BEFORE_OWNER, message(5, Opaque(pack("=II", 1, 0) + bytes(32)), 1)
    ),
    Fault("S16 ring before the owner", Rule.BEFORE_OWNER, message(8, VringState(0, 64))),
    Fault("S16 kick before anything else", Rule.BAD_RING, message(12, VringFd(0), 1), owner),
    *(
        Fault(f"S17 feature bit {bit}", Rule.NOT_OFFERED, message(Request.SET_FEATURES, U64(1 << bit)), owner)
        for bit in (2, 10, 24, 33, 38, 40, 63)
    ),
    Fault("S18 other features while running", Rule.RING_RUNNING, message(2, U64(int(PLAIN))), running),
    Fault(
        "S19 packed rings of a legacy device",
        Rule.BAD_VALUE,
        message(2, U64(int(F.PROTOCOL_FEATURES | F.RING_PACKED))),
        owner,
    ),
    Fault(
        "S19 in order of a legacy device",
        Rule.BAD_VALUE,
        message(2, U64(int(F.PROTOCOL_FEATURES | F.IN_ORDER))),
        owner,
    ),
    Fault(
        "S20 in-band notifications",
        Rule.NOT_OFFERED,
        message(Request.SET_PROTOCOL_FEATURES, U64(1 << 14)),
    ),
    Fault(
        "S20 a protocol feature that does not exist",
        Rule.NOT_OFFERED,
        message(Request.SET_PROTOCOL_FEATURES, U64(1 << 63)),
    ),
    *(
        Fault(
            f"S21 {name} of ring {index:#x}",
            Rule.RING_INDEX if index < 256 or name not in ("KICK", "CALL", "ERR") else Rule.BAD_PAYLOAD,
            message(*make(index)),
            owner,
        )
        for name, make in INDEXED.items()
        for index in (2, 255, 0x10000, 0xFFFF0000)
    ),
    *(
        Fault(f"S22 ring of {num}", Rule.BAD_VALUE, message(8, VringState(0, num)), owner)
        for num in (0, 3, 65536, 0x80000000)
    ),
    Fault("S22 size while running", Rule.RING_RUNNING, message(8, VringState(0, 64)), running),
    Fault("S23 base of 65536", Rule.BAD_VALUE, message(10, VringState(0, 65536)), owner),
    Fault("S23 base while running", Rule.RING_RUNNING, message(10, VringState(0, 1)), running),
    Fault("S24 enable 2", Rule.BAD_VALUE, message(18, VringState(0, 2)), owner),
    Fault("S29 MTU 0", Rule.BAD_VALUE, message(20, U64(0)), owner),
    Fault("S29 MTU 67", Rule.BAD_VALUE, message(20, U64(67)), owner),
    Fault("S29 MTU 65536", Rule.BAD_VALUE, message(20, U64(65536)), owner),
    Fault("S29 status above a byte", Rule.BAD_VALUE, message(39, U64(256)), owner),
    Fault(
        "S30 GET_CONFIG whose size is not that of the message",
        Rule.BAD_PAYLOAD,
        raw(head(24, size=12) + pack("=III", 0xFFFFFFFF, 256, 0)),
        owner,
    ),
    Fault("M1 no regions", Rule.BAD_SIZE, message(5, MemTable(())), owner),
    Fault("M1 nine regions", Rule.BAD_SIZE, raw(head(5, size=8 + 9 * 32)), owner),
    Fault(
        "M1 2^32-1 regions",
        Rule.BAD_PAYLOAD,
        message(5, Opaque(pack("=II", 0xFFFFFFFF, 0) + bytes(32)), 1),
        owner,
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.id)
def test_a_fault_costs_the_connection_and_nothing_else(scene: Scene, fault: Fault) -> None:
    fe = scene.enter(features=USUAL)
    fault.before(fe)
    fault.act(fe)
    assert fe.closed_by_peer()
    faults = scene.villain.faults
    assert faults[fault.rule] == faults["protocol_errors"] == 1
    assert sum(fault.rule in line for line in scene.lines) == 1
    scene.check()


@pytest.mark.parametrize("index", [2, 255])
@pytest.mark.parametrize("name", [n for n in INDEXED if n != "GET_BASE"])
def test_a_refusal_that_was_asked_for_leaves_the_connection(scene: Scene, name: str, index: int) -> None:
    """S21 with need_reply: refused, and the ring that exists goes on."""
    fe = scene.enter().start()
    request, payload, fds = INDEXED[name](index)
    assert fe.try_(request, payload, [one_eventfd(fe)] * fds) != 0
    assert scene.villain.faults["refused"] == scene.villain.faults[Rule.RING_INDEX] == 1
    assert scene.villain.state().up
    scene.check(logged=False)


@pytest.mark.parametrize("request_", [0, 27, 45, 0xFFFFFFFF])
def test_s9_an_unknown_request_is_refused_if_asked(scene: Scene, request_: int) -> None:
    fe = scene.enter()
    fe.negotiate()
    fe.send(request_, Opaque(b"12345678"), need_reply=True)
    data = fe.sock.recv(20)
    assert data[:12] == head(request_, 5, 8)
    assert data[12:] != bytes(8)
    assert fe.ask_u64(Request.GET_FEATURES)
    scene.check(logged=False)


def test_s2_a_slow_sender_delays_nobody(scene: Scene) -> None:
    """One byte at a time; the others' packets pass between two bytes, and the message counts in the end."""
    fe = scene.enter()
    for byte in head(Request.GET_FEATURES):
        fe.sock.send(bytes([byte]))
        scene.neighbours_forward(8)
    assert fe.reply().request == Request.GET_FEATURES
    scene.check(logged=False)


@pytest.mark.parametrize(
    "data", [head(2)[:5], head(2, size=8), head(2, size=8) + b"123"], ids=["head", "S5", "part"]
)
def test_s2_s5_a_message_that_is_never_completed_times_out(hasty_scene: Scene, data: bytes) -> None:
    fe = hasty_scene.enter()
    fe.sock.send(data)
    assert fe.closed_by_peer()
    assert hasty_scene.villain.faults[Rule.MESSAGE_TIMEOUT] == 1
    hasty_scene.check()


def test_s2_trickling_bytes_do_not_extend_the_time(hasty_scene: Scene) -> None:
    fe = hasty_scene.enter()

    def cut_off() -> bool:
        try:
            fe.sock.send(b"\1")
        except ConnectionError:
            return True
        time.sleep(0.02)
        return False

    fe.sock.send(head(45, size=4096))
    until(cut_off, "the connection to be cut")
    assert hasty_scene.villain.faults[Rule.MESSAGE_TIMEOUT] == 1
    hasty_scene.check()


def test_s2_an_idle_connection_is_not_timed_out(hasty_scene: Scene) -> None:
    fe = hasty_scene.enter()
    fe.negotiate()
    time.sleep(0.5)
    assert fe.ask_u64(Request.GET_FEATURES)
    hasty_scene.check(logged=False)


@pytest.mark.parametrize(
    ("request_", "at_work"),
    [
        (Request.SET_VRING_KICK, True),
        (Request.SET_VRING_CALL, False),
        (Request.SET_VRING_CALL, True),
        (Request.SET_VRING_ERR, False),
        (Request.SET_VRING_ERR, True),
    ],
)
def test_s15_the_same_message_again_and_again_holds_one_descriptor(
    scene: Scene, request_: Request, at_work: bool
) -> None:
    """Of the transmit ring, whose kick a worker waits for."""
    fe = scene.enter()
    if at_work:
        fe.start()
    else:
        fe.negotiate()
    fd = one_eventfd(fe)
    fe.do(request_, VringFd(TX), [fd])
    held = scene.host.open_things()
    for _ in range(10_000):
        fe.send(request_, VringFd(TX), [fd])
    fe.do(Request.SET_OWNER)
    until_open(held)
    scene.check(logged=False)


def test_s15_the_logs_event_again_and_again_holds_one_descriptor(scene: Scene) -> None:
    fe = scene.enter().start()
    fd = one_eventfd(fe)
    fe.do(Request.SET_LOG_FD, None, [fd])
    held = scene.host.open_things()
    for _ in range(10_000):
        fe.send(Request.SET_LOG_FD, None, [fd])
    fe.do(Request.SET_OWNER)
    until_open(held)
    scene.check(logged=False)


def test_s22_a_size_again_and_again_is_the_last_one(scene: Scene) -> None:
    fe = scene.enter()
    fe.negotiate()
    held = scene.host.open_things()
    for n in range(10_000):
        fe.send(Request.SET_VRING_NUM, VringState(TX, 1 << n % 16))
    fe.do(Request.SET_OWNER)
    (ring,) = scene.villain.describe["session"]["rings"]
    assert ring["num"] == 1 << 9_999 % 16
    until_open(held)
    scene.check(logged=False)


def test_s16_a_ring_of_a_device_that_has_accepted_no_features_is_disabled(scene: Scene) -> None:
    """Whether rings are enabled from the start is among them: until then nothing leaves, nothing arrives."""
    fe = scene.enter()
    fe.protocol = fe.ask_u64(Request.GET_PROTOCOL_FEATURES) & int(ALL_PROTOCOL)
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(fe.protocol))
    fe.do(Request.SET_OWNER)
    fe.share_memory()
    fe.make_queues()
    for index in (0, TX):
        fe.start_ring(index)
    fe.fill()
    fe.transmit(frame(BROADCAST, MAC_X))
    scene.one.transmit(frame(BROADCAST, MAC_A))
    scene.two.receive()
    counters = scene.villain.counters
    assert (counters["tx_drop_disabled"], counters["rx_packets"]) == (1, 0)
    assert fe.poll() == []
    scene.check(logged=False)


@pytest.mark.parametrize(
    "features",
    [F.HOST_TSO4, F.HOST_TSO6 | F.HOST_ECN, F.GUEST_TSO4, F.HOST_ECN | F.CSUM, F.GUEST_ECN | F.GUEST_CSUM],
    ids=["S19 TSO4", "S19 TSO6", "S19 TSO4 received", "S19 ECN", "S19 ECN received"],
)
def test_offloads_without_what_they_need_are_as_good_as_not_accepted(
    scene: Scene, features: VirtioFeature
) -> None:
    """QEMU offers them so with csum=off, and Linux accepts: no fault, and not used."""
    fe = scene.enter(features=int(PLAIN | features))
    fe.start()
    used = scene.villain.state().features
    assert used == int(PLAIN | features & (F.CSUM | F.GUEST_CSUM)) & ~int(F.PROTOCOL_FEATURES)
    scene.check(logged=False)


def test_s24_enabling_twice_is_no_fault(scene: Scene) -> None:
    fe = scene.enter().start()
    for on in (True, True, False, False, True):
        fe.enable_ring(0, on)
    assert scene.villain.state().up
    scene.check(logged=False)


@pytest.mark.parametrize("kind", STRANGE_FDS)
@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
@pytest.mark.parametrize("at_work", [False, True], ids=["stopped", "running"])
def test_s25_only_eventfds_are_taken(scene: Scene, request_: Request, kind: str, at_work: bool) -> None:
    fe = scene.enter()
    if at_work:
        fe.start()
    else:
        fe.negotiate()
    fd = strange_fd(kind)
    try:
        assert fe.try_(request_, VringFd(0), [fd]) != 0
    finally:
        os.close(fd)
    assert scene.villain.faults[Rule.BAD_FD] == 1
    scene.check(logged=False)


def test_s25_a_kick_that_is_always_readable_does_not_starve_the_neighbours(scene: Scene) -> None:
    """A semaphore eventfd with a large count is readable again after every read."""
    fe = scene.enter().start()
    storm = os.eventfd(1 << 30, os.EFD_SEMAPHORE)
    for index in (0, 1):
        fe.set_kick(index, storm)
    os.close(storm)
    for _ in range(10):
        scene.neighbours_forward()
    scene.check(logged=False)


def test_s25_what_is_left_in_a_semaphore_is_no_kick(scene: Scene) -> None:
    """Nor does it keep the worker awake: each time that something is added it looks once."""
    fe = scene.enter().start()
    storm = os.eventfd(1 << 30, os.EFD_SEMAPHORE)
    fe.set_kick(1, storm)
    for _ in range(10):
        scene.neighbours_forward()
    counted = scene.villain.counters["kicks"]
    assert counted <= 2
    os.eventfd_write(storm, 1)
    until(lambda: scene.villain.counters["kicks"] == counted + 1, "a kick that is one")
    os.close(storm)
    scene.check(logged=False)


@pytest.mark.parametrize("whose", ["its own", "another port's"])
def test_s25_a_connection_to_this_back_end_is_no_channel_for_its_requests(scene: Scene, whose: str) -> None:
    """Held by the back-end, it would stay open after the front-end that it belongs to has gone."""
    other = scene.host.vhost("y")
    fe, beside = scene.enter(), FrontEnd(other.path)
    fe.negotiate()
    end = fe.sock if whose == "its own" else beside.sock
    assert fe.try_(Request.SET_BACKEND_REQ_FD, None, [end.fileno()]) != 0
    assert scene.villain.faults[Rule.BAD_FD] == 1
    beside.close()
    other.until_left()
    scene.host.remove(other)
    scene.check(logged=False)


def test_s26_a_full_call_descriptor_blocks_nobody(scene: Scene) -> None:
    """A blocking eventfd at its largest count: write() would sleep."""
    fe = scene.enter().start()
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    for index in (0, 1):
        fe.set_call(index, full)
    for _ in range(10):
        scene.one.transmit(frame(BROADCAST, MAC_A))
        fe.poll()
    os.close(full)
    scene.check(logged=False)


def test_s26_a_call_descriptor_made_blocking_behind_our_back_blocks_nobody(scene: Scene) -> None:
    """The file description is shared: O_NONBLOCK is taken back, then the counter filled."""
    fe = scene.enter().start()
    for queue in fe.queues():
        queue.want_calls()
    full = os.eventfd(0)
    for index in (0, 1):
        fe.set_call(index, full)
    os.set_blocking(full, True)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(full)  # set_call rings once
    os.eventfd_write(full, (1 << 64) - 2)
    for n in range(10):
        scene.one.transmit(frame(BROADCAST, MAC_A))
        fe.transmit(frame(MAC_A, MAC_X, n))
        fe.poll()
        fe.pairs[0].rx.want_calls()
    assert scene.villain.counters["rx_interrupts"] >= 10
    scene.one.poll()
    scene.two.poll()
    os.close(full)
    scene.check(logged=False)


def test_s26_a_call_descriptor_that_is_blocking_every_other_moment(scene: Scene) -> None:
    """The control thread rings it too, when it is handed over."""
    fe = scene.enter().start()
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            os.set_blocking(full, True)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for n in range(300):
            fe.set_call(n % 2, full)
    finally:
        stop.set()
        thread.join()
    os.close(full)
    scene.check(logged=False)


def test_s27_rings_without_descriptors_are_polled(scene: Scene) -> None:
    """NOFD for both: nobody can wake the other, and yet all frames pass, both ways."""
    fe = scene.enter().start()
    for index in (0, 1):
        fe.set_call(index, None)
        fe.set_kick(index, None)
    for n in range(10):
        fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.publish()
        fe.flush()
        assert number(scene.two.receive()[0].frame) == n
        scene.one.transmit(frame(BROADCAST, MAC_A, n))
        assert number(fe.receive()[0].frame) == n
        scene.one.poll()
        scene.two.poll()
    assert scene.villain.counters["rx_interrupts"] == 0
    scene.check(logged=False)


def test_s28_one_eventfd_for_kick_and_call_harms_only_its_owner(scene: Scene) -> None:
    fe = scene.enter().start()
    both = os.eventfd(0, os.EFD_NONBLOCK)
    for index in (0, 1):
        fe.set_call(index, both)
        fe.set_kick(index, both)
    os.eventfd_write(both, 1)
    os.close(both)
    for _ in range(10):
        scene.neighbours_forward()
    scene.check(logged=False)


def test_s31_replies_that_nobody_reads_are_bounded(hasty_scene: Scene) -> None:
    """While a reply waits no request is read: the sender stalls itself, and is dropped in the end."""
    fe = hasty_scene.enter()
    fe.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fe.sock.settimeout(0.05)
    data = head(Request.GET_FEATURES) * 100

    def cut_off() -> bool:
        try:
            fe.sock.send(data)
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return False

    until(cut_off, "the connection to be cut")
    assert hasty_scene.villain.faults[Rule.REPLY_TIMEOUT] == 1
    hasty_scene.check()


def test_s32_a_crowd_of_second_clients_changes_nothing(scene: Scene) -> None:
    fe = scene.enter().start()
    for _ in range(100):
        with FrontEnd(scene.villain.path) as other:
            assert other.closed_by_peer()
    assert scene.villain.faults["second_clients"] == 100
    assert fe.ask_u64(Request.GET_FEATURES)
    scene.check()


def test_s33_a_thousand_reconnects(scene: Scene) -> None:
    """In the middle of a message, and in the middle of a burst; the log does not grow with them."""
    for n in range(1000):
        if n % 20:
            with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(BrokenPipeError):
                sock.connect(str(scene.villain.path))
                sock.send(head(Request.GET_FEATURES)[: n % 13])
            continue
        until(lambda: visitors(scene) == n, "all to be heard of")  # noqa: B023
        scene.villain_leaves()
        fe = scene.enter(num=16, buffer_size=256).start()
        for _ in range(16):
            fe.queue_frame(BROADCAST + b"\x52\x54\0\0\0\x99" + bytes(60))
        fe.pairs[0].tx.kick()
    until(lambda: visitors(scene) == 1000, "all to be heard of")
    scene.villain_leaves()
    scene.two.poll()
    scene.check()


def visitors(scene: Scene) -> int:
    """How many have connected to the villain's port."""
    faults = scene.villain.faults
    return faults.get("connections", 0) + faults.get("second_clients", 0)
