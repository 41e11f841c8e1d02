# SPDX-License-Identifier: BSD-2-Clause
"""The wire format by itself: what the decoder takes, what it refuses, and who owns the descriptors."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.leaks import open_things, until_open
from vpt.vhost_user import (
    MAX_FDS,
    SPECS,
    U64,
    Decoder,
    DeviceConfig,
    DeviceStateFd,
    Empty,
    Inflight,
    Log,
    LogTaken,
    MemReg,
    MemTable,
    Message,
    Opaque,
    Payload,
    Region,
    Request,
    Rule,
    RuleError,
    VringAddr,
    VringFd,
    VringState,
    encode,
    receive,
    send_message,
)

REGION = Region(0x1000, 0x2000, 0x7F00_0000_1000, 0x3000)
SAMPLES: dict[type[Payload], Payload] = {
    Empty: Empty(),
    U64: U64(0x1122_3344_5566_7788),
    LogTaken: LogTaken(),
    VringState: VringState(3, 256),
    VringAddr: VringAddr(1, 0, 0x10, 0x20, 0x30, 0x40),
    VringFd: VringFd(2),
    MemTable: MemTable((REGION, REGION)),
    MemReg: MemReg(REGION),
    Inflight: Inflight(8192, 64, 2, 256),
    Log: Log(0x8000, 0x1000),
    DeviceConfig: DeviceConfig(6, 0, b"\1\0"),
    DeviceStateFd: DeviceStateFd(DeviceStateFd.LOAD, 0),
}


def some_fds(count: int) -> list[int]:
    return [os.eventfd(0) for _ in range(count)]


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """No test here may leave a descriptor open."""
    before = open_things()
    yield
    until_open(before)


def decode_one(data: bytes, fds: list[int] | None = None) -> Message:
    (message,) = Decoder().feed(data, fds or [])
    return message


def broken_rule(data: bytes, fds: int = 0) -> Rule:
    with pytest.raises(RuleError) as caught:
        Decoder().feed(data, some_fds(fds))
    return caught.value.rule


def head(request: int, flags: int = 1, size: int = 0) -> bytes:
    return pack("=III", request, flags, size)


def fds_for(request: int) -> int:
    """How many descriptors the sample of this request comes with."""
    payload = SAMPLES[SPECS[request].payload]
    if isinstance(payload, MemTable):
        return len(payload.regions)
    return max(SPECS[request].fds)


@pytest.mark.parametrize("request_", list(Request), ids=lambda r: r.name)
def test_every_message_comes_back_as_it_was_sent(request_: Request) -> None:
    payload = SAMPLES[SPECS[request_].payload]
    with decode_one(encode(request_, payload, need_reply=True), some_fds(fds_for(request_))) as message:
        assert message.request == request_
        assert message.payload == payload
        assert message.need_reply
        assert len(message.fds) == fds_for(request_)


@pytest.mark.parametrize("request_", list(Request), ids=lambda r: r.name)
def test_every_reply_comes_back_as_it_was_sent(request_: Request) -> None:
    payload = SAMPLES[SPECS[request_].reply_payload]
    fds = some_fds(SPECS[request_].reply_fds[0])
    (message,) = Decoder(replies=True).feed(encode(request_, payload, reply=True), fds)
    with message:
        assert (message.request, message.payload, message.fds) == (request_, payload, fds)


def test_a_log_may_be_acknowledged_by_nothing() -> None:
    """As DPDK does it; the specification does not say what the reply carries."""
    (message,) = Decoder(replies=True).feed(encode(Request.SET_LOG_BASE, reply=True))
    assert message.payload == LogTaken(0)


def test_every_request_has_rules() -> None:
    assert set(SPECS) == set(Request)


def test_a_message_may_come_in_any_pieces() -> None:
    data = encode(Request.SET_VRING_NUM, VringState(1, 64)) + encode(Request.SET_OWNER)
    for step in range(1, len(data) + 1):
        decoder = Decoder()
        got = [m for at in range(0, len(data), step) for m in decoder.feed(data[at : at + step])]
        assert [m.request for m in got] == [Request.SET_VRING_NUM, Request.SET_OWNER]
        assert not decoder.mid_message


def test_want_never_reaches_into_the_next_message() -> None:
    decoder = Decoder()
    data = encode(Request.SET_FEATURES, U64(1))
    assert decoder.want == 12
    decoder.feed(data[:12])
    assert decoder.want == 8
    decoder.feed(data[12:15])
    assert decoder.want == 5
    assert len(decoder.feed(data[15:])) == 1
    assert decoder.want == 12


@pytest.mark.parametrize("version", [0, 2, 3])
def test_other_versions_are_refused(version: int) -> None:
    assert broken_rule(head(Request.GET_FEATURES, version)) == Rule.BAD_VERSION


@pytest.mark.parametrize("bit", range(4, 32))
def test_reserved_flags_are_refused(bit: int) -> None:
    assert broken_rule(head(Request.GET_FEATURES, 1 | 1 << bit)) == Rule.RESERVED_FLAGS


def test_a_reply_is_not_a_request() -> None:
    assert broken_rule(encode(Request.GET_FEATURES, U64(0), reply=True)) == Rule.REPLY_FLAG


def test_a_request_is_not_a_reply() -> None:
    with pytest.raises(RuleError) as caught:
        Decoder(replies=True).feed(encode(Request.GET_FEATURES))
    assert caught.value.rule == Rule.REPLY_FLAG


@pytest.mark.parametrize("request_", list(Request), ids=lambda r: r.name)
def test_a_size_that_lies_is_refused_at_the_header(request_: Request) -> None:
    """Nothing is waited for that would not be taken."""
    kind = SPECS[request_].payload
    right = len(SAMPLES[kind].pack())
    fixed = set() if kind is DeviceConfig else {right + 1, right - 1}
    for size in (fixed | {kind.WIRE.size - 1, 4097, 0xFFFFFFFF}) - {-1}:
        assert broken_rule(head(request_, size=size)) == Rule.BAD_SIZE


def test_an_unknown_request_is_passed_on_with_a_bounded_payload() -> None:
    with decode_one(head(45, size=3) + b"abc", some_fds(2)) as message:
        assert message.spec is None
        assert message.payload == Opaque(b"abc")
    assert broken_rule(head(45, size=4097)) == Rule.BAD_SIZE


@pytest.mark.parametrize("request_", list(Request), ids=lambda r: r.name)
def test_descriptors_are_counted(request_: Request) -> None:
    payload = SAMPLES[SPECS[request_].payload]
    data = encode(request_, payload)
    right = fds_for(request_)
    allowed = {0, 1} if request_ == Request.REM_MEM_REG else {right}
    for count in set(range(MAX_FDS + 2)) - allowed:
        assert broken_rule(data, count) == Rule.BAD_FD_COUNT


def test_nofd_and_a_descriptor_exclude_each_other() -> None:
    nofd = encode(Request.SET_VRING_KICK, VringFd(VringFd.NOFD))
    assert decode_one(nofd).fds == []
    assert broken_rule(nofd, 1) == Rule.BAD_FD_COUNT
    assert broken_rule(encode(Request.SET_VRING_KICK, VringFd(0))) == Rule.BAD_FD_COUNT


@pytest.mark.parametrize("value", [0x200, 0x10000, 0xFFFF0000, 1 << 63])
def test_a_ring_number_is_not_cut_to_a_byte(value: int) -> None:
    assert broken_rule(encode(Request.SET_VRING_CALL, U64(value)), 1) == Rule.BAD_PAYLOAD


@pytest.mark.parametrize("count", [0, 1, 3, 9, 0xFFFFFFFF])
def test_a_memory_table_must_bring_what_it_counts(count: int) -> None:
    body = pack("=II", count, 0) + REGION.pack() * 2
    assert broken_rule(head(Request.SET_MEM_TABLE, size=len(body)) + body, 2) == Rule.BAD_PAYLOAD


@pytest.mark.parametrize("regions", [0, 9])
def test_a_memory_table_has_one_to_eight_regions(regions: int) -> None:
    assert broken_rule(head(Request.SET_MEM_TABLE, size=8 + 32 * regions)) == Rule.BAD_SIZE


def test_descriptors_stay_with_the_message_they_were_sent_with() -> None:
    """Two messages are in the socket, the first without a descriptor, before the reader looks."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b, Decoder() as decoder:
        fds = some_fds(1)
        send_message(a, encode(Request.SET_OWNER))
        send_message(a, encode(Request.SET_VRING_CALL, VringFd(1)), fds)
        send_message(a, encode(Request.SET_OWNER))
        a.close()
        os.close(fds[0])
        got: list[Message] = []
        while (messages := receive(b, decoder)) is not None:
            got += messages
        assert [len(m.fds) for m in got] == [0, 1, 0]
        for message in got:
            message.close()


