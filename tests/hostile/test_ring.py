# SPDX-License-Identifier: BSD-2-Clause
"""A peer that lies in its CSB, slots, header or doorbells: its port goes down, everything else goes on.

Each case: the port is taken down once, for the right reason, with its counter; the peer is told; another pair
of ports forwards before, during and after; and a peer that resets is served again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from support.apps import BROADCAST, AppPeer, ether, mac
from support.raw_ring import DRIVER_OK, FAILED, MOREFRAG, PEER_FEATURES, PEER_GENERATION, RESET, RawPeer
from support.waiting import until
from vpt.dataplane import Engine, EventType, Feature, Policy, Reason, StatsReader, vec_cfg

EVENT_IDX = int(Feature.EVENT_IDX)
VNET = int(Feature.VNET_HDR | Feature.EVENT_IDX)


class Scene:
    """A hostile peer and two honest applications on one switch, served by one worker."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.switch = engine.add_switch("sw")
        self.honest = [AppPeer(self.switch, name, policy=Policy.notify()) for name in ("good0", "good1")]
        self.port = AppPeer(self.switch, "evil", policy=Policy.notify())
        self.evil = RawPeer(self.port)
        for peer in self.honest:
            peer.connect(EVENT_IDX)
        self.stats = StatsReader(engine.stats_fd)

    def counters(self) -> dict[str, int]:
        return next(q.counters for q in self.stats.read().queues if q.port == "evil")

    def honest_traffic(self, packets: int = 50) -> None:
        """Every packet between the honest ones arrives, in order."""
        a, b = self.honest
        for i in range(packets):
            a.app.send(0, ether(mac(2), mac(1), i.to_bytes(4, "big")))
            assert self.next_from(b, mac(1))[14:18] == i.to_bytes(4, "big")
        b.app.send(0, ether(mac(1), mac(2)))
        self.next_from(a, mac(2))

    def next_from(self, peer: AppPeer, source: bytes) -> bytes:
        """What else is flooded may come in between."""
        while (got := peer.recv())[6:12] != source or got[:6] == BROADCAST:
            pass
        return got

    def breakdown(self) -> Reason:
        """The port's one BROKEN event."""
        events: list[Reason] = []

        def come() -> bool:
            for event in self.engine.events():
                if event.type is EventType.BROKEN and event.port_id == self.port.port.id:
                    events.append(event.reason)
            return bool(events)

        until(come, "the port to be taken down")
        self.evil.kick_tx(times=3)
        self.honest_traffic(5)
        assert not any(e.type is EventType.BROKEN for e in self.engine.events()), "reported twice"
        assert len(events) == 1
        return events[0]

    def close(self) -> None:
        self.stats.close()
        self.evil.close()
        self.port.close()
        for peer in self.honest:
            peer.close()


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    with Engine(workers=1) as engine:
        scene = Scene(engine)
        yield scene
        scene.close()


Attack = Callable[[RawPeer], None]


def publish(evil: RawPeer, upto: int) -> None:
    evil.tx[0].head = upto
    evil.kick_tx()


def head_beyond(value: int) -> Attack:
    return lambda evil: publish(evil, value)


def rx_head_beyond(value: int) -> Attack:
    def attack(evil: RawPeer) -> None:
        evil.rx[0].head = value

    return attack


def bad_tx_slot(**fields: int) -> Attack:
    def attack(evil: RawPeer) -> None:
        evil.tx[0].fill(0, ether(BROADCAST, mac(9)))
        evil.tx[0].set_slot(0, **fields)  # type: ignore[arg-type]
        publish(evil, 1)

    return attack


def bad_rx_slot(buf_idx: int) -> Attack:
    def attack(evil: RawPeer) -> None:
        for i in range(evil.num_slots):
            evil.rx[0].set_slot(i, buf_idx=buf_idx)

    return attack


def endless_chain(evil: RawPeer) -> None:
    for i in range(100):
        evil.tx[0].fill(i, ether(BROADCAST, mac(9)), flags=MOREFRAG)
    publish(evil, 100)


def slot_shorter_than_header(evil: RawPeer) -> None:
    evil.tx[0].fill(0, b"12345678901")
    publish(evil, 1)


