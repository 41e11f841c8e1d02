# SPDX-License-Identifier: BSD-2-Clause
"""Queue pairs, up to 128 of a port: spread over the workers, each of them carrying packets."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
PAIRS = 128
WORKERS = 2


def many(port: VhostPort, layout: int) -> FrontEnd:
    """A front-end with all its pairs at work."""
    memory = GuestMemory([Span(GPA_BASE, 32 * MIB)])
    fe = FrontEnd(
        port.path, pairs=PAIRS, num=8, buffer_size=256, memory=memory, features=USUAL | F.MQ | layout
    )
    return fe.start()


def busy(host: Host) -> list[int]:
    """Rounds in which each worker had something to do."""
    return [worker.counters["busy_loops"] for worker in host.stats.read().workers]


@pytest.mark.parametrize(
    "layout", [0, int(F.RING_PACKED), int(F.RING_PACKED | F.IN_ORDER)], ids=["split", "packed", "in order"]
)
def test_128_pairs_are_spread_over_the_workers_and_all_carry_packets(tmp_path: Path, layout: int) -> None:
    """What goes out on a pair comes in on the same; even pairs are one worker's, odd the other's."""
    with Host(tmp_path, workers=WORKERS) as host:
        a, b = host.vhost("a", pairs=PAIRS, mac=MAC_A), host.vhost("b", pairs=PAIRS, mac=MAC_B)
        assert a.state().workers == b.state().workers == (0, 1)
        with many(a, layout) as one, many(b, layout) as two:
            for parity in range(WORKERS):
                until(lambda: busy(host) == busy(host), "all to be quiet")
                before = busy(host)
                for pair in range(parity, PAIRS, WORKERS):
                    one.transmit(frame(MAC_B, MAC_A, pair), pair=pair)
                    assert [number(r.frame) for r in two.receive(pair=pair)] == [pair]
                    two.transmit(frame(MAC_A, MAC_B, pair), pair=pair)
                    assert [number(r.frame) for r in one.receive(pair=pair)] == [pair]
                after = busy(host)
                assert after[parity] >= before[parity] + PAIRS // WORKERS
                assert after[1 - parity] == before[1 - parity]
        queues = [q for q in host.stats.read().queues if q.port in ("a", "b")]
        assert len(queues) == 2 * PAIRS
        assert all(q.counters["tx_packets"] == q.counters["rx_packets"] == 1 for q in queues)


def test_a_port_given_to_one_worker_keeps_to_it(tmp_path: Path) -> None:
    with Host(tmp_path, workers=WORKERS) as host:
        port = host.vhost("a", pairs=4, worker=1)
        assert port.state().workers == (1,)
        with FrontEnd(port.path, pairs=4, features=USUAL | F.MQ) as fe:
            fe.start()
            for pair in range(4):
                fe.transmit(frame(MAC_B, MAC_A, pair), pair=pair)
            assert busy(host)[0] == 0


def test_workers_that_fill_one_ring_at_the_same_time_keep_each_sender_in_order(tmp_path: Path) -> None:
    """Eight transmit queues of two workers, one receive queue: all arrives, and in order from each queue."""
    count, pairs = 32, 8
    with Host(tmp_path, workers=WORKERS) as host:
        a, b = host.vhost("a", pairs=pairs, mac=MAC_A), host.vhost("b", mac=MAC_B)
        with FrontEnd(a.path, pairs=pairs, features=USUAL | F.MQ, num=64) as one, FrontEnd(b.path) as two:
            one.start()
            two.start()
            for _ in range(5):
                for pair in range(pairs):
                    for n in range(count):
                        one.queue_frame(frame(MAC_B, MAC_A, pair * count + n), pair=pair)
                for pair in range(pairs):
                    one.pairs[pair].tx.kick()
                got = [number(r.frame) for r in two.receive(pairs * count)]
                for pair in range(pairs):
                    one.flush(pair)
                    mine = range(pair * count, (pair + 1) * count)
                    assert [n for n in got if n in mine] == list(mine)