def test_descriptors_with_the_payload_belong_to_the_message() -> None:
    """Some front-ends send header and payload apart."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b, Decoder() as decoder:
        data = encode(Request.SET_VRING_CALL, VringFd(1))
        fds = some_fds(1)
        send_message(a, data[:12])
        send_message(a, data[12:], fds)
        os.close(fds[0])
        assert receive(b, decoder) == []
        (message,) = receive(b, decoder) or []
        assert len(message.fds) == 1
        message.close()


def test_received_descriptors_are_not_inherited_by_programs() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b, Decoder() as decoder:
        fds = some_fds(1)
        send_message(a, encode(Request.SET_VRING_CALL, VringFd(1)), fds)
        os.close(fds[0])
        receive(b, decoder)
        with (receive(b, decoder) or [])[0] as message:
            assert not os.get_inheritable(message.fds[0])


@pytest.mark.parametrize("count", [9, 64, 253])
def test_more_descriptors_than_the_protocol_has_are_refused(count: int) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b, Decoder() as decoder:
        fds = some_fds(count)
        send_message(a, encode(Request.SET_VRING_CALL, VringFd(1)), fds)
        for fd in fds:
            os.close(fd)
        with pytest.raises(RuleError) as caught:
            receive(b, decoder)
        assert caught.value.rule == Rule.BAD_FD_COUNT


def test_descriptors_that_this_process_has_no_number_for_are_missed() -> None:
    """A message is refused whole, and those that did come are closed."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b, Decoder() as decoder:
        fds = some_fds(8)
        send_message(a, encode(Request.SET_VRING_CALL, VringFd(1)), fds)
        for fd in fds:
            os.close(fd)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fds[4], hard))
        try:
            with pytest.raises(RuleError) as caught:
                receive(b, decoder)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.rule == Rule.TRUNCATED_FDS


