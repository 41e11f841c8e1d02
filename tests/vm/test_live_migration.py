# SPDX-License-Identifier: BSD-2-Clause
"""Live migration of a guest between two QEMUs, under traffic, there and back again; and QMP stop and cont.

Source and destination are ports of one switch; another guest never moves and talks to the one that does. What
the host wrote into the guest's memory while that was copied must have arrived: streams into the guest are
compared at their ends, byte by byte.

The guest that moves has two devices, so that one journey tells of both: eth0 with a split ring that announces
itself, and eth1 with packed rings, two pairs of them, for which QEMU asks the back-end to (SEND_RARP).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import MAC_C, frame
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.doctor._daemon import listeners
from vpt.guest import Guest, Image
from vpt.qemu import Qemu, VhostUser
from vpt.qemu.qmp import QmpSession
from vpt.vhost_user import VirtioFeature

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(400),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

F = VirtioFeature
SPLIT, PACKED, STAYING = "52:54:00:76:70:0a", "52:54:00:76:70:0c", "52:54:00:76:70:0b"
ARP, RARP = b"\x08\x06", b"\x80\x35"
PAIRS = 2  # of eth1
STOPS = 3
MIGRATION_S = 120.0
SLOW_S = 60.0  # an emulated guest on a host with other things to do


@dataclass(frozen=True)
class Home:
    """Where the guest may be: a port for each of its devices."""

    split: VhostPort
    packed: VhostPort

    @property
    def ports(self) -> tuple[VhostPort, VhostPort]:
        return self.split, self.packed

    def nics(self) -> list[VhostUser]:
        other = "packed=on,guest_announce=off"
        return [
            VhostUser(self.split.path, SPLIT),
            VhostUser(self.packed.path, PACKED, queues=PAIRS, properties=other),
        ]

    def packets(self, name: str) -> list[int]:
        """A counter of eth1's, per pair."""
        queues = self.packed.host.stats.read().queues
        return [q.counters[name] for q in queues if q.port_id == self.packed.port.id]


@dataclass
class Stage:
    """One switch; two homes for the guest that moves, a guest that stays, and somebody who listens."""

    host: Host
    folder: Path
    homes: list[Home]
    stays: Guest
    third: FrontEnd
    start: Callable[..., Guest]
    moves: Guest
    moved: int = 0

    @property
    def home(self) -> Home:
        return self.homes[self.moved % 2]

    def qmp(self, number: int | None = None) -> Path:
        """The monitor of the QEMU that the guest is in; or of the one after so many moves."""
        return self.folder / f"qmp{self.moved if number is None else number}"

    def where(self, mac: str) -> int | None:
        macs = self.host.call(self.host.switch.macs)
        return next((entry.port_id for entry in macs if entry.mac == mac), None)

    def heard(self) -> set[tuple[str, bytes]]:
        """Source and type of what has come to the one who listens."""
        frames = [r.frame for pair in range(PAIRS) for r in self.third.poll(pair)]
        return {(f[6:12].hex(":"), f[12:14]) for f in frames}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, image: Image, qemu: Qemu) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("migration")
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host(folder))

        def start(
            *nics: VhostUser, cpus: int = 1, extra: tuple[str, ...] = (), qmp: Path | None = None
        ) -> Guest:
            guest = Guest(
                image,
                qemu,
                name="vm",
                accel="tcg",
                nics=nics,
                cpus=cpus,
                qmp=qmp,
                extra=extra,
                memory_mib=192,
            )
            return stack.enter_context(guest)

        homes = [
            Home(host.vhost(f"{name}-split"), host.vhost(f"{name}-packed", pairs=PAIRS))
            for name in ("here", "there")
        ]
        third = FrontEnd(host.vhost("third", pairs=PAIRS).path, pairs=PAIRS, features=int(USUAL | F.MQ))
        stack.enter_context(third).start()
        stays = start(VhostUser(host.vhost("stays").path, STAYING))
        moves = start(*homes[0].nics(), cpus=PAIRS, qmp=folder / "qmp0")
        stays.wait_ready().run(
            "ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.1.2/24 dev eth0; ip link set eth0 up"
        )
        moves.wait_ready().run(
            # IPv6 first: taken down later, it says goodbye to its multicast groups, seconds afterwards.
            "cd /proc/sys/net; for n in 0 1; do echo 1 >ipv6/conf/eth$n/disable_ipv6; "
            "echo 1 >ipv4/conf/eth$n/arp_ignore; ip addr add 10.0.$n.1/24 dev eth$n; "
            "ip link set eth$n up; done"
        )
        yield Stage(host, folder, homes, stays, third, start, moves)


