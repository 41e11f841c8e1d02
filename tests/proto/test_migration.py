# SPDX-License-Identifier: BSD-2-Clause
"""A guest that arrives: its address moves to the new port, and what the old port knew comes along."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from support.host import Host
from support.leaks import until_open
from support.scene import MAX_LOG_LINES, logged
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, MAC_C, frame, number
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.daemon.transports.vhost.device_state import MAX_MACS, MAX_STATE
from vpt.dataplane import Rules
from vpt.vhost_user import U64, DeviceStateFd, Request, VirtioFeature, VringState

Connect = Callable[..., FrontEnd]
SAVE, LOAD = DeviceStateFd.SAVE, DeviceStateFd.LOAD


def mac64(mac: bytes) -> U64:
    return U64(int.from_bytes(mac, "little"))


def where(host: Host, mac: bytes) -> int | None:
    """Id of the port where the switch has that address."""
    macs = host.call(host.switch.macs)
    return next((entry.port_id for entry in macs if entry.mac == mac.hex(":")), None)


def test_send_rarp_moves_the_address_and_tells_everybody(host: Host, connect: Connect) -> None:
    """Source, destination and a third, who has to hear of it to send there."""
    source, target, other = (host.vhost(name) for name in "abc")
    old, new, third = connect(source).start(), connect(target).start(), connect(other).start()
    old.transmit(frame(MAC_C, MAC_A))
    assert where(host, MAC_A) == source.port.id
    third.receive()
    new.poll()
    new.do(Request.SEND_RARP, mac64(MAC_A))
    assert where(host, MAC_A) == target.port.id
    heard = third.receive()[0].frame
    assert (heard[:6], heard[6:12], heard[12:14], len(heard)) == (BROADCAST, MAC_A, b"\x80\x35", 60)
    assert heard[14:22] == bytes.fromhex("0001080006040003")
    assert heard[22:28] == heard[32:38] == MAC_A
    third.transmit(frame(MAC_A, MAC_C, 7))
    assert number(new.receive()[0].frame) == 7
    assert new.poll() == [], "not to the one who sent it"


@pytest.mark.parametrize(
    "mac", [bytes(6), BROADCAST, b"\1\0\x5e\0\0\1"], ids=["zero", "broadcast", "multicast"]
)
def test_send_rarp_of_no_guests_address_is_refused(host: Host, connect: Connect, mac: bytes) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    assert fe.try_(Request.SEND_RARP, mac64(mac)) != 0
    assert port.faults["bad_value"] == 1


def test_send_rarp_of_another_ports_own_address_changes_nothing(host: Host, connect: Connect) -> None:
    owner, port = host.vhost("a", mac=MAC_B.hex(":")), host.vhost("b")
    fe = connect(port).start()
    fe.do(Request.SEND_RARP, mac64(MAC_B))
    assert where(host, MAC_B) == owner.port.id


def test_send_rarp_of_an_address_that_the_port_may_not_have_is_counted_and_said(
    host: Host, connect: Connect
) -> None:
    """It is no fault of the front-end's: QEMU sends it once, without waiting for an answer."""
    port, other = host.vhost("a", mac=MAC_B.hex(":")), host.vhost("b")
    port.set_rules(Rules(anti_spoofing=True))
    fe, neighbour = connect(port).start(), connect(other).start()
    with logged() as lines:
        for _ in range(30):
            fe.do(Request.SEND_RARP, mac64(MAC_A))
    assert port.counters["tx_drop_spoofed"] == port.faults["rarp_dropped"] == 30
    said = [line for line in lines if MAC_A.hex(":") in line]
    assert 1 <= len(said) <= MAX_LOG_LINES
    assert where(host, MAC_A) is None
    assert neighbour.poll() == []
    fe.do(Request.SEND_RARP, mac64(MAC_B))
    assert neighbour.receive()[0].frame[6:12] == MAC_B
    assert port.counters["tx_packets"] == 0, "what its peer sent"


def test_send_rarp_on_a_link_that_is_down_is_no_fault(host: Host, connect: Connect) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    host.call(lambda: port.port.set_link(False))
    assert fe.try_(Request.SEND_RARP, mac64(MAC_A)) == 0
    assert where(host, MAC_A) is None


# ---- device state ----