def test_an_incomplete_message_gives_its_descriptors_back() -> None:
    decoder = Decoder()
    decoder.feed(encode(Request.SET_VRING_CALL, VringFd(1))[:13], some_fds(1))
    assert decoder.mid_message
    decoder.close()


def test_a_message_closes_what_nobody_took() -> None:
    message = decode_one(encode(Request.SET_VRING_CALL, VringFd(1)), some_fds(1))
    taken = message.take_fd()
    assert taken is not None
    message.close()
    message.close()
    os.close(taken)  # raises if the message had closed it


def test_a_fault_closes_the_descriptors_of_messages_that_came_with_it() -> None:
    good = encode(Request.SET_VRING_CALL, VringFd(1))
    assert broken_rule(good + head(Request.SET_OWNER, flags=0), 1) == Rule.BAD_VERSION


HEADS = st.builds(
    head,
    st.sampled_from([*Request, 0, 45, 0xFFFFFFFF]),
    st.sampled_from([1, 9, 0, 5, 0x11]),
    st.sampled_from([0, 4, 8, 16, 40, 72, 4096, 0xFFFFFFFF]),
)
CHUNKS = st.lists(st.tuples(st.one_of(st.binary(max_size=80), HEADS), st.integers(0, 10)), max_size=12)


@given(CHUNKS, st.booleans())
def test_no_bytes_and_descriptors_do_more_than_break_a_rule(
    chunks: list[tuple[bytes, int]], replies: bool
) -> None:
    """Whatever comes in, it returns messages or raises RuleError, and each descriptor is closed once."""
    before = open_things()
    with Decoder(replies=replies) as decoder:
        try:
            for data, count in chunks:
                assert decoder.want > 0
                for message in decoder.feed(data, some_fds(count)):
                    message.close()
        except RuleError:
            assert not decoder._fds
    until_open(before)


VALID = st.sampled_from([(encode(r, SAMPLES[SPECS[r].payload]), fds_for(r)) for r in Request])


@given(st.lists(VALID, min_size=1, max_size=8), st.integers(0), st.binary(max_size=4))
def test_a_flipped_byte_does_no_more_than_break_a_rule(
    messages: list[tuple[bytes, int]], where: int, noise: bytes
) -> None:
    before = open_things()
    with Decoder() as decoder:
        try:
            for data, count in messages:
                at = where % len(data)
                for message in decoder.feed(data[:at] + noise + data[at + len(noise) :], some_fds(count)):
                    message.close()
        except RuleError:
            pass
    until_open(before)