class Stream:
    """Random bytes from the guest that stays to the other one, until it ends."""

    def __init__(self, stage: Stage, network: int) -> None:
        self._stage = stage
        self._tcp = 5000 + network
        self.sent, self.received = f"/tmp/sent{network}", f"/tmp/received{network}"
        # busybox's nc ends the connection when its input does; a pipe that is its own writer never ends.
        self._sink = stage.moves.spawn(
            f"rm -f /tmp/hold{network}; mkfifo /tmp/hold{network};"
            f" nc -l -p {self._tcp} <>/tmp/hold{network} >{self.received}"
        )
        stage.moves.wait_until(
            f"grep -q ':{self._tcp:04X} 0' /proc/net/tcp /proc/net/tcp6", SLOW_S, "nc to listen"
        )
        self._source = stage.stays.spawn(
            f"rm -f /tmp/end{network}; while [ ! -e /tmp/end{network} ]; do"
            " dd if=/dev/urandom bs=32k count=1 2>/dev/null; sleep 0.1; done"
            f" | tee {self.sent} | nc 10.0.{network}.1 {self._tcp}"
        )
        self._end = f"touch /tmp/end{network}"
        self.flows()

    def size(self) -> int:
        return int(self._stage.moves.run(f"stat -c %s {self.received}").output)

    def flows(self) -> None:
        """Wait until more of it arrives."""
        size = self.size()
        self._stage.moves.wait_until(
            f"[ $(stat -c %s {self.received}) -gt {size} ]", SLOW_S, "the stream to flow"
        )

    def end(self) -> None:
        """All of it has arrived, and nothing else."""
        moves, stays = self._stage.moves, self._stage.stays
        stays.run(self._end)
        self._source.wait(SLOW_S)
        moves.wait_until(f"[ -e {self._sink.base}.rc ]", SLOW_S, "the stream to end")
        sums = [
            guest.run(f"sha256sum <{path}; stat -c %s {path}", timeout_s=SLOW_S).output.split()
            for guest, path in ((stays, self.sent), (moves, self.received))
        ]
        assert sums[0] == sums[1]
        assert int(sums[0][-1]) > 1 << 16


def migrate(stage: Stage) -> None:
    """Move the guest to its other home, and have the QEMU that it was in end."""
    number = stage.moved + 1
    home, address = stage.homes[number % 2], stage.folder / f"incoming{number}"
    target = stage.start(
        *home.nics(), cpus=PAIRS, extra=("-incoming", f"unix:{address}"), qmp=stage.qmp(number)
    )
    until(lambda: str(address) in listeners(), "QEMU to listen", 30)
    stage.heard()
    with QmpSession(stage.qmp()) as qmp:
        qmp.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 2000})
        qmp.execute("migrate", uri=f"unix:{address}")

        def ended() -> bool:
            status = qmp.execute("query-migrate")
            assert status.get("status") != "failed", status
            return status.get("status") == "completed"

        until(ended, "the migration to complete", MIGRATION_S)
    # It may have died on the way, or its interrupts got lost: nothing else would tell so early.
    target.run("true", timeout_s=SLOW_S)
    stage.moves.stop()
    stage.moves, stage.moved = target, number


def wait_for_announcements(stage: Stage) -> None:
    """The guest's own for eth0, the back-end's for eth1; the switch has learned from them."""
    missing = {(SPLIT, ARP), (PACKED, RARP)}

    def all_heard() -> bool:
        missing.difference_update(stage.heard())
        return not missing

    until(all_heard, "the guest's new place to be announced", SLOW_S)
    assert stage.where(SPLIT) == stage.home.split.port.id
    assert stage.where(PACKED) == stage.home.packed.port.id


def received_packets(guest: Guest) -> int:
    return int(guest.run("cat /sys/class/net/eth1/statistics/rx_packets").output)


def test_a_guest_that_is_stopped_under_traffic_goes_on_where_it_was(stage: Stage) -> None:
    """QMP stop and cont: nothing is lost, and in between nothing is written to the guest."""
    streams = [Stream(stage, network) for network in (0, 1)]
    ports = stage.home.ports
    with QmpSession(stage.qmp()) as qmp:
        for _ in range(STOPS):
            qmp.execute("stop")
            until(lambda: not any(port.state().up for port in ports), "the rings to stop", SLOW_S)
            before = [port.counters for port in ports]
            for mac in (SPLIT, PACKED):
                stage.third.transmit(frame(bytes.fromhex(mac.replace(":", "")), MAC_C))
            assert [port.counters["rx_packets"] for port in ports] == [c["rx_packets"] for c in before]
            qmp.execute("cont")
            until(lambda: all(port.state().up for port in ports), "the rings to start", SLOW_S)
            for stream in streams:
                stream.flows()
    for stream in streams:
        stream.end()


def test_a_guest_migrates_there_and_back_under_traffic(stage: Stage) -> None:
    """The first time with eth1 silent, so that only the back-end can have told where it is now."""
    streams = [Stream(stage, 0)]
    sent = stage.homes[1].packets("tx_packets")
    migrate(stage)
    wait_for_announcements(stage)
    assert stage.home.packets("tx_packets") == sent, "eth1 has not spoken"
    seen = received_packets(stage.moves)
    arrived = stage.home.packets("rx_packets")
    for pair in range(PAIRS):
        stage.third.transmit(frame(bytes.fromhex(PACKED.replace(":", "")), MAC_C), pair=pair)
    assert stage.home.packets("rx_packets") == [n + 1 for n in arrived]
    until(
        lambda: received_packets(stage.moves) >= seen + PAIRS,
        "the guest to see what came on each pair",
        SLOW_S,
    )

    streams.append(Stream(stage, 1))
    migrate(stage)
    wait_for_announcements(stage)
    sent = stage.home.packets("tx_packets")
    for cpu in range(PAIRS):
        stage.moves.run(f"taskset {1 << cpu:x} ping -c 1 -W 10 10.0.1.2")
    assert all(now > before for now, before in zip(stage.home.packets("tx_packets"), sent, strict=True))
    for stream in streams:
        stream.flows()
        stream.end()


def test_nothing_broke(stage: Stage) -> None:
    assert not re.search(r"BUG|Oops|panic", stage.moves.run("dmesg").output)
    for port in (port for home in stage.homes for port in home.ports):
        assert "protocol_errors" not in port.faults
        assert "broken" not in port.faults