def transfer(fe: FrontEnd, direction: int, phase: int = 0) -> tuple[int, int | None]:
    """Ask for a channel; the reply's number and the descriptor that came with it."""
    pipe = os.pipe()
    fe.send(Request.SET_DEVICE_STATE_FD, DeviceStateFd(direction, phase), [pipe[0]])
    for fd in pipe:
        os.close(fd)
    with fe.reply() as reply:
        assert isinstance(reply.payload, U64)
        return reply.payload.value, reply.take_fd()


def suspended(fe: FrontEnd) -> FrontEnd:
    """With all rings stopped, as a device is whose state is taken or given."""
    for index in range(len(fe.queues())):
        fe.stop_ring(index)
    return fe


def save(fe: FrontEnd) -> bytes:
    value, fd = transfer(fe, SAVE)
    assert value == 0
    assert fd is not None
    with open(fd, "rb") as file:
        state = file.read()
    assert fe.ask_u64(Request.CHECK_DEVICE_STATE) == 0
    return state


def load(fe: FrontEnd, state: bytes) -> int:
    """The answer to CHECK_DEVICE_STATE."""
    value, fd = transfer(fe, LOAD)
    assert value == 0
    assert fd is not None
    with open(fd, "wb") as file:
        file.write(state)
    return fe.ask_u64(Request.CHECK_DEVICE_STATE)


def test_addresses_behind_a_guest_come_along(host: Host, connect: Connect) -> None:
    """A guest that bridges: all that was heard of it at the source is known at the destination."""
    source, target, other = (host.vhost(name) for name in "abc")
    old, new = connect(source).start(), connect(target).start()
    third = connect(other).start()
    behind = [bytes.fromhex(f"0200000000{n:02x}") for n in range(1, 40)]
    for mac in behind:
        old.transmit(frame(BROADCAST, mac))
    third.transmit(frame(BROADCAST, MAC_C))
    state = save(suspended(old))
    suspended(new)
    assert load(new, state) == 0
    assert {where(host, mac) for mac in behind} == {target.port.id}
    assert where(host, MAC_C) == other.port.id, "heard elsewhere"
    assert third.receive(len(behind))


def test_the_largest_state_that_is_saved_can_be_loaded(host: Host, connect: Connect) -> None:
    """The file that it is written to where it arrives does not grow."""
    source, target = (host.vhost(name, max_macs=MAX_MACS) for name in "ab")
    old, new = connect(source), connect(target)
    old.negotiate()
    new.negotiate()
    macs = [f"02:00:00:00:{n >> 8:02x}:{n & 0xFF:02x}" for n in range(MAX_MACS)]
    assert host.call(lambda: source.port.learn([(mac, 0) for mac in macs])) == MAX_MACS
    assert load(new, save(old)) == 0
    assert {e.mac for e in host.call(host.switch.macs) if e.port_id == target.port.id} == set(macs)


def test_the_state_is_versioned_json(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a")).start()
    fe.transmit(frame(BROADCAST, MAC_A))
    assert json.loads(save(suspended(fe))) == {
        "schema": "vpt.port-state/v1",
        "macs": [{"mac": MAC_A.hex(":"), "vlan": 0}],
    }


@pytest.mark.parametrize("direction", [SAVE, LOAD])
def test_the_device_must_be_suspended(host: Host, connect: Connect, direction: int) -> None:
    fe = connect(host.vhost("a")).start()
    assert transfer(fe, direction) == (1 | DeviceStateFd.NOFD, None)
    fe.stop_ring(0)
    assert transfer(fe, direction)[0] != 0, "one of them still runs"
    assert fe.ask_u64(Request.CHECK_DEVICE_STATE) != 0


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0, 1), (0xFFFFFFFF, 0)])
def test_directions_and_phases_that_do_not_exist_fail(
    host: Host, connect: Connect, direction: int, phase: int
) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    assert transfer(fe, direction, phase) == (1 | DeviceStateFd.NOFD, None)


