# SPDX-License-Identifier: BSD-2-Clause
"""The messages that do not move packets: negotiation, state, acknowledgements, the life of a connection."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

import pytest

from support.host import Host
from support.leaks import until_open
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, OFFLOADS, PLAIN, USUAL, FrontEnd
from vpt.dataplane import vhost_max_mem_regions
from vpt.errors import ExistsError
from vpt.vhost_user import (
    U64,
    DeviceStatus,
    ProtocolFeature,
    Request,
    VirtioFeature,
    VringState,
)

F = VirtioFeature
Connect = Callable[..., FrontEnd]


def test_what_is_offered(host: Host, connect: Connect) -> None:
    """All that the data plane implements, and what a front-end needs to see to handle the rest by itself."""
    fe = connect(host.vhost("a", pairs=2))
    fe.negotiate()
    for bit in [*USUAL, *OFFLOADS, F.MTU, F.MQ, F.CTRL_VQ, F.STATUS]:
        assert fe.offered & bit, bit
    assert fe.protocol == ALL_PROTOCOL
    assert fe.ask_u64(Request.GET_QUEUE_NUM) == 2
    assert fe.ask_u64(Request.GET_MAX_MEM_SLOTS) == vhost_max_mem_regions() >= 509


def test_qemus_order_works(host: Host, connect: Connect) -> None:
    """QEMU negotiates, counts queues and enables rings before it says SET_OWNER or SET_FEATURES."""
    fe = connect(host.vhost("a"))
    fe.ask_u64(Request.GET_FEATURES)
    protocol = fe.ask_u64(Request.GET_PROTOCOL_FEATURES)
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(protocol))
    fe.ask_u64(Request.GET_QUEUE_NUM)
    fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    fe.send(Request.SET_OWNER)
    assert fe.try_(Request.SET_VRING_ENABLE, VringState(0, 1)) == 0
    assert fe.try_(Request.SET_FEATURES, U64(int(USUAL))) == 0


def test_features_may_be_repeated_while_rings_run(host: Host, connect: Connect) -> None:
    """QEMU does so for each further pair; other features then are a fault."""
    fe = connect(host.vhost("a")).start()
    assert fe.try_(Request.SET_FEATURES, U64(fe.features)) == 0
    assert fe.try_(Request.SET_FEATURES, U64(int(PLAIN))) != 0


@pytest.mark.parametrize("need_reply", [True, False], ids=["asked", "not asked"])
def test_acknowledgement_only_where_asked(host: Host, connect: Connect, need_reply: bool) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    fe.send(Request.SET_OWNER, need_reply=need_reply)
    fe.send(Request.GET_FEATURES)
    replies = [fe.reply().request for _ in range(1 + need_reply)]
    assert replies == ([Request.SET_OWNER] if need_reply else []) + [Request.GET_FEATURES]


def test_need_reply_means_nothing_before_reply_ack(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate(int(ALL_PROTOCOL & ~ProtocolFeature.REPLY_ACK))
    fe.send(Request.SET_OWNER, need_reply=True)
    fe.send(Request.GET_FEATURES, need_reply=True)
    assert fe.reply().request == Request.GET_FEATURES


def test_status_is_kept_and_zero_resets(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    ok = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.DRIVER_OK
    fe.do(Request.SET_STATUS, U64(int(ok)))
    assert fe.ask_u64(Request.GET_STATUS) == ok
    assert port.state().up
    fe.do(Request.SET_STATUS, U64(0))
    assert fe.ask_u64(Request.GET_STATUS) == 0
    assert not port.state().up


@pytest.mark.parametrize(
    ("mtu", "taken"),
    [(0, False), (67, False), (68, True), (1500, True), (1501, False), (9000, False), (65536, False)],
)
def test_mtu_is_limited_to_the_ports(host: Host, connect: Connect, mtu: int, taken: bool) -> None:
    fe = connect(host.vhost("a", mtu=1500))
    fe.negotiate()
    assert (fe.try_(Request.NET_SET_MTU, U64(mtu)) == 0) == taken


@pytest.mark.parametrize("how", ["device", "status"])
def test_reset_then_start_over_on_the_same_connection(host: Host, connect: Connect, how: str) -> None:
    """Memory survives a reset: QEMU sends only what has changed in it since the connection began."""
    a, b = host.vhost("a"), host.vhost("b")
    one, two = connect(a).start(), connect(b).start()
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(two.receive()[0].frame) == 1
    if how == "device":
        two.do(Request.RESET_DEVICE)
    else:
        two.do(Request.SET_STATUS, U64(0))
    assert not b.state().up
    two.restart()
    two.fill()
    one.transmit(frame(MAC_B, MAC_A, 2))
    assert number(two.receive()[0].frame) == 2


def test_reset_owner_is_tolerated(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    assert fe.try_(Request.RESET_OWNER) == 0
    assert port.state().up


def test_base_of_a_ring_that_never_ran_is_the_one_set(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    assert fe.stop_ring(0) == 0
    fe.do(Request.SET_VRING_BASE, VringState(0, 65535))
    assert fe.stop_ring(0) == 65535


def test_a_stopped_ring_goes_on_where_it_was(host: Host, connect: Connect) -> None:
    a, b = host.vhost("a"), host.vhost("b")
    one, two = connect(a, num=16).start(), connect(b).start()
    for n in range(20):
        one.transmit(frame(MAC_B, MAC_A, n))
    two.receive(20)
    base = one.stop_ring(1)
    assert base == 20
    one.start_ring(1, base=base)
    one.transmit(frame(MAC_B, MAC_A, 99))
    assert number(two.receive()[0].frame) == 99


def test_a_connection_that_ends_leaves_room_for_the_next(host: Host, connect: Connect) -> None:
    port, peer = host.vhost("a"), host.vhost("b")
    two = connect(peer).start()
    for n in range(3):
        with FrontEnd(port.path) as one:
            one.start()
            one.transmit(frame(MAC_B, MAC_A, n))
            assert number(two.receive()[0].frame) == n
        port.until_left()
        assert not port.state().up
    assert port.faults["disconnects"] == 3
    assert "protocol_errors" not in port.faults


def test_a_driver_that_comes_back_with_its_rings_goes_on_from_used(host: Host, connect: Connect) -> None:
    """After a lost connection QEMU takes the used index as the base, and the rings are where they were."""
    a, b = host.vhost("a"), host.vhost("b")
    one, two = connect(a).start(), connect(b).start()
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    two.receive(10)
    two.disconnect()
    b.until_left()
    again = connect(b, memory=two.memory)
    again.pairs, two.pairs = two.pairs, []
    again.negotiate()
    again.share_memory()
    for index, queue in enumerate(again.queues()):
        again.start_ring(index, base=queue.used_idx)
        again.enable_ring(index)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert [number(r.frame) for r in again.receive()] == [10]


def test_many_connections_leave_nothing_behind(host: Host) -> None:
    port = host.vhost("a")

    def once() -> None:
        with FrontEnd(port.path, num=16, buffer_size=256) as fe:
            fe.start()
        port.until_left()

    once()
    before = host.open_things()
    for _ in range(50):
        once()
    until_open(before)


def test_a_second_front_end_is_turned_away(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    first = connect(port).start()
    assert connect(port).closed_by_peer()
    assert port.faults["second_clients"] == 1
    assert first.ask_u64(Request.GET_FEATURES)
    assert port.state().up


def test_describe_says_who_is_there(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    assert port.peer is None
    connect(port).start()
    assert port.peer is not None
    assert port.peer.pid == os.getpid()
    seen = port.describe
    assert "VERSION_1" in seen["session"]["features"]
    assert "REPLY_ACK" in seen["session"]["protocol_features"]
    assert [ring["running"] for ring in seen["session"]["rings"]] == [True, True]


def test_the_socket_has_its_mode_and_goes_with_the_port(host: Host) -> None:
    port = host.vhost("a")
    assert stat.S_IMODE(port.path.stat().st_mode) == 0o660
    host.remove(port)
    assert not port.path.exists()


def test_a_dead_daemons_socket_is_replaced(host: Host) -> None:
    first = host.vhost("a")
    with socket.socket(socket.AF_UNIX) as other:
        path = first.path.parent / "b.sock"
        other.bind(str(path))
        other.listen()
        with pytest.raises(ExistsError, match="another program listens"):
            host.vhost("b")
    host.vhost("b")


def test_what_is_no_socket_is_left_alone(host: Host) -> None:
    file = host.vhost("a").path.parent / "b.sock"
    file.write_text("precious")
    with pytest.raises(ExistsError):
        host.vhost("b")
    assert file.read_text() == "precious"


def test_a_socket_that_somebody_replaced_is_not_removed(host: Host) -> None:
    port = host.vhost("a")
    port.path.unlink()
    port.path.write_text("another's")
    host.remove(port)
    assert port.path.exists()
