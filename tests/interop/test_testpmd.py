# SPDX-License-Identifier: BSD-2-Clause
"""DPDK's net_virtio_user as the front-end: a driver and a protocol implementation by other hands."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import FrontEnd

pytestmark = pytest.mark.needs("dpdk-testpmd")

CORES = sorted(os.sched_getaffinity(0))


class Testpmd:
    """An interactive dpdk-testpmd with one net_virtio_user device per port. options: of every device."""

    __test__ = False

    def __init__(self, ports: list[VhostPort], mode: str, *, queues: int = 1, options: str = "") -> None:
        if len(CORES) < 2:
            pytest.skip("missing: a second CPU, for testpmd's forwarding thread")
        self._ports = ports
        self._output = tempfile.NamedTemporaryFile(prefix="testpmd-")  # noqa: SIM115 - closed in __exit__
        devices = [
            f"--vdev=net_virtio_user{i},path={port.path},queue_size=256,queues={queues}{options}"
            for i, port in enumerate(ports)
        ]
        # Line by line: testpmd prints its statistics with stdio, which would keep them from a file.
        command = ["stdbuf", "-oL", "dpdk-testpmd", "-l", f"{CORES[0]},{CORES[1]}"]
        command += ["--no-pci", "--no-huge", "-m", "256", "--no-telemetry"]
        command += [f"--file-prefix=vpt{os.getpid()}", *devices, "--", "-i", "--total-num-mbufs=8192"]
        command += [f"--forward-mode={mode}", f"--rxq={queues}", f"--txq={queues}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._output, stderr=subprocess.STDOUT, text=True
        )

    def __enter__(self) -> Self:
        until(lambda: "testpmd>" in self.output, lambda: f"testpmd to be ready:\n{self.output}", 30)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._process.poll() is None:
                self.say("quit")
                self._process.wait(20)
        finally:
            self.kill()
            self._output.close()

    def kill(self) -> None:
        """From one instruction to the next."""
        self._process.kill()
        self._process.communicate()

    @property
    def output(self) -> str:
        """All that it has printed."""
        return Path(self._output.name).read_text(errors="replace")

    def say(self, line: str) -> None:
        """Type a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def stop(self) -> list[tuple[int, int]]:
        """Stop forwarding; packets received and sent by each port."""
        self.say("stop")
        count = r"[RT]X-packets: (\d+)"
        found = re.compile(rf"statistics for port \d+ .*\n +{count} .*\n +{count} ")
        ports = until(
            lambda: (seen := found.findall(self.output)) and len(seen) >= len(self._ports) and seen,
            "the statistics",
        )
        return [(int(rx), int(tx)) for rx, tx in ports]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """An engine with one worker and one switch."""
    with Host(tmp_path) as h:
        yield h


@pytest.mark.parametrize(
    ("queues", "options"),
    [(1, ""), (1, ",mrg_rxbuf=0"), (1, ",in_order=0"), (1, ",vectorized=1,mrg_rxbuf=0"), (2, "")],
    ids=["default", "one buffer", "not in order", "vectorized", "two pairs"],
)
def test_every_packet_that_testpmd_sent_was_taken(host: Host, queues: int, options: str) -> None:
    port, sink = host.vhost("a", pairs=queues), host.null("sink")
    with Testpmd([port], "txonly", queues=queues, options=options) as testpmd:
        testpmd.say("start")
        until(lambda: port.counters["tx_packets"] > 50_000, "packets", 20)
        ((_, sent),) = testpmd.stop()
        assert sent > 50_000
        until(lambda: port.counters["tx_packets"] == sent, "the last packets to be counted")
        assert host.counters(sink)["rx_packets"] == sent
        assert host.counters(sink)["rx_bytes"] == 64 * sent
    port.until_left()
    assert "protocol_errors" not in port.faults
    assert "refused" not in port.faults


def test_all_features_of_a_real_front_end_are_seen(host: Host) -> None:
    port = host.vhost("a", pairs=2)
    with Testpmd([port], "rxonly", queues=2):
        session = port.describe["session"]
    assert {"VERSION_1", "MRG_RXBUF", "INDIRECT_DESC", "PROTOCOL_FEATURES"} <= set(session["features"])
    assert {"MQ", "REPLY_ACK"} <= set(session["protocol_features"])
    assert [ring["running"] for ring in session["rings"]] == [True] * 4


@pytest.mark.parametrize("options", ["", ",mrg_rxbuf=0"], ids=["default", "one buffer"])
def test_frames_come_through_testpmd_as_they_were_sent(host: Host, options: str) -> None:
    """Two switches, testpmd between them forwarding from one to the other and back."""
    other = host.call(lambda: host.engine.add_switch("sw1"))
    near, far = host.vhost("near"), host.vhost("far", switch=other)
    ends = host.vhost("x"), host.vhost("y", switch=other)
    with (
        Testpmd([near, far], "io", options=options) as testpmd,
        FrontEnd(ends[0].path).start() as one,
        FrontEnd(ends[1].path).start() as two,
    ):
        testpmd.say("start")
        sent = [frame(MAC_B, MAC_A, n, 60 + n * 13 % 1400) for n in range(500)]
        for at in range(0, 500, 50):
            one.transmit(*sent[at : at + 50])
            assert [r.frame for r in two.receive(50)] == sent[at : at + 50]
        back = [frame(MAC_A, MAC_B, n) for n in range(50)]
        two.transmit(*back)
        assert [number(r.frame) for r in one.receive(50)] == list(range(50))
        assert testpmd.stop() == [(500, 50), (50, 500)]
    assert (near.counters["rx_packets"], near.counters["tx_packets"]) == (500, 50)
    assert (far.counters["rx_packets"], far.counters["tx_packets"]) == (50, 500)


def test_testpmd_comes_back_after_it_was_killed(host: Host) -> None:
    port, _ = host.vhost("a"), host.null("sink")
    for _ in range(2):
        with Testpmd([port], "txonly") as testpmd:
            testpmd.say("start")
            seen = port.counters["tx_packets"]
            until(lambda: port.counters["tx_packets"] > seen + 10_000, "packets", 20)  # noqa: B023
            testpmd.kill()
        port.until_left()
        assert not port.state().up
    assert port.faults["disconnects"] == 2
