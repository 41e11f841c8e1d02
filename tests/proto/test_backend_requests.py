# SPDX-License-Identifier: BSD-2-Clause
"""What the back-end asks of its front-end, and the messages that this takes."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from struct import unpack_from

import pytest

from support.host import Host
from support.leaks import until_open
from support.waiting import until
from vpt.conform.back_channel import BackChannel
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, USUAL, FrontEnd
from vpt.conform.split_queue import Buffer
from vpt.dataplane import Policy
from vpt.vhost_user import (
    U64,
    BackendRequest,
    DeviceConfig,
    ProtocolFeature,
    Request,
    VirtioFeature,
    VringFd,
    VringState,
    encode,
)

F = VirtioFeature
P = ProtocolFeature
Connect = Callable[..., FrontEnd]
INBAND = int(ALL_PROTOCOL | P.INBAND_NOTIFICATIONS)


@pytest.fixture
def channel() -> Iterator[Callable[[FrontEnd], BackChannel]]:
    """Make back channels that are closed at the end."""
    with ExitStack() as stack:
        yield lambda fe: stack.enter_context(BackChannel(fe))


# ---- the channel ----


def test_the_channel_may_come_before_the_owner(host: Host, connect: Connect) -> None:
    """QEMU sets it up while it negotiates."""
    fe = connect(host.vhost("a"))
    fe.ask_u64(Request.GET_FEATURES)
    fe.protocol = fe.ask_u64(Request.GET_PROTOCOL_FEATURES) & int(ALL_PROTOCOL)
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(fe.protocol))
    BackChannel(fe).close()


@pytest.mark.parametrize("what", ["file", "eventfd", "pipe", "datagram", "inet", "listening"])
def test_what_is_no_stream_socket_is_refused(host: Host, connect: Connect, what: str) -> None:
    port = host.vhost("a")
    fe = connect(port)
    fe.negotiate()
    before = host.open_things()
    with ExitStack() as stack:
        if what == "file":
            fd = stack.enter_context(open("/dev/null")).fileno()
        elif what == "eventfd":
            fd = os.eventfd(0)
            stack.callback(os.close, fd)
        elif what == "pipe":
            fd, other = os.pipe()
            stack.callback(os.close, fd)
            stack.callback(os.close, other)
        else:
            family = socket.AF_INET if what == "inet" else socket.AF_UNIX
            kind = socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM
            sock = stack.enter_context(socket.socket(family, kind))
            if what == "listening":
                sock.bind("")
                sock.listen()
            fd = sock.fileno()
        assert fe.try_(Request.SET_BACKEND_REQ_FD, None, [fd]) != 0
    assert port.faults["bad_fd"] == 1
    until_open(before)


@pytest.mark.usefixtures("bystanders")
def test_s15_replacing_it_ten_thousand_times_leaks_nothing(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    fe = connect(port)
    fe.negotiate()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fe.do(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        before = host.open_things()
        for n in range(10_000):
            fe.send(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
            if n % 50 == 0:
                fe.ask(Request.GET_FEATURES)
        fe.ask(Request.GET_FEATURES)
        until_open(before)


# ---- configuration ----


def test_the_configuration_is_virtio_nets(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a", pairs=3, mtu=9000, mac="52:54:00:11:22:33"))
    fe.negotiate()
    assert fe.offered & VirtioFeature.MAC
    config = fe.ask(Request.GET_CONFIG, DeviceConfig(0, 0, bytes(12)))
    assert isinstance(config, DeviceConfig)
    mac, status, pairs, mtu = unpack_from("<6sHHH", config.data)
    assert (mac.hex(":"), status, pairs, mtu) == ("52:54:00:11:22:33", 1, 3, 9000)


def test_without_an_address_of_its_own_a_port_offers_none(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    assert not fe.offered & VirtioFeature.MAC


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize(
    ("offset", "size", "length"),
    [
        (0, 12, 12),
        (10, 2, 2),
        (0, 256, 256),
        (250, 6, 6),
        (0, 0, 0),
        (250, 7, 0),
        (256, 1, 0),
        (0xFFFFFFFF, 1, 0),
    ],
)
def test_s30_a_reply_has_all_that_was_asked_for_or_nothing(
    host: Host, connect: Connect, offset: int, size: int, length: int
) -> None:
    """ "Zero length of payload" is how the back-end indicates an error."""
    fe = connect(host.vhost("a"))
    fe.negotiate()
    config = fe.ask(Request.GET_CONFIG, DeviceConfig(offset, 0, bytes(size)))
    assert isinstance(config, DeviceConfig)
    assert (config.offset, len(config.data)) == (offset, length)


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize(
    ("offset", "flags", "data", "taken"),
    [
        (8, DeviceConfig.BY_DRIVER, b"\1\0", True),  # says what is there
        (8, DeviceConfig.BY_DRIVER, b"\2\0", False),
        (0, DeviceConfig.BY_DRIVER, b"\x52", False),
        (0, DeviceConfig.BY_MIGRATION, bytes(12), True),
        (0, 2, b"", False),
        (0, DeviceConfig.BY_DRIVER, b"", False),
        (250, DeviceConfig.BY_MIGRATION, bytes(7), False),
        (0xFFFFFFFF, DeviceConfig.BY_MIGRATION, b"\0", False),
    ],
)
def test_s30_nothing_in_it_can_be_written(
    host: Host, connect: Connect, offset: int, flags: int, data: bytes, taken: bool
) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    assert (fe.try_(Request.SET_CONFIG, DeviceConfig(offset, flags, data)) == 0) == taken


def test_a_changed_link_is_told_to_those_who_keep_no_configuration(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    back = channel(fe)
    for up in (False, True, False):
        port.adapt(link_up=up)
        assert back.take().request == BackendRequest.CONFIG_CHANGE_MSG
        config = fe.ask(Request.GET_CONFIG, DeviceConfig(6, 0, bytes(2)))
        assert isinstance(config, DeviceConfig)
        assert config.data == bytes([up, 0])


def test_a_changed_mtu_is_told_and_is_what_may_be_set_and_sent(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    port, other = host.vhost("a"), connect(host.vhost("b", mtu=9000), buffer_size=16384).start(fill=8)
    fe = connect(port, buffer_size=16384).start(fill=8)
    back = channel(fe)
    for mtu in (9000, 1500, 4000):
        port.set_mtu(mtu)
        assert back.take().request == BackendRequest.CONFIG_CHANGE_MSG
        assert port.describe["session"]["mtu"] is None, "what it said before is over"
        config = fe.ask(Request.GET_CONFIG, DeviceConfig(10, 0, bytes(2)))
        assert isinstance(config, DeviceConfig)
        assert int.from_bytes(config.data, "little") == mtu
        assert fe.try_(Request.NET_SET_MTU, U64(mtu)) == 0
        assert fe.try_(Request.NET_SET_MTU, U64(mtu + 1)) != 0
        port.adapt(link_up=not port.settings.link_up)
        assert back.take().request == BackendRequest.CONFIG_CHANGE_MSG
        assert port.describe["session"]["mtu"] == mtu, "another change is none of the MTU"
        fe.transmit(frame(MAC_B, MAC_A, size=4000))
        fe.transmit(frame(MAC_B, MAC_A, size=1000))
        sizes = [len(r.frame) for r in other.receive(1 + (mtu >= 4000))]
        assert sizes == ([4000, 1000] if mtu >= 4000 else [1000])
    assert port.counters["tx_drop_oversize"] == 1


def test_changes_are_not_piled_up_for_one_who_does_not_answer(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    """One is on its way, one waits for its answer; the second tells of all that happened meanwhile."""
    port = host.vhost("a")
    fe = connect(port).start()
    back = channel(fe)
    for n in range(100):
        port.adapt(link_up=bool(n % 2))
    first = back.take(answer=None)
    assert not back.waiting()
    back.answer(first)
    back.take()
    host.call(lambda: None)
    assert not back.waiting()


def test_qemu_is_not_told_what_it_did_not_negotiate(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    port = host.vhost("a")
    fe = connect(port).start(protocol=int(ALL_PROTOCOL & ~P.CONFIG))
    back = channel(fe)
    port.adapt(link_up=False)
    assert not back.waiting()


@pytest.mark.parametrize("data", [b"\0" * 12, b"x" * 40, b""], ids=["no version", "nonsense", "closed"])
def test_a_channel_that_breaks_ends_alone(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel], data: bytes
) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    back = channel(fe)
    if data:
        back.sock.sendall(data)
        assert back.closed_by_peer()
    else:
        back.close()
    assert fe.ask_u64(Request.GET_FEATURES)
    port.adapt(link_up=False)
    assert port.state().up


def test_an_answer_that_was_not_asked_for_ends_the_channel(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    fe = connect(host.vhost("a")).start()
    back = channel(fe)
    back.sock.sendall(encode(BackendRequest.CONFIG_CHANGE_MSG, U64(0), reply=True))
    assert back.closed_by_peer()
    assert fe.ask_u64(Request.GET_FEATURES)


# ---- in-band notifications ----


def test_in_band_is_not_offered_unless_asked_for(host: Host, connect: Connect) -> None:
    """QEMU 7.2 accepts every bit below the last that it knows, this one too, of which it knows nothing."""
    fe = connect(host.vhost("a"))
    fe.negotiate(INBAND)
    assert not fe.protocol & P.INBAND_NOTIFICATIONS


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize("missing", [P.BACKEND_REQ, P.REPLY_ACK], ids=["BACKEND_REQ", "REPLY_ACK"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "not asked"])
def test_s20_in_band_without_its_conditions_ends_the_connection(
    host: Host, connect: Connect, missing: ProtocolFeature, asked: bool
) -> None:
    port = host.vhost("a", in_band=True)
    fe = connect(port)
    fe.negotiate()
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(INBAND & ~int(missing)), need_reply=asked)
    assert fe.closed_by_peer()
    until(lambda: port.faults["not_negotiated"] == 1, "the fault to be counted")


def start_in_band(fe: FrontEnd, channel: Callable[[FrontEnd], BackChannel]) -> BackChannel:
    """Rings that have no descriptor at all; each starts at its first kick."""
    fe.negotiate(INBAND)
    back = channel(fe)
    fe.share_memory()
    fe.make_queues()
    for index, queue in enumerate(fe.queues()):
        fe.do(Request.SET_VRING_NUM, VringState(index, queue.num))
        fe.do(Request.SET_VRING_ADDR, queue.addresses(index))
        fe.enable_ring(index)
    return back


def test_in_band_a_kick_starts_the_ring_and_is_answered_when_all_is_done(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    """No polling, no waiting, in either end: what the answer promises is simply there."""
    one, two = connect(host.vhost("a", in_band=True)), connect(host.vhost("b", in_band=True))
    calls_one, calls_two = start_in_band(one, channel), start_in_band(two, channel)
    two.fill(kick=False)
    two.do(Request.VRING_KICK, VringState(0, 0))
    one.do(Request.VRING_KICK, VringState(1, 0))
    for n in range(20):
        burst = 1 + 5 * n
        two.pairs[0].rx.want_calls()
        one.pairs[0].tx.want_calls(burst - 1)
        for k in range(burst):
            one.queue_frame(frame(MAC_B, MAC_A, k))
        one.pairs[0].tx.publish()
        one.do(Request.VRING_KICK, VringState(1, 0))
        assert [number(r.frame) for r in two.poll(refill=False)] == list(range(burst))
        assert len(list(one.pairs[0].tx.take_used())) == burst
        assert calls_one.waiting(), "and the call before has been answered before this kick"
        assert calls_one.take().payload == VringState(1, 0)
        assert calls_two.take().payload == VringState(0, 0)
        two.fill(kick=False)
        two.do(Request.VRING_KICK, VringState(0, 0))


def test_in_band_a_call_that_is_not_answered_stands_for_all_that_follow(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    one, two = connect(host.vhost("a", in_band=True)).start(), connect(host.vhost("b", in_band=True))
    back = start_in_band(two, channel)
    two.fill(kick=False)
    two.do(Request.VRING_KICK, VringState(0, 0))
    rx = two.pairs[0].rx
    for n in range(10):
        rx.want_calls(n)
        one.transmit(frame(MAC_B, MAC_A, n))
    first = back.take(answer=None)
    assert not back.waiting()
    back.answer(first)
    rx.want_calls(10)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert back.take().request == BackendRequest.VRING_CALL


def test_in_band_descriptors_are_preferred_where_they_are_given(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    one, two = connect(host.vhost("a", in_band=True)).start(), connect(host.vhost("b", in_band=True))
    two.negotiate(INBAND)
    back = channel(two)
    two.share_memory()
    two.make_queues()
    for index in (0, 1):
        two.start_ring(index)
        two.enable_ring(index)
    two.fill()
    two.pairs[0].rx.want_calls()
    one.transmit(frame(MAC_B, MAC_A))
    assert two.pairs[0].rx.take_calls(10) == 1
    assert not back.waiting()


def test_in_band_calls_stop_with_a_descriptor_and_nothing_leaks(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    port = host.vhost("a", in_band=True)
    with FrontEnd(port.path) as probe:
        probe.start()
    port.until_left()
    before = host.open_things()
    with FrontEnd(port.path) as fe:
        start_in_band(fe, channel).close()
        for index in (0, 1):
            fe.do(Request.VRING_KICK, VringState(index, 0))
            fe.set_call(index, fe.queues()[index].call_fd)
        fe.do(Request.RESET_DEVICE)
    port.until_left()
    until_open(before)


def test_in_band_a_kick_with_a_number_or_of_no_ring_is_refused(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    fe = connect(host.vhost("a", in_band=True))
    start_in_band(fe, channel)
    assert fe.try_(Request.VRING_KICK, VringState(0, 1)) != 0
    assert fe.try_(Request.VRING_KICK, VringState(2, 0)) != 0
    assert fe.try_(Request.VRING_KICK, VringState(0xFFFF_FFFF, 0)) != 0
    assert fe.try_(Request.VRING_KICK, VringState(0, 0)) == 0


@pytest.mark.parametrize("pieces", [0, 62], ids=["whole", "in pieces"])
def test_in_band_a_kick_is_answered_when_all_that_was_there_has_been_taken(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel], pieces: int
) -> None:
    """However many rounds that takes: a burst holds 64 packets, or 2048 pieces, of one queue of the port."""
    host.null("sink")
    port = host.vhost("a", in_band=True, pairs=4, policy=Policy.notify())
    fe = connect(port, pairs=4, num=1024, buffer_size=128)
    start_in_band(fe, channel)
    for pair in range(4):
        fe.do(Request.VRING_KICK, VringState(2 * pair + 1, 0))  # it runs, and is empty
    for pair, n in product(range(4), range(1024)):
        fe.queue_frame(frame(BROADCAST, MAC_A, n), pair=pair, sizes=[1] * pieces, indirect=pieces > 0)
    for pair in range(4):
        fe.pairs[pair].tx.publish()
    assert fe.try_(Request.VRING_KICK, VringState(1, 0)) == 0
    tx = fe.pairs[0].tx
    assert len(list(tx.take_used())) == 1024


def test_in_band_a_ring_that_was_not_described_does_not_start(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    fe = connect(host.vhost("a", in_band=True))
    fe.negotiate(INBAND)
    channel(fe)
    assert fe.try_(Request.VRING_KICK, VringState(0, 0)) != 0


# ---- errors of rings ----


def lie(fe: FrontEnd) -> None:
    """An address that is nowhere, in the transmit ring."""
    fe.pairs[-1].tx.add([Buffer(0x10, 100)])
    fe.pairs[-1].tx.kick(force=True)


def lie_where_packets_arrive(fe: FrontEnd) -> None:
    """The same in the receive ring, and a packet that another port sends there."""
    fe.pairs[-1].rx.add([Buffer(0x10, 100, True)])
    fe.pairs[-1].rx.publish()


@pytest.mark.parametrize("layout", [0, int(F.RING_PACKED)], ids=["split", "packed"])
@pytest.mark.parametrize(
    ("break_", "broken"), [(lie_where_packets_arrive, 2), (lie, 3)], ids=["receive", "transmit"]
)
def test_a_ring_that_breaks_signals_its_error_descriptor_and_no_other(
    host: Host, connect: Connect, break_: Callable[[FrontEnd], None], broken: int, layout: int
) -> None:
    a, b = host.vhost("a", pairs=2, mac=MAC_A), host.vhost("b", pairs=2)
    fe = connect(a, pairs=2, features=USUAL | layout).start(fill=0)
    events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
    for index, event in enumerate(events):
        fe.do(Request.SET_VRING_ERR, VringFd(index), [event])
    break_(fe)
    connect(b, pairs=2).start().transmit(frame(MAC_A, MAC_B, 0), pair=1)
    assert fe.closed_by_peer()
    assert [index for index, event in enumerate(events) if select.select([event], [], [], 0)[0]] == [broken]
    for event in events:
        os.close(event)


def test_in_band_a_ring_that_breaks_says_so_on_the_channel(
    host: Host, connect: Connect, channel: Callable[[FrontEnd], BackChannel]
) -> None:
    fe = connect(host.vhost("a", in_band=True))
    back = start_in_band(fe, channel)
    fe.do(Request.VRING_KICK, VringState(1, 0))
    lie(fe)
    fe.send(Request.VRING_KICK, VringState(1, 0))
    assert fe.closed_by_peer()
    said = back.take(answer=None)
    assert (said.request, said.payload) == (BackendRequest.VRING_ERR, VringState(1, 0))


def test_an_error_descriptor_that_is_full_blocks_nobody(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    os.eventfd_write(event, (1 << 64) - 2)
    fe.do(Request.SET_VRING_ERR, VringFd(1), [event])
    os.set_blocking(event, True)
    lie(fe)
    assert fe.closed_by_peer()
    assert port.describe["counters"]["broken"] == 1
    os.close(event)
