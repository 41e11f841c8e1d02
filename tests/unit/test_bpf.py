# SPDX-License-Identifier: BSD-2-Clause
"""The filter machine decides as libpcap's own, and no program makes it do more than end."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.capture import compile_filter
from vpt.capture._filter import _Insn, _libpcap
from vpt.dataplane import BpfInsn, bpf_matches
from vpt.errors import DataplaneError, UsageError

pytestmark = pytest.mark.needs("/usr/lib/*/libpcap.so.0.8")

EXPRESSIONS = (
    "arp",
    "ip",
    "ip6",
    "tcp",
    "udp port 53",
    "tcp portrange 1000-2000",
    "host 10.0.0.1",
    "net 10.0.0.0/8 and not icmp",
    "ether host 52:54:00:00:00:01",
    "ether broadcast or ether multicast",
    "vlan 5 and udp",
    "less 100",
    "greater 1000",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "ip[2:2] > 576 and ip[8] * 2 / 3 % 7 = 1",
    "ether[12:2] = 0x88b5 and ether[20] ^ 3 << 2 != 0x10",
    "len - 14 >= ip[2:2]",
)
HEADERS = (
    b"\xff" * 6 + bytes.fromhex("525400000001 0806") + bytes(28),
    bytes.fromhex("525400000001 525400000002 0800 4500003c 00000000 40060000 0a000001 0a000002 03e80050"),
    bytes.fromhex(
        "525400000001 525400000002 0800 46000040 00000000 40110000 0a000001 0b000002 00000000 00350035"
    ),
    bytes.fromhex("333300000001 525400000002 86dd 60000000 00140640")
    + bytes(32)
    + bytes.fromhex("04d2 0050"),
    bytes.fromhex("525400000001 525400000002 8100 0005 0800 4500003c 00000000 40110000 0a000001 0a000002"),
)


def by_libpcap(program: list[BpfInsn], data: bytes, length: int) -> bool:
    insns = (_Insn * len(program))(*program)
    run = _libpcap().bpf_filter
    run.restype = ctypes.c_uint
    return run(insns, data, ctypes.c_uint(length), ctypes.c_uint(len(data))) != 0


frames = st.builds(
    lambda head, tail, cut: (head + tail)[: len(head + tail) - cut],
    st.sampled_from(HEADERS),
    st.binary(max_size=80),
    st.integers(0, 60),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXPRESSIONS), frames, st.integers(0, 2000))
def test_a_filter_decides_as_libpcap_does(expression: str, frame: bytes, more: int) -> None:
    program = compile_filter(expression)
    length = len(frame) + more
    assert bpf_matches(program, frame, length) == by_libpcap(program, frame, length)


instruction = st.tuples(
    st.sampled_from([*range(0x100), 0x1234]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.sampled_from([0, 1, 2, 5, 15, 31, 2**32 - 1]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(instruction, max_size=12), st.binary(max_size=64))
def test_any_program_is_refused_or_ends(program: list[BpfInsn], data: bytes) -> None:
    try:
        matches = bpf_matches([*program, (0x06, 0, 0, 1)], data)
    except DataplaneError:
        return
    assert matches in (True, False)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param([(0x00, 0, 0, 0)], id="does not end"),
        pytest.param([(0x05, 0, 0, 1), (0x06, 0, 0, 0)], id="jumps beyond the end"),
        pytest.param([(0x05, 0, 0, 2**32 - 1), (0x06, 0, 0, 0)], id="jumps back, by wrapping"),
        pytest.param([(0x15, 0, 1, 0), (0x06, 0, 0, 0)], id="jumps beyond the end if false"),
        pytest.param([(0x60, 0, 0, 16), (0x06, 0, 0, 0)], id="reads memory beyond the sixteen words"),
        pytest.param([(0x02, 0, 0, 16), (0x06, 0, 0, 0)], id="writes memory beyond the sixteen words"),
        pytest.param([(0x34, 0, 0, 0), (0x06, 0, 0, 0)], id="divides by zero"),
        pytest.param([(0xFFFF, 0, 0, 0), (0x06, 0, 0, 0)], id="unknown instruction"),
        pytest.param([], id="is empty"),
    ],
)
def test_a_program_that_may_not_be_run_is_refused(program: list[BpfInsn]) -> None:
    with pytest.raises(DataplaneError):
        bpf_matches(program, bytes(64))


def test_an_expression_that_libpcap_does_not_know_is_the_users_error() -> None:
    with pytest.raises(UsageError, match="port eighty"):
        compile_filter("tcp port eighty")


def test_an_expression_that_needs_a_loop_is_refused_before_vptd_has_to() -> None:
    with pytest.raises(UsageError, match="loop"):
        compile_filter("ip6 protochain 6")


@pytest.mark.parametrize("expression", ["inbound", "not outbound", "ether proto 0x0800 and inbound"])
def test_what_only_a_socket_knows_of_a_packet_is_refused_with_the_option_that_knows(expression: str) -> None:
    """Else nothing would match, whether negated or not: the offset is beyond any packet."""
    with pytest.raises(UsageError, match="not in the packet") as caught:
        compile_filter(expression)
    assert "--direction" in str(caught.value.hint)


def test_an_expression_that_is_no_text_is_the_users_error() -> None:
    with pytest.raises(UsageError, match="syntax error"):
        compile_filter(b"tcp\xff".decode(errors="surrogateescape"))


def test_an_expression_that_libpcap_would_take_minutes_for_is_refused() -> None:
    with pytest.raises(UsageError, match="at most"):
        compile_filter(" or ".join(f"host 10.0.0.{i % 250}" for i in range(1000)))


def test_no_expression_is_no_program() -> None:
    assert compile_filter("  ") == []