BAD = {
    "nothing": b"",
    "no JSON": b"\xff\x00\x01",
    "cut": b'{"schema": "vpt.port-state/v1", "macs": ["52:54',
    "another version": b'{"schema": "vpt.port-state/v2", "macs": []}',
    "no version": b'{"macs": []}',
    "unknown key": b'{"schema": "vpt.port-state/v1", "macs": [], "more": 1}',
    "multicast": b'{"schema": "vpt.port-state/v1", "macs": [{"mac": "01:00:5e:00:00:01"}]}',
    "no address": b'{"schema": "vpt.port-state/v1", "macs": [{"mac": "../../etc"}]}',
    "no VLAN": b'{"schema": "vpt.port-state/v1", "macs": [{"mac": "02:00:00:00:00:01", "vlan": 4095}]}',
    "number": b'{"schema": "vpt.port-state/v1", "macs": [5]}',
    "deep": b"[" * 60000,
    "too many": json.dumps(
        {"schema": "vpt.port-state/v1", "macs": [{"mac": "02:00:00:00:00:01"}] * 2049}
    ).encode(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_state_that_is_none_is_refused_and_harms_nobody(host: Host, connect: Connect, name: str) -> None:
    port = host.vhost("a")
    fe = connect(port).start()
    suspended(fe)
    before = host.call(host.switch.mac_count)
    assert load(fe, BAD[name]) != 0
    assert host.call(host.switch.mac_count) == before
    assert fe.ask_u64(Request.GET_FEATURES)


def test_a_state_without_end_stops_its_writer(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    _, fd = transfer(fe, LOAD)
    assert fd is not None
    assert os.write(fd, bytes(2 * MAX_STATE)) == MAX_STATE
    with pytest.raises(PermissionError):
        os.write(fd, b"more")
    os.close(fd)
    assert fe.ask_u64(Request.CHECK_DEVICE_STATE) != 0


def test_a_loaded_address_respects_limits_and_other_ports_own(host: Host, connect: Connect) -> None:
    owner, port = host.vhost("a", mac=MAC_B.hex(":")), host.vhost("b", max_macs=2)
    fe = connect(port)
    fe.negotiate()
    macs = [{"mac": mac} for mac in [MAC_B.hex(":"), *(f"02:00:00:00:00:{n:02x}" for n in range(5))]]
    assert load(fe, json.dumps({"schema": "vpt.port-state/v1", "macs": macs}).encode()) == 0
    assert where(host, MAC_B) == owner.port.id
    assert sum(e.port_id == port.port.id for e in host.call(host.switch.macs)) == 2


def test_transfers_that_are_begun_and_left_leak_nothing(host: Host) -> None:
    port = host.vhost("a")

    def connection() -> None:
        with FrontEnd(port.path) as fe:
            fe.negotiate()
            for direction in (SAVE, LOAD) * 20:
                _, fd = transfer(fe, direction)
                assert fd is not None
                os.close(fd)
        port.until_left()

    connection()
    before = host.open_things()
    connection()
    until_open(before)


def test_check_without_a_transfer_fails(host: Host, connect: Connect) -> None:
    fe = connect(host.vhost("a"))
    fe.negotiate()
    assert fe.ask_u64(Request.CHECK_DEVICE_STATE) != 0


@pytest.mark.parametrize("layout", [0, int(VirtioFeature.RING_PACKED)], ids=["split", "packed"])
def test_rings_go_on_at_the_port_where_the_guest_arrives(host: Host, connect: Connect, layout: int) -> None:
    """In QEMU's order: enabled first, then memory region by region, then each ring, its call last."""
    source, target, other = (host.vhost(name) for name in "abc")
    old = connect(source, features=int(USUAL) | layout).start()
    third = connect(other).start()
    old.transmit(frame(MAC_C, MAC_A, 1))
    third.transmit(*(frame(MAC_A, MAC_C, n) for n in range(5)))
    old.receive(5)
    old.do(Request.SET_STATUS, U64(0))  # QEMU 7.2 sends it first
    bases = [old.stop_ring(index) for index in (0, 1)]
    assert 0 not in bases
    new = connect(target, features=int(USUAL) | layout, memory=old.memory)
    new.pairs, old.pairs = old.pairs, []
    new.negotiate()
    for index in (0, 1):
        new.enable_ring(index)
    new.do(Request.SET_FEATURES, U64(new.features))
    for region in new.memory.regions:
        assert new.add_region(region) == 0
    for index, queue in enumerate(new.queues()):
        new.do(Request.SET_VRING_NUM, VringState(index, queue.num))
        new.do(Request.SET_VRING_BASE, VringState(index, bases[index]))
        new.do(Request.SET_VRING_ADDR, queue.addresses(index))
        new.set_kick(index, queue.kick_fd)
        new.set_call(index, queue.call_fd)
    new.do(Request.SET_STATUS, U64(7))
    third.transmit(frame(BROADCAST, MAC_C, 7))
    assert number(new.receive()[0].frame) == 7
    new.transmit(frame(BROADCAST, MAC_A, 8))
    assert [number(r.frame) for r in third.receive(2)] == [1, 8]
    third.transmit(frame(MAC_A, MAC_C, 9))
    assert number(new.receive()[0].frame) == 9
