# SPDX-License-Identifier: BSD-2-Clause
"""Pages for kicks (host notifiers): who is given one, when it is taken back, and what a ring depends on."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from support.host import Host, VhostPort
from support.leaks import until_open
from support.waiting import until
from vpt.conform.back_channel import BackChannel
from vpt.conform.frames import MAC_A, MAC_B, frame
from vpt.conform.front_end import ALL_PROTOCOL, FrontEnd
from vpt.dataplane import Policy
from vpt.vhost_user import U64, BackendRequest, Message, ProtocolFeature, Request, VringArea

P = ProtocolFeature
PAGES = P.HOST_NOTIFIER | P.BACKEND_SEND_FD
WITH_PAGES = int(ALL_PROTOCOL | PAGES)
Connect = Callable[..., FrontEnd]
RX, TX = 0, 1


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as s:
        yield s


@pytest.fixture
def port(host: Host) -> VhostPort:
    return host.vhost("a", policy=Policy.poll(), calm_s=0)


def begin(fe: FrontEnd, stack: ExitStack, protocol: int = WITH_PAGES) -> BackChannel:
    """All but the start of rings, with a channel."""
    fe.negotiate(protocol)
    back = stack.enter_context(BackChannel(fe))
    fe.share_memory()
    fe.make_queues()
    return back


def start(fe: FrontEnd) -> None:
    for index in (RX, TX):
        fe.enable_ring(index)
        fe.start_ring(index)


def area(message: Message) -> VringArea:
    assert message.request == BackendRequest.VRING_HOST_NOTIFIER_MSG
    assert isinstance(message.payload, VringArea)
    return message.payload


def given(back: BackChannel, answer: int | None = 0) -> tuple[int, Message]:
    """The next request, which gives a ring its page."""
    message = back.take(answer=answer)
    assert not area(message).nofd
    return area(message).index, message


def with_pages(fe: FrontEnd, stack: ExitStack) -> BackChannel:
    """Both rings at work, each with its page."""
    back = begin(fe, stack)
    start(fe)
    assert [given(back)[0] for _ in range(2)] == [RX, TX]
    return back


def taken(back: BackChannel, answer: int | None = 0) -> tuple[int, Message]:
    """The next request, which takes one back."""
    message = back.take(answer=answer)
    assert area(message).nofd
    assert not message.fds
    return area(message).index, message


def to_page(port: VhostPort) -> list[int]:
    """Rings that may have theirs."""
    session = port.describe["session"]
    return [ring["index"] for ring in session["rings"] if ring["kicks_to_page"]]


def test_a_port_that_polls_gives_each_ring_a_page(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    fe = connect(port)
    back = begin(fe, stack)
    assert not back.waiting()  # no ring runs
    start(fe)
    for index in (RX, TX):
        found, message = given(back)
        with message:
            assert found == index
            assert (area(message).size, area(message).offset) == (mmap.PAGESIZE, 0)
            assert os.fstat(message.fds[0]).st_size == mmap.PAGESIZE
            with mmap.mmap(message.fds[0], mmap.PAGESIZE) as page:
                page[:2] = b"\1\0"  # what a driver does
    fe.ask(Request.GET_FEATURES)
    assert to_page(port) == [RX, TX]


def test_the_page_can_be_neither_cut_nor_grown(port: VhostPort, connect: Connect, stack: ExitStack) -> None:
    """The front-end holds a descriptor of memory that is ours."""
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    _, message = given(back)
    with message:
        seals = fcntl.fcntl(message.fds[0], fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, 2 * mmap.PAGESIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(message.fds[0], size)


@pytest.mark.parametrize(
    "policy", [Policy.notify(), Policy.adaptive(20), Policy.sleep(50)], ids=lambda p: p.kind.label
)
def test_a_port_that_sleeps_offers_none(host: Host, connect: Connect, policy: Policy) -> None:
    fe = connect(host.vhost("s", policy=policy))
    fe.negotiate(WITH_PAGES)
    assert not fe.protocol & PAGES


@pytest.mark.parametrize("missing", [P.HOST_NOTIFIER, P.BACKEND_SEND_FD, P.REPLY_ACK], ids=lambda p: p.name)
def test_nothing_is_given_without_what_it_takes(
    port: VhostPort, connect: Connect, stack: ExitStack, missing: ProtocolFeature
) -> None:
    fe = connect(port)
    back = begin(fe, stack, WITH_PAGES & ~int(missing))
    start(fe)
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == []


@pytest.mark.parametrize("given_up", [P.HOST_NOTIFIER, P.BACKEND_SEND_FD], ids=lambda p: p.name)
def test_nothing_is_asked_that_was_negotiated_away(
    port: VhostPort, connect: Connect, stack: ExitStack, given_up: ProtocolFeature
) -> None:
    """Not even what was due: the other ring's page, and the one that the policy takes back."""
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    found, unanswered = given(back, answer=None)
    fe.do(Request.SET_PROTOCOL_FEATURES, U64(WITH_PAGES & ~int(given_up)))
    back.answer(unanswered)
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    port.set_policy(Policy.notify())
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == [found], "it may still kick there"


