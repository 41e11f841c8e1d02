# SPDX-License-Identifier: BSD-2-Clause
"""Live migration of a guest between two QEMUs, under traffic, there and back again.

Source and destination are two ports of one switch; a third guest never moves and talks to the one that does.
What the host wrote into the guest's memory while that was copied must have arrived: a stream into the guest
is compared at its end, byte by byte.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.host import Host, VhostPort
from vpt.doctor._daemon import listeners
from vpt.guest import Guest, Image
from vpt.qemu import Qemu, VhostUser
from vpt.qemu.qmp import QmpSession

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(400),
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

MOVING, STAYING = "52:54:00:76:70:0a", "52:54:00:76:70:0b"
MOVES = 2
MIGRATION_S = 120.0


@dataclass
class Stage:
    """One switch; two ports for the guest that moves, one for the guest that stays."""

    host: Host
    homes: list[VhostPort]
    stays: Guest
    start: Callable[..., Guest]

    def where(self, mac: str) -> int | None:
        macs = self.host.call(self.host.switch.macs)
        return next((entry.port_id for entry in macs if entry.mac == mac), None)


@pytest.fixture
def stage(tmp_path: Path, image: Image, qemu: Qemu) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host(tmp_path))

        def start(port: VhostPort, mac: str, *extra: str, qmp: Path | None = None) -> Guest:
            nic = VhostUser(port.path, mac)
            return stack.enter_context(
                Guest(image, qemu, name="vm", accel="tcg", nics=[nic], qmp=qmp, extra=extra, memory_mib=192)
            )

        stays = start(host.vhost("stays"), STAYING)
        yield Stage(host, [host.vhost("here"), host.vhost("there")], stays, start)


def migrate(source: Path, address: Path, wait: Callable[..., None]) -> dict[str, object]:
    """Move a guest; what QEMU says of it at the end."""
    with QmpSession(source) as qmp:
        qmp.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 2000})
        qmp.execute("migrate", uri=f"unix:{address}")

        def ended() -> bool:
            status = qmp.execute("query-migrate")
            assert status.get("status") != "failed", status
            return status.get("status") == "completed"

        wait(ended, "the migration to complete", MIGRATION_S)
        return dict(qmp.execute("query-migrate"))


def test_a_guest_migrates_there_and_back_under_traffic(
    stage: Stage, tmp_path: Path, wait: Callable[..., None]
) -> None:
    moves = stage.start(stage.homes[0], MOVING, qmp=tmp_path / "qmp0")
    for number, guest in enumerate((moves, stage.stays), 1):
        guest.wait_ready()
        guest.run(f"ip addr add 10.0.0.{number}/24 dev eth0 && ip link set eth0 up")
    moves.spawn("mkfifo /tmp/hold; nc -l -p 5001 <>/tmp/hold >/tmp/received")
    moves.wait_until("grep -q ':1389 ' /proc/net/tcp /proc/net/tcp6", 20, "nc to listen")
    stream = stage.stays.spawn(
        "while [ ! -e /tmp/stop ]; do dd if=/dev/urandom bs=32k count=1 2>/dev/null; sleep 0.1; done"
        " | tee /tmp/sent | nc 10.0.0.1 5001"
    )
    stage.stays.wait_until("[ $(stat -c %s /tmp/sent) -gt 60000 ]", 60, "the stream to run")

    for move in range(1, MOVES + 1):
        port, address = stage.homes[move % 2], tmp_path / f"incoming{move}"
        target = stage.start(port, MOVING, "-incoming", f"unix:{address}", qmp=tmp_path / f"qmp{move}")
        wait(lambda address=address: str(address) in listeners(), "QEMU to listen", 30)  # type: ignore[misc]
        said = migrate(tmp_path / f"qmp{move - 1}", address, wait)
        assert said["status"] == "completed"
        # It may have died on the way, or its interrupts got lost: nothing else would tell so early.
        target.run("true", timeout_s=60)
        stage.stays.wait_until("ping -c 1 -W 2 10.0.0.1", 60, "the guest to answer from its new port")
        assert stage.where(MOVING) == port.port.id
        moves.stop()
        moves = target

    stage.stays.run("touch /tmp/stop")
    stream.wait(60)
    moves.wait_until("! pidof nc", 30, "the stream to end")
    sums = [
        guest.run(f"sha256sum <{path}; stat -c %s {path}", timeout_s=60).output.split()
        for guest, path in ((stage.stays, "/tmp/sent"), (moves, "/tmp/received"))
    ]
    assert sums[0] == sums[1]
    assert int(sums[0][-1]) > 1 << 16
    assert not re.search(r"BUG|Oops|panic", moves.run("dmesg").output)
    for port in stage.homes:
        assert "protocol_errors" not in port.faults
        assert "broken" not in port.faults