CASES = [
    pytest.param(EVENT_IDX, head_beyond(256), Reason.BAD_INDEX, id="tx-head-equals-ring-size"),
    pytest.param(EVENT_IDX, head_beyond(0xFFFFFFFF), Reason.BAD_INDEX, id="tx-head-all-ones"),
    pytest.param(EVENT_IDX, rx_head_beyond(256), Reason.BAD_INDEX, id="rx-head-equals-ring-size"),
    pytest.param(EVENT_IDX, rx_head_beyond(0x80000000), Reason.BAD_INDEX, id="rx-head-sign-bit"),
    pytest.param(EVENT_IDX, bad_tx_slot(buf_idx=514), Reason.BAD_SLOT, id="tx-buffer-beyond-pool"),
    pytest.param(EVENT_IDX, bad_tx_slot(buf_idx=0xFFFFFFFF), Reason.BAD_SLOT, id="tx-buffer-all-ones"),
    pytest.param(EVENT_IDX, bad_tx_slot(buf_idx=0), Reason.BAD_SLOT, id="tx-buffer-0-is-reserved"),
    pytest.param(EVENT_IDX, bad_tx_slot(length=2113), Reason.BAD_SLOT, id="tx-longer-than-buffer"),
    pytest.param(EVENT_IDX, bad_tx_slot(length=65535), Reason.BAD_SLOT, id="tx-longest-length"),
    pytest.param(EVENT_IDX, bad_rx_slot(514), Reason.BAD_SLOT, id="rx-buffer-beyond-pool"),
    pytest.param(EVENT_IDX, bad_rx_slot(1), Reason.BAD_SLOT, id="rx-buffer-1-is-reserved"),
    pytest.param(VNET, endless_chain, Reason.LOOP, id="chain-without-end"),
    pytest.param(VNET, slot_shorter_than_header, Reason.BAD_SLOT, id="slot-shorter-than-vnet-header"),
]


@pytest.mark.parametrize(("features", "attack", "reason"), CASES)
def test_a_peer_that_lies_takes_down_its_port_only(
    scene: Scene, features: int, attack: Attack, reason: Reason
) -> None:
    scene.evil.start(features)
    scene.honest_traffic()
    attack(scene.evil)
    # something for its rx ring, in case the lie is there
    scene.honest[0].app.send(0, ether(BROADCAST, mac(1)))
    assert scene.breakdown() is reason
    assert scene.evil.host_status == FAILED
    assert scene.evil.host_error != 0
    assert scene.port.port.state().reason is reason
    assert scene.counters()[f"broken_{reason.label.replace('-', '_')}"] == 1
    scene.honest_traffic()

    scene.evil.start(features)
    assert scene.port.port.state().reason is Reason.NONE
    tx = scene.evil.tx[0]
    tx.fill(0, bytes(12 if features & int(Feature.VNET_HDR) else 0) + ether(mac(1), mac(9), b"again"))
    publish(scene.evil, 1)
    until(lambda: tx.hwcur == 1, "the revived port to be served")
    scene.honest_traffic()


def test_a_chain_whose_end_never_comes_costs_nothing_but_itself(scene: Scene) -> None:
    """Half a packet is not malformed, only unfinished: the port stays up, the worker goes to sleep."""
    scene.evil.start(VNET)
    scene.evil.tx[0].fill(0, bytes(12) + ether(BROADCAST, mac(9)), flags=MOREFRAG)
    publish(scene.evil, 1)
    scene.honest_traffic()
    worker = scene.stats.read().workers[0]
    sleeps = worker.counters["sleeps"]
    until(lambda: scene.stats.read().workers[0].counters["sleeps"] > sleeps, "the worker to sleep again")
    assert scene.port.port.state().reason is Reason.NONE
    scene.evil.tx[0].fill(1, b"the end")
    publish(scene.evil, 2)
    until(lambda: scene.evil.tx[0].hwcur == 2, "the finished packet to be taken")


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_runt_is_dropped_and_counted(scene: Scene, length: int) -> None:
    scene.evil.start(EVENT_IDX)
    scene.evil.tx[0].fill(0, b"x" * length)
    publish(scene.evil, 1)
    until(lambda: scene.evil.tx[0].hwcur == 1, "the runt to be taken")
    assert scene.counters()["tx_drop_runt"] == 1
    assert scene.port.port.state().reason is Reason.NONE
    scene.honest_traffic()


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(struct.pack("<BBHHHHH", 1, 0, 0, 0, 59, 0, 0), id="checksum-across-the-end"),
        pytest.param(struct.pack("<BBHHHHH", 1, 0, 0, 0, 65535, 65535, 0), id="checksum-sum-wraps"),
        pytest.param(struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0), id="gso-size-0"),
        pytest.param(struct.pack("<BBHHHHH", 1, 0x7F, 54, 100, 34, 16, 0), id="gso-type-unknown"),
    ],
)
def test_a_vnet_header_that_lies_is_dropped_and_counted(scene: Scene, header: bytes) -> None:
    scene.evil.start(int(Feature(scene.evil.host_features)))
    scene.evil.tx[0].fill(0, header + ether(BROADCAST, mac(9)))
    publish(scene.evil, 1)
    until(lambda: scene.evil.tx[0].hwcur == 1, "the packet to be taken")
    assert scene.counters()["tx_drop_bad_header"] == 1
    scene.honest_traffic()


