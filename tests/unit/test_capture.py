# SPDX-License-Identifier: BSD-2-Clause
"""What is captured is what passed, says where and what became of it, and costs nobody anything."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import pcapng
from support.apps import BROADCAST, AppPeer, ether, mac
from support.vptd import Vptd
from support.waiting import until
from vpt.capture import compile_filter
from vpt.dataplane import Capture, CaptureReader, Engine, Feature, Rules, StatsReader, VnetHdr
from vpt.errors import DataplaneError

RING = 1 << 18


class Lab:
    """Three app ports on a switch, and captures of them."""

    def __init__(self, workers: int = 1) -> None:
        self.engine = Engine(workers=workers)
        self.switch = self.engine.add_switch("sw0")
        self.peers: list[AppPeer] = []
        for i in range(3):
            self.peers.append(self.add(f"p{i}", worker=i % workers))
        self.readers: list[CaptureReader] = []

    def add(self, name: str, **options: object) -> AppPeer:
        peer = AppPeer(self.switch, name, **options)
        peer.connect()
        return peer

    def capture(self, *which: int, **options: object) -> tuple[Capture, CaptureReader]:
        made = self.engine.capture(ring_bytes=RING, **options)  # type: ignore[arg-type]
        for i in which:
            made.watch(self.peers[i].port)
        reader = CaptureReader(made.fd)
        self.readers.append(reader)
        return made, reader

    def send(self, i: int, frame: bytes, hdr: VnetHdr | None = None) -> None:
        before = self.counter(i, "tx_packets")
        assert self.peers[i].app.send(0, frame, hdr)
        until(lambda: self.counter(i, "tx_packets") > before, "the packet to be taken")

    def counter(self, i: int, name: str) -> int:
        with StatsReader(self.engine.stats_fd) as stats:
            return stats.read().port(self.peers[i].port.id)[name]

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        for peer in self.peers:
            peer.close()
        self.engine.close()


@pytest.fixture
def lab(no_leaks: None) -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def captured(reader: CaptureReader) -> list[pcapng.Packet]:
    return pcapng.packets(bytes(reader.read()[0]))


A, B, C = mac(1), mac(2), mac(3)


def learn_all(lab: Lab) -> None:
    """Each address is known where it is."""
    for i, source in enumerate((A, B, C)):
        lab.send(i, ether(BROADCAST, source))


def test_a_packet_shows_where_it_came_in_and_where_it_left(lab: Lab) -> None:
    learn_all(lab)
    _, reader = lab.capture(0, 1, 2)
    frame = ether(B, A, b"hello")
    lab.send(0, frame)
    found = captured(reader)
    assert [(p.interface, p.direction, p.data, p.length, p.comment) for p in found] == [
        (0, pcapng.IN, frame, 60, ""),
        (1, pcapng.OUT, frame, 60, ""),
    ]
    assert [each.name for each in reader.interfaces()] == ["p0", "p1", "p2"]


def test_tags_are_seen_as_they_are_on_that_port(lab: Lab) -> None:
    """A trunk's frames with theirs, an access port's without; what is dropped for its tag shows it."""
    lab.peers[0].port.set_rules(Rules(trunk=frozenset({10})))
    lab.peers[1].port.set_rules(Rules(access=10))
    _, reader = lab.capture(0, 1)
    plain = ether(BROADCAST, A, b"hello")
    tagged = plain[:12] + b"\x81\x00\x60\x0a" + plain[12:]
    other = plain[:12] + b"\x81\x00\x00\x14" + plain[12:]
    lab.send(0, tagged)
    lab.send(1, ether(BROADCAST, B))
    lab.send(0, other)
    back = ether(BROADCAST, B)
    assert [(p.interface, p.direction, p.data, p.comment) for p in captured(reader)] == [
        (0, pcapng.IN, tagged, ""),
        (1, pcapng.OUT, plain, ""),
        (1, pcapng.IN, back, ""),
        (0, pcapng.OUT, back[:12] + b"\x81\x00\x00\x0a" + back[12:], ""),
        (0, pcapng.IN, other, "dropped: tx_drop_vlan"),
    ]


@pytest.mark.parametrize(("directions", "seen"), [(1, [pcapng.IN]), (2, []), (3, [pcapng.IN])])
def test_only_the_directions_asked_for_are_captured(lab: Lab, directions: int, seen: list[int]) -> None:
    learn_all(lab)
    _, reader = lab.capture(0, directions=directions)
    lab.send(0, ether(B, A))
    assert [p.direction for p in captured(reader)] == seen


def test_a_port_that_is_not_captured_leaves_no_trace(lab: Lab) -> None:
    learn_all(lab)
    _, reader = lab.capture(2)
    lab.send(0, ether(B, A))
    assert captured(reader) == []


def test_a_dropped_packet_says_why(lab: Lab) -> None:
    learn_all(lab)
    _, reader = lab.capture(0, 1)
    for source, destination, cause in (
        (b"\x01" + A[1:], B, "tx_drop_spoofed"),
        (A, A, "tx_drop_no_dest"),
    ):
        lab.send(0, ether(destination, source))
        (packet,) = captured(reader)
        assert (packet.direction, packet.comment) == (pcapng.IN, f"dropped: {cause}")
    lab.peers[1].port.set_link(False)
    lab.send(0, ether(B, A))
    came, left = captured(reader)
    assert (came.direction, came.comment) == (pcapng.IN, "")
    assert (left.interface, left.direction, left.comment) == (1, pcapng.OUT, "dropped: rx_drop_down")


def test_what_finds_no_room_at_a_receiver_is_captured_as_dropped_there(lab: Lab) -> None:
    learn_all(lab)
    _, reader = lab.capture(1)
    for i in range(300):  # the ring has 256 slots, and nobody empties it
        lab.send(0, ether(B, A, struct.pack("<I", i)))
    found = captured(reader)
    assert [struct.unpack_from("<I", p.data, 14)[0] for p in found] == list(range(300))
    full = [p.comment == "dropped: rx_drop_full" for p in found]
    assert full == sorted(full)
    assert sum(full) == lab.counter(1, "rx_drop_full") > 0


def test_what_is_left_to_the_receiver_is_in_the_comment(lab: Lab) -> None:
    sender = AppPeer(lab.switch, "offload")
    sender.connect(int(Feature.VNET_HDR | Feature.CSUM))
    lab.peers.append(sender)
    _, reader = lab.capture(3)
    udp = bytes.fromhex("4500002e 00000000 40110000 0a000001 0a000002 00350035 001a0000")
    frame = (BROADCAST + mac(9) + b"\x08\x00" + udp).ljust(60, b"\0")
    lab.send(3, frame, VnetHdr(flags=1, csum_start=34, csum_offset=6))
    (packet,) = captured(reader)
    assert packet.comment == "checksum offloaded"


def test_only_so_much_of_a_packet_is_kept(lab: Lab) -> None:
    _, reader = lab.capture(0, snaplen=20)
    frame = ether(BROADCAST, A, size=100)
    lab.send(0, frame)
    (packet,) = captured(reader)
    assert (packet.data, packet.length) == (frame[:20], 100)


@pytest.mark.needs("/usr/lib/*/libpcap.so.0.8")
def test_only_what_the_filter_lets_pass_is_captured(lab: Lab) -> None:
    _, reader = lab.capture(0, filter_=compile_filter("ether proto 0x88b5 and ether[14] = 7"))
    for i in range(10):
        lab.send(0, ether(BROADCAST, A, bytes([i])))
    assert [p.data[14] for p in captured(reader)] == [7]


def test_what_finds_no_room_is_counted_and_the_next_block_says_so(lab: Lab) -> None:
    _, reader = lab.capture(0)
    size, sent = 1500, 0
    while not reader.interfaces()[0].lost:
        lab.send(0, ether(BROADCAST, A, size=size))
        sent += 1
        for peer in lab.peers[1:]:
            list(peer.drain())
        assert sent < 2 * RING // size, "the ring never filled"
    before = captured(reader)
    assert len(before) + reader.interfaces()[0].lost == sent
    assert lab.counter(0, "tx_packets") == sent, "nobody waits for an observer"
    lab.send(0, ether(BROADCAST, A))
    (packet,) = captured(reader)
    assert packet.lost_before == sent - len(before)


def test_rings_go_round(lab: Lab) -> None:
    _, reader = lab.capture(0)
    for i in range(3 * RING // 1000):
        lab.send(0, ether(BROADCAST, A, struct.pack("<I", i), size=900 + i % 100))
        for peer in lab.peers[1:]:
            list(peer.drain())
        (packet,) = captured(reader)
        assert struct.unpack_from("<I", packet.data, 14) == (i,)
        assert packet.length == 900 + i % 100
    assert reader.interfaces()[0].lost == 0


def test_two_workers_rings_are_merged_by_time(no_leaks: None) -> None:
    lab = Lab(workers=2)
    try:
        _, reader = lab.capture(0, 1, directions=1)
        for i in range(50):
            lab.send(i % 2, ether(BROADCAST, (A, B)[i % 2], bytes([i])))
        found = captured(reader)
        assert [p.data[14] for p in found] == list(range(50))
        assert [p.ns for p in found] == sorted(p.ns for p in found)
    finally:
        lab.close()


def test_an_observer_who_writes_into_the_rings_harms_itself_only(lab: Lab) -> None:
    made, reader = lab.capture(0)
    lab.send(0, ether(BROADCAST, A))
    with mmap.mmap(made.fd, 0) as memory:
        struct.pack_into("=Q", memory, 64 + 64, 1 << 40)  # the tail of the first worker's ring
        memory[-RING:-4096] = b"\xff" * (RING - 4096)
    lab.send(0, ether(BROADCAST, A))
    assert reader.interfaces()[0].lost == 1, "a tail beyond the head leaves no room"
    with pytest.raises(DataplaneError, match="read a capture"):
        reader.read()
    other = lab.capture(0)[1]
    lab.send(0, ether(BROADCAST, A))
    assert len(captured(other)) == 1


def test_a_port_may_be_deleted_while_it_is_captured_and_a_capture_while_packets_flow(lab: Lab) -> None:
    made, reader = lab.capture(0, 1, 2)
    second, _ = lab.capture(0)
    lab.send(0, ether(BROADCAST, A))
    lab.peers.pop(1).close()
    lab.send(0, ether(BROADCAST, A))
    assert sorted(p.interface for p in captured(reader)) == [0, 0, 1, 2, 2]
    made.close()
    lab.send(0, ether(BROADCAST, A))
    assert captured(reader) == [], "what was captured can be read, and no more comes"
    second.close()


# ---- vptd and the command ----


@pytest.fixture(scope="module")
def vptd() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    daemon.call("port.add", switch="sw0", name="sink", kind="null", mac="52:54:00:00:00:99")
    yield daemon
    daemon.close()


def vpt(vptd: Vptd, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(vptd.paths.runtime), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, **{"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **options})  # type: ignore[call-overload,no-any-return]


def generate(vptd: Vptd, count: int = 100) -> None:
    done = vpt(vptd, "gen", "send", "--switch", "sw0", "--count", str(count), "--rate", "20k")
    assert done.wait(60) == 0, done.communicate()


def capturing(vptd: Vptd) -> list[dict[str, object]]:
    found: list[dict[str, object]] = vptd.call("capture.list")["captures"]
    return [each for each in found if each["pid"]]


@pytest.mark.needs("tshark", "/usr/lib/*/libpcap.so.0.8")
def test_tshark_reads_a_switch_from_a_pipe_with_ports_that_joined_later(vptd: Vptd) -> None:
    source = vpt(vptd, "capture", "sw0", "-f", "udp", "-c", "100", "--direction", "in")
    until(lambda: capturing(vptd), "the capture to begin")
    fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.comment", "udp.dstport"]
    argv = ["tshark", "-r", "-", "-T", "fields", *(arg for field in fields for arg in ("-e", field))]
    reader = subprocess.Popen(argv, stdin=source.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    generate(vptd)
    output, _ = reader.communicate(timeout=60)
    assert source.wait(60) == 0
    lines = output.decode().splitlines()
    assert len(lines) == 100
    name, direction, _, port = lines[0].split("\t")
    assert name.startswith("gen-")
    assert int(direction, 0) == pcapng.IN
    assert port == "7000"


def test_a_file_is_whole_after_a_signal_and_the_result_says_how_many(vptd: Vptd, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    running = vpt(vptd, "capture", "sink", "-w", str(path), "--json")
    until(lambda: capturing(vptd), "the capture to begin")
    generate(vptd)
    until(lambda: len(pcapng.packets(path.read_bytes())) >= 1, "packets in the file")
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    result = json.loads(output)
    found = pcapng.blocks(path.read_bytes())
    assert found[0][0] == 0x0A0D0D0A
    assert found[-1][0] == 5
    assert result == {
        "schema": "vpt.capture/v1",
        "packets": len(pcapng.packets(path.read_bytes())),
        "lost": 0,
        "ended_by_vptd": False,
    }


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_full_pipe_did_not_take_at_once_still_comes(vptd: Vptd, unbuffered: str) -> None:
    """Python's standard output may be the bare file: a write to it that a signal interrupts is short."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    running = vpt(vptd, "capture", "sink", env=environment)
    assert running.stdout is not None
    fcntl.fcntl(running.stdout, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
    until(lambda: capturing(vptd), "the capture to begin")
    generate(vptd, 1000)
    until(lambda: "pipe_write" in Path(f"/proc/{running.pid}/wchan").read_text(), "the pipe to be full")
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert len(pcapng.packets(output)) == int(errors.split()[0]) >= 1000


@pytest.mark.needs("/dev/full")
@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_a_full_disk_is_said_with_the_file_that_is_on_it(vptd: Vptd, output: tuple[str, ...]) -> None:
    done = vpt(vptd, "capture", "sink", "-w", "/dev/full", *output)
    out, errors = (text.decode() for text in done.communicate(timeout=60))
    message, hint = "/dev/full: No space left on device", "the disk is full: df -h /dev"
    assert done.returncode == 1
    if output:
        told = {"schema": "vpt.error/v1", "code": "error", "message": message, "hint": hint}
        assert (json.loads(out), errors) == (told, "")
    else:
        assert (out, errors.splitlines()) == ("", [f"error: {message}", f"hint: {hint}"])


def test_an_observer_that_is_killed_has_ended_its_capture(vptd: Vptd) -> None:
    running = vpt(vptd, "capture", "sw0", "-w", os.devnull)
    until(lambda: capturing(vptd), "the capture to begin")
    running.kill()
    running.communicate()
    until(lambda: not vptd.call("capture.list")["captures"], "the capture to end")
    assert not list(vptd.paths.runtime.glob("capture-*"))


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["nothing", "-w", os.devnull], 1, "no port or switch 'nothing'", id="unknown"),
        pytest.param(["sw0", "-w", os.devnull, "-f", "tcp port"], 2, "syntax error", id="bad filter"),
        pytest.param(["sw0", "-w", "/nowhere/x"], 2, "can't write /nowhere/x", id="bad file"),
        pytest.param(["sw0", "--json"], 2, "can't both", id="json and packets"),
        pytest.param([], 2, "which port or switch", id="no target"),
    ],
)
def test_what_cannot_be_captured_is_said_with_a_hint(
    vptd: Vptd, arguments: list[str], status: int, says: str
) -> None:
    done = vpt(vptd, "capture", *arguments)
    output, errors = done.communicate(timeout=60)
    assert done.returncode == status
    assert says in (output + errors).decode()
    until(lambda: not vptd.call("capture.list")["captures"], "nothing to be captured")


def test_a_capture_ends_with_vptd_and_says_so(tmp_path: Path) -> None:
    daemon = Vptd()
    daemon.start()
    try:
        daemon.call("switch.add", name="sw0")
        running = vpt(daemon, "capture", "sw0", "-w", str(tmp_path / "x.pcapng"))
        until(lambda: capturing(daemon), "the capture to begin")
        daemon.kill()
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 0
        assert b"vptd ended it" in errors
    finally:
        daemon.close()