def test_nothing_is_asked_on_a_channel_without_answers(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    """Made before REPLY_ACK was negotiated: whether a page was taken would never be known."""
    fe = connect(port)
    back = begin(fe, stack, WITH_PAGES & ~int(P.REPLY_ACK))
    fe.do(Request.SET_PROTOCOL_FEATURES, U64(WITH_PAGES))
    fe.protocol = WITH_PAGES
    start(fe)
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == []
    second = stack.enter_context(BackChannel(fe))
    assert [given(second)[0] for _ in range(2)] == [RX, TX]


def test_a_policy_that_sleeps_takes_them_back_and_polling_gives_them_again(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    for _ in range(3):
        for index in (RX, TX):
            assert given(back)[0] == index
        fe.ask(Request.GET_FEATURES)
        port.set_policy(Policy.notify())
        for index in (RX, TX):
            assert taken(back)[0] == index
        until(lambda: to_page(port) == [], "no ring's kicks to go to a page")
        port.set_policy(Policy.poll())


def test_no_sleeping_worker_depends_on_a_kick_that_may_go_to_a_page(
    port: VhostPort, host: Host, connect: Connect, stack: ExitStack
) -> None:
    """The front-end never says that it has taken the page away: packets without any kick are found all the
    same, and when it has said so at last, kicks are asked for and what is kicked is found."""
    fe, other = connect(port), connect(host.vhost("b")).start()
    back = begin(fe, stack)
    start(fe)
    given(back)
    given(back)
    fe.ask(Request.GET_FEATURES)
    port.set_policy(Policy.notify())
    _, unanswered = taken(back, answer=None)
    tx = fe.pairs[0].tx
    for n in range(20):
        fe.queue_frame(frame(MAC_B, MAC_A, n))
        tx.publish()  # and no kick
        fe.flush()
        assert other.receive()
    assert to_page(port) == [RX, TX]
    back.answer(unanswered)
    taken(back)
    until(lambda: to_page(port) == [], "no ring's kicks to go to a page")
    before = port.counters["kicks"]
    for n in range(20):
        fe.transmit(frame(MAC_B, MAC_A, n))
        assert other.receive()
    assert port.counters["kicks"] > before
    assert host.stats.read().workers[0].counters["late_wakes"] == 0


def test_a_ring_that_starts_again_is_given_its_page_again(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    """QEMU takes it away at GET_VRING_BASE."""
    fe = connect(port)
    back = with_pages(fe, stack)
    for _ in range(3):
        fe.start_ring(TX, base=fe.stop_ring(TX))
        assert given(back)[0] == TX


def test_a_ring_that_was_stopped_under_polling_and_starts_under_another_policy_gives_its_page_back(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    """Nothing says that a front-end takes it away when a ring stops."""
    fe = connect(port)
    back = with_pages(fe, stack)
    fe.ask(Request.GET_FEATURES)
    base = fe.stop_ring(TX)
    port.set_policy(Policy.notify())
    assert taken(back)[0] == RX
    assert not back.waiting()
    fe.start_ring(TX, base=base)
    assert taken(back)[0] == TX


def test_another_channel_is_told_all_again(port: VhostPort, connect: Connect, stack: ExitStack) -> None:
    fe = connect(port)
    begin(fe, stack)
    start(fe)
    second = stack.enter_context(BackChannel(fe))
    assert [given(second)[0] for _ in range(2)] == [RX, TX]


# ---- front-ends that have no place for it, or do not answer ----


def test_who_refuses_one_is_not_asked_again(
    port: VhostPort, host: Host, connect: Connect, stack: ExitStack
) -> None:
    """QEMU without page-per-vq refuses, and asked again it would write to memory that it has freed."""
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    assert given(back, answer=1)[0] == RX
    until(lambda: port.faults.get("pages_refused") == 1, "the refusal to be counted")
    fe.start_ring(TX, base=fe.stop_ring(TX))
    port.set_policy(Policy.notify())
    port.set_policy(Policy.poll())
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == []
    other = connect(host.vhost("b")).start()
    fe.transmit(frame(MAC_B, MAC_A))
    assert other.receive()
    fe.disconnect()
    port.until_left()
    again = connect(port)
    again.negotiate(WITH_PAGES)
    assert not again.protocol & PAGES


def test_a_refusal_is_remembered_beyond_the_life_of_vptd(
    host: Host, connect: Connect, stack: ExitStack
) -> None:
    port = host.vhost("a", policy=Policy.poll(), calm_s=0, remember=True)
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    given(back, answer=1)
    until(lambda: port.faults.get("pages_refused") == 1, "the refusal to be counted")
    host.remove(port)
    again = connect(host.vhost("a", policy=Policy.poll(), calm_s=0, remember=True))
    again.negotiate(WITH_PAGES)
    assert not again.protocol & PAGES


def test_who_does_not_answer_is_sent_one_request(host: Host, connect: Connect, stack: ExitStack) -> None:
    """Whatever happens meanwhile, a front-end that does not read holds one descriptor of ours."""
    port = host.vhost("many", pairs=4, policy=Policy.poll(), calm_s=0)
    fe = connect(port, pairs=4, num=16)
    back = begin(fe, stack)
    before = host.open_things()["/memfd:vpt-kicks (deleted)"]
    for index in range(8):
        fe.enable_ring(index)
        fe.start_ring(index)
    for n in range(50):
        port.set_policy(Policy.poll() if n % 2 else Policy.notify())
    more = host.open_things()["/memfd:vpt-kicks (deleted)"] - before
    assert more <= 3  # ours, on its way, and what we took
    _, first = given(back, answer=None)
    assert not back.waiting()
    for _ in range(10):
        fe.start_ring(TX, base=fe.stop_ring(TX))
    assert not back.waiting()
    back.answer(first)
    given(back)
    first.close()


def test_who_will_not_give_it_back_is_asked_once(port: VhostPort, connect: Connect, stack: ExitStack) -> None:
    fe = connect(port)
    back = with_pages(fe, stack)
    fe.ask(Request.GET_FEATURES)
    port.set_policy(Policy.notify())
    taken(back, answer=1)
    taken(back, answer=1)
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == [RX, TX]
    fe.transmit(frame(MAC_B, MAC_A))


def test_a_channel_that_ends_leaves_a_page_where_it_may_be(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    fe = connect(port)
    back = with_pages(fe, stack)
    fe.ask(Request.GET_FEATURES)
    back.close()
    port.set_policy(Policy.notify())
    assert to_page(port) == [RX, TX]
    fe.queue_frame(frame(MAC_B, MAC_A))
    fe.pairs[0].tx.publish()
    fe.flush()
    assert "pages_refused" not in port.faults


def test_nothing_is_left_of_it_when_the_connection_ends(
    port: VhostPort, connect: Connect, stack: ExitStack
) -> None:
    with FrontEnd(port.path) as probe:
        probe.start()
    port.until_left()
    before = port.host.open_things()
    for _ in range(5):
        with FrontEnd(port.path) as fe, ExitStack() as here:
            back = begin(fe, here)
            start(fe)
            given(back)[1].close()
            given(back, answer=None)[1].close()
        port.until_left()
    until_open(before)


def test_a_page_is_given_when_all_is_calm(host: Host, connect: Connect, stack: ExitStack) -> None:
    """QEMU aborts when it loses the next one before the last is unmapped, which it does in the background."""
    port = host.vhost("a", policy=Policy.poll(), calm_s=1000)
    fe = connect(port)
    back = begin(fe, stack)
    start(fe)
    for _ in range(5):
        port.set_policy(Policy.notify())
        port.set_policy(Policy.poll())
    fe.ask(Request.GET_FEATURES)
    assert not back.waiting()
    assert to_page(port) == []