@pytest.mark.parametrize(
    "features", [1 << 63, int(Feature.HOST_TSO4 | Feature.VNET_HDR), int(Feature.GUEST_TSO6)]
)
def test_features_not_offered_or_contradictory_are_refused(scene: Scene, features: int) -> None:
    evil = scene.evil
    evil.say(RESET)
    evil.await_status(RESET)
    struct.pack_into("<Q", evil.mem, PEER_FEATURES, features)
    struct.pack_into("<I", evil.mem, PEER_GENERATION, evil.generation)
    evil.say(DRIVER_OK)
    evil.await_status(FAILED)
    assert not scene.port.port.state().up
    evil.start(EVENT_IDX)
    assert scene.port.port.state().up


def test_a_header_overwritten_by_the_peer_is_not_believed(scene: Scene) -> None:
    """The whole header is the peer's to write; the host goes by its own copy and restores it on reset."""
    evil = scene.evil
    evil.start(EVENT_IDX)
    evil.mem[0:2048] = random.Random(1).randbytes(2048)
    evil.tx[0].fill(0, ether(mac(1), mac(9), b"still served"))
    publish(evil, 1)
    until(lambda: evil.tx[0].hwcur == 1, "the packet to be taken")
    scene.honest_traffic()
    evil.say(RESET)
    evil.kick(vec_cfg(evil.pairs))
    until(lambda: bool(scene.engine.next_event()), "the doorbell")
    scene.port.port.ring_status()
    assert RawPeer(scene.port).magic == evil.magic


@pytest.mark.parametrize("seed", range(20))
def test_garbage_all_over_the_region_harms_nobody_else(scene: Scene, seed: int) -> None:
    """CSB, rings, slots and buffers full of noise, again and again, while the honest ones talk."""
    evil, rng = scene.evil, random.Random(seed)
    for _ in range(10):
        evil.start(rng.choice([0, EVENT_IDX, VNET]))
        for _ in range(5):
            where = rng.choice([evil.atok_ofs, evil.tx[0].ring, evil.rx[0].ring, evil.netmap_if_ofs])
            size = rng.choice([4, 64, 4096])
            evil.mem[where : where + size] = rng.randbytes(size)
            if rng.random() < 0.5:
                evil.tx[0].head = rng.randrange(evil.num_slots)
            evil.kick(rng.randrange(3), times=rng.randrange(1, 1000))
            scene.honest_traffic(3)
        for event in scene.engine.events():
            assert event.type is not EventType.BROKEN or event.port_id == scene.port.port.id
    scene.honest_traffic()


def test_a_doorbell_storm_is_counted_and_changes_nothing(scene: Scene) -> None:
    scene.evil.start(EVENT_IDX)
    before = scene.counters()["kicks"]
    for _ in range(1000):
        scene.evil.kick_tx(times=1000)
    scene.honest_traffic()
    until(lambda: scene.counters()["kicks"] - before == 1_000_000, "all doorbells to be counted")
    assert scene.counters()["tx_packets"] == 0


def test_interrupts_asked_for_at_an_index_outside_the_ring_still_come(scene: Scene) -> None:
    """What a peer gets wrong about its own notifications is its own affair, but it must not lose them."""
    evil = scene.evil
    evil.start(EVENT_IDX)
    evil.rx[0].intr_at = 0xFFFFFFFF
    evil.rx[0].need_intr = 1
    evil.interrupts()
    scene.honest[0].app.send(0, ether(BROADCAST, mac(1)))
    until(lambda: evil.interrupts() > 0, "an interrupt")
