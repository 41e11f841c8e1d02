# SPDX-License-Identifier: BSD-2-Clause
"""The packet generator and its receiver: what is sent is well formed, what is missing is noticed."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pty
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from support.apps import AppPeer, mac
from support.vptd import Vptd, run_vpt, vpt_json
from support.waiting import PATIENCE_S, until
from vpt.cli.gen import gen as cli
from vpt.daemon.transports.unix import open_app
from vpt.dataplane import Engine, Feature, Policy, Receiver, Sender
from vpt.dataplane._native import lib
from vpt.errors import DataplaneError
from vpt.gen import PERCENTILES, Traffic
from vpt.percentile import tells

EVENT_IDX = int(Feature.EVENT_IDX)
STAMP = struct.Struct("<HQQ")  # mark; number and upper half of the run's id; time and lower half
MARK = 0x7670
MARK_GUEST = 0x7671  # the micro guest's, whose time is of another clock
RUN = 0x80000001
LOW48 = (1 << 48) - 1


def text(address: bytes) -> str:
    return address.hex(":")


@pytest.fixture
def pair(no_leaks: None) -> Iterator[tuple[AppPeer, AppPeer]]:
    """A source that waits for room instead of losing packets, and a sink that everybody knows."""
    with Engine(workers=1) as engine:
        switch = engine.add_switch("sw")
        source = AppPeer(switch, "source", policy=Policy.notify(), lossless=True, mac=mac(1))
        sink = AppPeer(switch, "sink", policy=Policy.notify(), mac=mac(2))
        for peer in (source, sink):
            peer.connect(EVENT_IDX)
        yield source, sink
        for peer in (source, sink):
            peer.close()


def sender(source: AppPeer, **options: object) -> Sender:
    return Sender(source.app, dst=text(mac(2)), src=text(mac(1)), **options)  # type: ignore[arg-type]


def run_to_end(send: Sender) -> None:
    while not send.run(0.2):
        pass


def test_every_packet_arrives_numbered_without_gaps(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    send, receive = sender(source, packets=20_000, sizes=(60, 590, 1514), flows=7), Receiver(sink.app)
    thread = threading.Thread(target=run_to_end, args=(send,))
    thread.start()
    while receive.received < 20_000:
        receive.run(0.05)
    thread.join()
    assert (receive.received, receive.lost, receive.late, receive.other) == (20_000, 0, 0, 0)
    assert receive.bytes == send.bytes == 6667 * 60 + 6667 * 590 + 6666 * 1514
    assert (
        receive.latency_us(0) <= receive.latency_us(50) <= receive.latency_us(99) <= receive.latency_us(100)
    )


def test_all_percentiles_of_one_packet_are_its_latency(pair: tuple[AppPeer, AppPeer]) -> None:
    """Not the beginning of the bucket that it is counted in."""
    source, sink = pair
    run_to_end(sender(source, packets=1))
    receive = Receiver(sink.app)
    while not receive.received:
        receive.run(0.05)
    assert len({receive.latency_us(percent) for percent in (0, 10, 50, 99, 100)}) == 1


@pytest.mark.needs("py:scapy")
def test_frames_are_ip_packets_of_the_flows_asked_for(pair: tuple[AppPeer, AppPeer]) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    source, sink = pair
    run_to_end(sender(source, packets=12, sizes=(60, 1000), flows=3))
    ports = []
    for i in range(12):
        frame = sink.recv()
        packet = Ether(frame)
        assert (packet.src, packet.dst) == (text(mac(1)), text(mac(2)))
        assert packet[IP].len == len(frame) - 14 == (46, 986)[i % 2]
        assert IP(bytes(packet[IP])).chksum == packet[IP].chksum
        fresh = packet[IP].copy()
        del fresh.chksum
        assert IP(bytes(fresh)).chksum == packet[IP].chksum
        assert packet[UDP].len == len(frame) - 34
        ports.append(packet[UDP].sport)
        mark, number, _ = STAMP.unpack_from(frame, 42)
        assert (mark, number & LOW48) == (MARK, i)
    assert sorted(set(ports)) == [7000, 7001, 7002]


def stamped(seq: int, run: int = RUN, mark: int = MARK) -> bytes:
    stamp = STAMP.pack(mark, seq | run >> 16 << 48, (run & 0xFFFF) << 48)
    return (mac(2) + mac(1) + b"\x08\x00").ljust(42, b"\0") + stamp


class Delivery:
    """Numbers of one sender and another, to a receiver."""

    def __init__(self, pair: tuple[AppPeer, AppPeer], *, only: int = 0) -> None:
        self._source, sink = pair
        self.receiver = Receiver(sink.app, only=only)

    def __call__(self, *numbers: int, run: int = RUN) -> tuple[int, int, int]:
        """Deliver them; lost, late and duplicate since the beginning."""
        receiver = self.receiver
        for seq in numbers:
            want = receiver.received + receiver.other + 1
            assert self._source.app.send(0, stamped(seq, run))
            while receiver.received + receiver.other < want:
                receiver.run(0.001)
        return receiver.lost, receiver.late, receiver.duplicate


def test_gaps_count_as_lost_until_they_are_filled(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(0, 1, 5) == (3, 0, 0)
    assert deliver(3) == (2, 1, 0)
    assert deliver(2, 4) == (0, 3, 0)


def test_what_was_sent_before_the_receiver_came_is_not_lost(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(43_847, 43_848, 43_850) == (1, 0, 0)


def test_the_first_number_may_come_after_later_ones(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(7, 8, 4) == (2, 1, 0), "5 and 6 are between the lowest and the highest"
    assert deliver(5, 6) == (0, 3, 0)


def test_a_duplicate_brings_back_nothing_that_was_lost(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(0, 1, 5, 1, 5, 5) == (3, 0, 3)
    assert deliver(3, 3) == (2, 1, 4)


def test_a_sender_that_starts_again_loses_nothing_and_hides_no_loss(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(0, 9) == (8, 0, 0)
    assert deliver(0, 1, 2, run=RUN + 1) == (8, 0, 0)
    assert deliver(4, run=RUN + 1) == (9, 0, 0)
    assert deliver(10) == (9, 0, 0), "the first one still runs"


def test_a_number_too_old_to_know_it_stays_lost(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    assert deliver(0, 2, 1025) == (1023, 0, 0)
    assert deliver(2) == (1023, 0, 1), "1024 back from the next"
    assert deliver(1026, 3) == (1022, 1, 1)
    assert deliver(1, 2) == (1022, 3, 1), "whether it came before or not"
    assert deliver(5000) == (1022 + 3973, 3, 1)
    assert deliver(4999, 3977) == (1022 + 3971, 5, 1), "nothing is left of the numbers of 1024 before"


def test_senders_beyond_64_are_not_counted(pair: tuple[AppPeer, AppPeer]) -> None:
    deliver = Delivery(pair)
    for run in range(1, 65):
        deliver(7, run=run)
    assert deliver(0, 100, run=65) == (0, 0, 0)
    assert (deliver.receiver.received, deliver.receiver.other) == (64, 2)
    assert deliver(9, run=1) == (1, 0, 0)


def test_a_receiver_of_one_sender_counts_from_its_number_0_and_no_other(
    pair: tuple[AppPeer, AppPeer],
) -> None:
    deliver = Delivery(pair, only=RUN)
    assert deliver(3, 8, run=RUN + 1) == (0, 0, 0)
    assert deliver(2) == (2, 0, 0)
    assert deliver(5, run=RUN + 1) == (2, 0, 0)
    assert (deliver.receiver.received, deliver.receiver.other) == (1, 3)


def test_each_run_of_a_sender_has_an_id_of_its_own(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    sent = [sender(source, packets=1) for _ in range(2)]
    stamps = []
    for one in sent:
        run_to_end(one)
        _, number, time_ = STAMP.unpack_from(sink.recv(), 42)
        stamps.append(number >> 48 << 16 | time_ >> 48)
    assert stamps == [one.run_id for one in sent]
    assert stamps[0] != stamps[1]


def test_packets_of_others_are_not_counted_as_ours(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    receive = Receiver(sink.app)
    source.app.send(0, stamped(0, mark=0x1234))
    source.app.send(0, mac(2) + mac(1) + b"\x88\xb5")
    while receive.other < 2:
        receive.run(0.01)
    assert (receive.received, receive.lost) == (0, 0)


def test_packets_of_others_have_a_rate(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    receive = Receiver(sink.app)
    for n in (1, 2):
        source.app.send(0, stamped(0, mark=0x1234))
        while receive.other < n:
            receive.run(0.01)
    assert receive.other_pps is not None
    assert receive.other_pps > 0
    assert receive.pps is None


def test_packets_stamped_by_a_guest_are_counted_and_have_no_latency(pair: tuple[AppPeer, AppPeer]) -> None:
    source, sink = pair
    receive = Receiver(sink.app)
    for seq in (0, 1, 4):
        source.app.send(0, stamped(seq, mark=MARK_GUEST))
    while receive.received < 3:
        receive.run(0.01)
    assert (receive.lost, receive.other, receive.timed, receive.latency_us(0)) == (2, 0, 0, None)
    run_to_end(sender(source, packets=1))
    while receive.received < 4:
        receive.run(0.01)
    low = receive.latency_us(0)
    assert receive.timed == 1
    assert low is not None
    assert low == receive.latency_us(100)
    assert low > 0


@pytest.mark.parametrize(
    "options",
    [{"sizes": (59,)}, {"sizes": (1515,)}, {"sizes": ()}, {"flows": 0}, {"flows": 50_001}, {"burst": 0}],
)
def test_what_no_generator_can_send_is_refused(
    pair: tuple[AppPeer, AppPeer], options: dict[str, object]
) -> None:
    with pytest.raises(DataplaneError):
        sender(pair[0], packets=1, **options).run(0.01)


def test_packets_of_a_rate_come_one_by_one_from_the_first_on(pair: tuple[AppPeer, AppPeer]) -> None:
    """A slice of a millisecond at a packet a second has room for the first, and lasts its millisecond."""
    source, sink = pair
    traffic = Traffic(pps=1)
    send = sender(source, packets=2, pps=traffic.pps, burst=traffic.together)
    began = time.monotonic()
    assert not send.run(0.001)
    assert time.monotonic() - began >= 0.001
    assert (send.sent, send.pps) == (1, None)
    receive = Receiver(sink.app)
    while not receive.received:
        receive.run(0.01)
    assert (receive.received, receive.pps, receive.seconds) == (1, None, 0.0)


def test_a_rate_with_a_fraction_is_kept(pair: tuple[AppPeer, AppPeer]) -> None:
    """When the next one is due is what the sender waits for: nothing here waits that long."""
    send = sender(pair[0], packets=2, pps=Traffic(pps=0.4).pps, burst=1)
    assert not send.run(0.001)
    g = send._g
    assert g.due_ns - g.span.first_ns == 2_500_000_000


def test_a_rate_has_no_error_that_adds_up(pair: tuple[AppPeer, AppPeer]) -> None:
    send = sender(pair[0], packets=29, pps=300_000, burst=1)
    run_to_end(send)
    g = send._g
    assert g.due_ns - g.paced_ns == g.paced * 10_000 // 3


@pytest.mark.parametrize(
    ("text", "pps"), [("0.5", 0.5), ("1.9", 1.9), ("2.5M", 2.5e6), ("0.0015k", 1.5), ("0", 0)]
)
def test_the_rate_that_is_given_is_the_one_that_is_sent_at(text: str, pps: float) -> None:
    command = cli.commands["send"]
    context = command.make_context("send", ["--switch", "sw0", "--rate", text])
    assert context.params["rate"] == pytest.approx(pps)


@pytest.mark.parametrize("pps", [math.nan, -1.0, math.inf, 0.0009, 1.1e9])
def test_a_rate_that_no_clock_can_keep_is_refused(pair: tuple[AppPeer, AppPeer], pps: float) -> None:
    with pytest.raises(DataplaneError):
        sender(pair[0], packets=1, pps=pps).run(0.01)


def test_a_rate_is_that_of_the_packets_after_the_first(pair: tuple[AppPeer, AppPeer]) -> None:
    """Two packets at 50 a second are 20 ms apart: at most 50 pps, not the 100 that two in 20 ms would be."""
    source, sink = pair
    send, receive = sender(source, packets=2, pps=50, burst=1), Receiver(sink.app)
    run_to_end(send)
    while receive.received < 2:
        receive.run(0.01)
    assert send.pps is not None
    assert 0 < send.pps <= 51


@pytest.mark.parametrize(
    ("pps", "burst", "together"),
    [(0, 0, 32), (0.5, 0, 1), (1, 0, 1), (100_000, 0, 1), (1_000_000, 0, 10), (10_000_000, 0, 32), (1, 8, 8)],
)
def test_a_burst_is_what_a_rate_makes_due_in_10_us(pps: float, burst: int, together: int) -> None:
    assert Traffic(pps=pps, burst=burst).together == together


def test_latency_buckets_are_in_order_and_six_percent_wide() -> None:
    lower = [lib.vpt_gen_bucket_ns(i) for i in range(900)]
    assert lower == sorted(set(lower))
    assert all(b - a <= max(1, a / 16) for a, b in itertools.pairwise(lower))


@pytest.mark.parametrize(
    ("samples", "told"),
    [(0, []), (1, [0, 100]), (2, [0, 50, 100]), (10, [0, 10, 50, 90, 100]), (100, [0, 10, 50, 90, 99, 100])],
)
def test_a_percentile_takes_as_many_samples_as_have_one_beyond_it(samples: int, told: list[int]) -> None:
    assert [percent for percent in PERCENTILES if tells(percent, samples)] == told


# ---- the command ----


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    yield daemon
    daemon.close()


def test_pair_sends_and_receives_and_leaves_no_port(lab: Vptd) -> None:
    got = vpt_json(lab.paths.runtime, "gen", "pair", "--switch", "sw0", "--count", "500", "--rate", "2k")
    assert got["schema"] == "vpt.gen/v1"
    assert got["sender"]["sent"] == 500
    assert got["receiver"]["received"] + got["receiver"]["lost"] == 500
    assert not lab.call("port.list")["ports"]


def test_of_one_packet_there_is_one_latency_and_no_percentile(lab: Vptd) -> None:
    one = ("gen", "pair", "--switch", "sw0", "--count", "1")
    us = vpt_json(lab.paths.runtime, *one)["receiver"]["latency_us"]
    assert [name for name, value in us.items() if value is not None] == ["p0", "p100"]
    assert re.search(r"latency us: [\d.]+ \(one packet\)$", run_vpt(lab.paths.runtime, *one).stdout.strip())


def test_a_receiver_that_got_nothing_says_so_and_prints_no_latency(lab: Vptd) -> None:
    done = run_vpt(lab.paths.runtime, "gen", "recv", "--switch", "sw0", "--seconds", "0.2")
    assert done.returncode == 0
    assert done.stdout == "received 0, rate n/a; lost 0, late 0, duplicate 0, other 0\n"


def test_a_receiver_of_a_guests_packets_says_why_there_is_no_latency(lab: Vptd) -> None:
    with running(lab, "recv", "--switch", "sw0", "--count", "4", ports=1) as process:
        port = lab.call("port.add", switch="sw0", name="guest", kind="app")
        try:
            with open_app(port["socket"]) as link:
                for seq in (0, 1, 3):
                    assert link.app.send(
                        0, bytes.fromhex("52540067 6e02") + stamped(seq, mark=MARK_GUEST)[6:]
                    )
                stdout, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            lab.call("port.del", name="guest")
    assert re.match(r"received 3 .* lost 1, late 0, duplicate 0, other 0\n", stdout)
    assert stdout.endswith("latency us: n/a (of a guest's clock)\n")


@pytest.fixture
def own() -> Iterator[Vptd]:
    """A vptd for a test that kills it."""
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    yield daemon
    daemon.close()


@contextlib.contextmanager
def running(
    daemon: Vptd, *arguments: str, ports: int, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """`vpt gen ARGUMENTS`, which has its ports in use; killed at the end if it still runs."""
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(daemon.paths.runtime), "gen", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            until(
                lambda: [port["state"] for port in daemon.call("port.list")["ports"]] == ["up"] * ports,
                "the generator's ports to be up",
            )
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "ports", "printed"),
    [
        (["pair", "--switch", "sw0", "--seconds", "600", "--rate", "1k"], 2, ["sent ", "received "]),
        (["send", "--switch", "sw0", "--rate", "1k"], 1, ["sent "]),
        (["recv", "--switch", "sw0"], 1, ["received "]),
    ],
    ids=["pair", "send", "recv"],
)
def test_the_end_of_vptd_is_said_after_what_there_was_until_then(
    arguments: list[str], ports: int, printed: list[str], own: Vptd
) -> None:
    with running(own, *arguments, ports=ports) as process:
        own.kill()
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert [line[: len(word)] for line, word in zip(stdout.splitlines(), printed, strict=False)] == printed
    assert "vptd ended" in stderr
    assert f"vpt --runtime-dir {own.paths.runtime} daemon start" in stderr


@pytest.mark.parametrize(
    ("arguments", "deleted", "printed"),
    [
        (["pair", "--switch", "sw0", "--seconds", "600", "--rate", "1k"], "send", ["sent ", "received "]),
        (["pair", "--switch", "sw0", "--seconds", "600", "--rate", "1k"], "recv", ["sent ", "received "]),
        (["send", "--switch", "sw0"], "send", ["sent "]),
        (["recv", "--switch", "sw0"], "recv", ["received "]),
    ],
    ids=["pair-send", "pair-recv", "send", "recv"],
)
def test_the_end_of_its_port_is_said_after_what_there_was_until_then(
    arguments: list[str], deleted: str, printed: list[str], lab: Vptd
) -> None:
    """Not a success, with packets counted that nobody took."""
    with running(lab, *arguments, ports=len(printed)) as process:
        lab.call("port.del", name=f"gen-{process.pid}-{deleted}")
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert [line[: len(word)] for line, word in zip(stdout.splitlines(), printed, strict=False)] == printed
    assert "the port went away" in stderr
    assert f"vpt --runtime-dir {lab.paths.runtime} port list" in stderr
    assert not lab.call("port.list")["ports"]


def test_a_sender_says_nothing_of_losses_while_it_runs(lab: Vptd) -> None:
    """It has no receiver, or does not know it."""
    terminal, its_end = pty.openpty()
    with (
        os.fdopen(terminal) as lines,
        running(lab, "send", "--switch", "sw0", "--rate", "10", ports=1, stderr=its_end) as process,
    ):
        os.close(its_end)
        line = lines.readline()
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert re.fullmatch(r"sent [\d,]+  [\d.]+ pps\n", line)


@pytest.mark.parametrize("killed", ["vptd", "gen"])
def test_what_a_killed_run_left_behind_is_in_nobodys_way(killed: str, own: Vptd) -> None:
    for arguments in (["pair", "--switch", "sw0", "--seconds", "600"], ["recv", "--switch", "sw0"]):
        with running(own, *arguments, ports=2 if arguments[0] == "pair" else 1) as process:
            if killed == "vptd":
                own.kill()
            else:
                process.kill()
            process.communicate(timeout=PATIENCE_S)
        if killed == "vptd":
            own.start()
        left = own.call("port.list")["ports"]
        assert left, "there is something to clear away"
        done = run_vpt(own.paths.runtime, "gen", "recv", "--switch", "sw0", "--seconds", "0.01")
        assert done.returncode == 0, done.stderr
        assert not own.call("port.list")["ports"]


def test_generators_run_beside_each_other_on_a_switch(lab: Vptd) -> None:
    one = ["pair", "--switch", "sw0", "--seconds", "600", "--rate", "10"]
    with running(lab, *one, ports=2) as process, running(lab, "recv", "--switch", "sw0", ports=3) as receiver:
        got = vpt_json(lab.paths.runtime, "gen", "pair", "--switch", "sw0", "--count", "100", "--rate", "1k")
        assert got["receiver"]["received"] + got["receiver"]["lost"] == 100
        assert len(lab.call("port.list")["ports"]) == 3, "ports in use are left alone"
        again = run_vpt(lab.paths.runtime, "gen", "recv", "--switch", "sw0", "--seconds", "0.01")
        assert again.returncode == 1
        assert "end the one that runs there" in again.stderr
        for ended in (process, receiver):
            ended.terminate()
            ended.communicate(timeout=PATIENCE_S)
            assert ended.returncode == 0
    assert not lab.call("port.list")["ports"]


def test_a_port_of_such_a_name_that_no_generator_made_is_left_alone(lab: Vptd) -> None:
    lab.call("port.add", switch="sw0", name="gen-4000000000-recv", kind="app", mac="52:54:00:00:00:09")
    try:
        assert run_vpt(lab.paths.runtime, "gen", "pair", "--switch", "sw0", "--count", "1").returncode == 0
        assert [port["name"] for port in lab.call("port.list")["ports"]] == ["gen-4000000000-recv"]
    finally:
        lab.call("port.del", name="gen-4000000000-recv")


@pytest.mark.parametrize("direction", ["send", "recv"])
def test_a_port_that_carries_no_packets_is_refused_with_the_way_on(direction: str, lab: Vptd) -> None:
    """Not a thousand packets sent into its ring, and a success."""
    lab.call("port.add", switch="sw0", name="down", kind="app")
    lab.call("port.set", name="down", link="down")
    lab.call("port.add", switch="sw0", name="null", kind="null")
    try:
        ended = {
            name: run_vpt(lab.paths.runtime, "gen", direction, "--port", name, "--count", "1")
            for name in ("down", "null")
        }
    finally:
        lab.call("port.del", name="down")
        lab.call("port.del", name="null")
    assert (ended["down"].returncode, ended["null"].returncode) == (1, 2)
    assert "the link of port down is down" in ended["down"].stderr
    assert f"vpt --runtime-dir {lab.paths.runtime} port set down --link up" in ended["down"].stderr
    assert "is of kind null" in ended["null"].stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["pair", "--switch", "sw0"], 2),
        (["send", "--count", "1"], 2),
        (["send", "--switch", "sw0", "--port", "x"], 2),
        (["send", "--switch", "sw0", "--size", "59"], 2),
        (["send", "--switch", "sw0", "--rate", "fast"], 2),
        (["send", "--switch", "sw0", "--rate", "0.0009"], 2),
        (["send", "--switch", "sw0", "--rate", "nan"], 2),
        (["pair", "--switch", "sw0", "--seconds", "nan"], 2),
        (["pair", "--switch", "sw0", "--count", "99999999999999999999"], 2),
        (["send", "--switch", "none", "--count", "1"], 1),
        (["recv", "--port", "none", "--count", "1"], 1),
    ],
)
def test_what_it_cannot_do_it_says_with_a_hint(lab: Vptd, arguments: list[str], status: int) -> None:
    done = run_vpt(lab.paths.runtime, "gen", *arguments)
    assert done.returncode == status
    assert "Error" in done.stderr or "hint:" in done.stderr
    assert not lab.call("port.list")["ports"]
