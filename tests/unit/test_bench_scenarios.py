# SPDX-License-Identifier: BSD-2-Clause
"""Scenarios vhost-user and control-plane: testpmd's words, the points, the operations."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from support.libvirt import DRIVER
from vpt.bench.micro import Machine, MicroGuest, Order, Role
from vpt.bench.micro._desk import Desk
from vpt.bench.result import Point, Sample, Variant
from vpt.bench.scenario import Measured, Settings
from vpt.bench.scenarios import _testpmd, control_plane, exits, vhost_user, vhost_user_latency
from vpt.bench.scenarios._ports import threads_of, undisturbed
from vpt.bench.scenarios._rig import rig
from vpt.bench.scenarios._testpmd import (
    Rates,
    huge_pages_mib,
    parse_counts,
    parse_rates,
    parse_totals,
)
from vpt.bench.scenarios._vhost_backs import Vptd, cpu_ns
from vpt.daemon.models import PortAdd, PortName
from vpt.daemon.runtime import private
from vpt.errors import ConflictError, GuestError
from vpt.exits.model import Quantity, Tier
from vpt.exits.session import Session
from vpt.exits.sources import Source, Units
from vpt.exits.target import Vm
from vpt.qemu import Accel

STATISTICS = """show port stats all

  ######################## NIC statistics for port 0  ########################
  RX-packets: 717393     RX-missed: 0          RX-bytes:  45913152
  RX-errors: 0
  RX-nombuf:  0
  TX-packets: 717393     TX-errors: 0          TX-bytes:  45913152

  Throughput (since last show)
  Rx-pps:       386681          Rx-bps:    197980928
  Tx-pps:       389325          Tx-bps:    199334496
  ############################################################################

  ######################## NIC statistics for port 1  ########################
  RX-packets: 0          RX-missed: 0          RX-bytes:  0
  RX-errors: 0
  RX-nombuf:  0
  TX-packets: 0          TX-errors: 0          TX-bytes:  0

  Throughput (since last show)
  Rx-pps:            0          Rx-bps:            0
  Tx-pps:            7          Tx-bps:         3584
  ############################################################################
testpmd> """

STOPPED = """
  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 12             RX-dropped: 0             RX-total: 12
  TX-packets: 34             TX-dropped: 5             TX-total: 39
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 1048579        RX-dropped: 0             RX-total: 1048579
  TX-packets: 56             TX-dropped: 34782429      TX-total: 35831008
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
"""


def test_rates_are_told_apart_by_port() -> None:
    assert parse_rates(STATISTICS) == {0: Rates(386681, 389325), 1: Rates(0, 7)}


def test_counts_are_told_apart_by_port() -> None:
    counts = parse_counts(STATISTICS)
    assert counts.keys() == {0, 1}
    assert counts[1] == (0, 0)


def test_totals_are_those_of_all_ports() -> None:
    assert parse_totals(STOPPED) == (1048579, 56)
    assert parse_totals(STATISTICS) is None


def test_huge_pages_are_counted_by_their_size() -> None:
    assert huge_pages_mib("MemTotal: 1 kB\nHugePages_Total:     3\nHugepagesize:    2048 kB\n") == 6
    assert huge_pages_mib("MemTotal: 1 kB\n") == 0


def test_full_has_every_combination_and_the_short_set_each_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user, "cpuinfo", lambda: {"flags": "fpu avx512f"})
    full = vhost_user.SCENARIO.points(Settings(full=True))
    short = vhost_user.SCENARIO.points(Settings())
    assert len(full) == 2 * (4 * 2 * 3 + 3)  # a vectorized front-end: at 64 bytes
    assert all(point in full for point in short)
    usual = {name for name, ring in vhost_user._RINGS.items() if not ring.vectorized}
    assert {p["ring"] for p in short} == usual
    assert {p["path"] for p in short} == {"guest-host", "guest-guest"}


@pytest.mark.parametrize(
    ("cpuinfo", "packed"), [({"flags": "fpu avx2"}, False), ({"flags": "avx512f"}, True), ({}, True)]
)
def test_a_front_end_that_would_silently_not_be_vectorized_is_no_point(
    cpuinfo: dict[str, str], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_user, "cpuinfo", lambda: cpuinfo)
    rings = {p["ring"] for p in vhost_user.SCENARIO.points(Settings(full=True))}
    assert "split, vectorized" in rings
    assert ("packed in order, vectorized" in rings) is packed


def test_what_the_user_keeps_elsewhere_is_neither_loaded_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment names the user's own vptd, which a benchmark or a demo is none of."""
    monkeypatch.setenv("VPT_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("VPT_STATE_DIR", str(tmp_path / "state"))
    with ExitStack() as stack:
        Vptd(stack, 0, 1)
        with rig(Settings(), Accel("tcg", "no guest here")):
            assert list(tmp_path.iterdir()) == []
    assert private(tmp_path / "own").state == tmp_path / "own" / "state"


@pytest.mark.native  # it starts a libvirtd where there is one
def test_control_plane_times_every_operation() -> None:
    with control_plane.SCENARIO.session({"ports": 3}, Settings()) as variants:
        for _ in range(2):
            measured: list[Measured] = [run() for run in variants.values()]
            assert all(m.values["ms"] > 0 for m in measured)
    assert {"vpt --help", "vpt ls", "vpt port add"} <= variants.keys()


@pytest.mark.native
@pytest.mark.needs("libvirtd", "qemu-system-x86_64", "py:libvirt", DRIVER)
def test_attaching_to_a_domain_is_measured_beside_libvirt_alone_and_leaves_nothing() -> None:
    """Three times, because a port or a device that stays would be in the way of the next."""
    if os.geteuid():
        pytest.skip("needs root: libvirtd has fixed folders")
    before = set(Path(tempfile.gettempdir()).glob("vpt-ld-*"))
    with control_plane.SCENARIO.session({"ports": 1}, Settings()) as variants:
        run = variants["vpt attach to a domain"]
        measured = [run().values for _ in range(3)]
    assert all(m["beyond"] == m["ms"] - m["libvirt"] and m["libvirt"] > 0 for m in measured)
    assert set(Path(tempfile.gettempdir()).glob("vpt-ld-*")) <= before


def test_without_libvirt_a_note_says_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "libvirtd" else program(name))
    scenario = type(control_plane.SCENARIO)()
    with scenario.session({"ports": 1}, Settings()) as variants:
        assert "vpt attach to a domain" not in variants
    (note,) = [note for note in scenario.notes(Settings(), []) if "NOT MEASURED" in note]
    assert "apt-get install" in note


@pytest.mark.parametrize(
    ("variant", "metric", "most"),
    [
        ("vpt --help", "ms", 150),
        ("vpt ls", "ms", 250),
        ("vpt apply of 100 ports", "ms", 2000),
        ("vpt attach to a domain", "beyond", 1000),
    ],
)
def test_what_an_operator_waits_for_is_held_against_its_bound(variant: str, metric: str, most: int) -> None:
    for value, said in ((most - 1.0, "Reached"), (most + 1.0, "MISSED")):
        sample = Sample(repetition=0, at=0, values={metric: value})
        point = Point(params={}, variants=[Variant(name=variant, samples=[sample])])
        assert control_plane.SCENARIO.notes(Settings(), [point])[-1].startswith(f"{said}: {variant} takes")


@pytest.mark.parametrize(
    ("p99", "cpu", "verdicts"),
    [(0.4, 10, ["Reached", "Reached"]), (0.4, 99, ["Reached", "MISSED"]), (2, 10, ["MISSED", "Reached"])],
)
def test_a_low_load_is_held_against_testpmd_in_latency_and_cpu(
    p99: float, cpu: float, verdicts: list[str]
) -> None:
    """Each for itself: who spins all the time has the one, who sleeps too long the other."""
    values = {"vpt adaptive": {"p99": p99, "cpu": cpu}, "testpmd": {"p99": 0.5, "cpu": 100.0}}
    variants = [
        Variant(name=name, samples=[Sample(repetition=i, at=0, values=v) for i in range(7)])
        for name, v in values.items()
    ]
    point = Point(params={"pps": 500_000, "arrival": "on-off"}, variants=variants)
    lines = vhost_user_latency.SCENARIO.notes(Settings(), [point])[-2:]
    assert [line.partition(":")[0] for line in lines] == verdicts
    assert all("at 500000 packets/s, on-off, adaptive's" in line for line in lines)
    slower = Point(params={"pps": 1000, "arrival": "even"}, variants=variants)
    assert len(vhost_user_latency.SCENARIO.notes(Settings(), [slower])) == 1  # nothing is claimed there


@pytest.mark.parametrize("scale", [0.01, 0.2, 1.0])
def test_packets_that_come_on_and_off_are_as_many_as_those_that_come_evenly(scale: float) -> None:
    """In whole periods, one at least."""
    even, on_off = (
        vhost_user_latency._Load.of({"pps": 500_000, "arrival": a}, scale) for a in ("even", "on-off")
    )
    seconds = max(scale, 0.1)
    assert even.pps * even.on * even.periods == pytest.approx(500_000 * scale)
    assert on_off.pps * on_off.on * on_off.periods == pytest.approx(500_000 * seconds)
    assert on_off.period * on_off.periods == pytest.approx(seconds)


def test_a_worker_that_never_sleeps_used_no_more_than_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPU time takes a while to read, during which it goes on."""
    now = itertools.count(step=1000)
    clock = SimpleNamespace(monotonic_ns=lambda: next(now))
    rig = SimpleNamespace(worker_ns=lambda: next(now), workers=set)
    guest = SimpleNamespace(vcpu_tid=1, run=lambda order: order)
    bench = exits._Bench.__new__(exits._Bench)
    vars(bench).update(_rig=rig, _realtime=False, sender=SimpleNamespace(guest=guest))
    monkeypatch.setattr(exits, "time", clock)
    _, percent = bench._timed(Order(role=Role.GEN), bench.sender)
    assert 0 < percent < 100


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended and was waited for: it has no folder in /proc any more."""
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("waited_for", [False, True])
def test_of_a_guest_whose_qemu_was_killed_it_is_said_so(tmp_path: Path, gone: int, waited_for: bool) -> None:
    guest = MicroGuest(Machine())
    guest._work = tempfile.TemporaryDirectory(dir=tmp_path)
    guest._desk_or_none = Desk()
    pid = gone if waited_for else os.getpid()
    guest._process = SimpleNamespace(pid=pid, returncode=-9, poll=lambda: -9)  # type: ignore[assignment]
    with pytest.raises(GuestError, match="QEMU ended with status -9") as caught:
        _ = guest.vcpu_tid
    assert "measure again" in str(caught.value.hint)


def test_a_guest_that_ends_while_it_is_given_its_cpu_is_no_wrong_use(
    tmp_path: Path, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = MicroGuest(Machine())
    guest._work = tempfile.TemporaryDirectory(dir=tmp_path)
    guest._desk_or_none = Desk()
    guest._process = SimpleNamespace(pid=gone, returncode=-9, poll=lambda: -9)  # type: ignore[assignment]
    monkeypatch.setattr(MicroGuest, "vcpu_tid", gone)
    with pytest.raises(GuestError, match="QEMU ended with status -9"):
        guest._pin(0)


def test_of_a_process_that_is_measured_and_ends_it_is_said_so(gone: int) -> None:
    """An error that the runner notes, and goes on after."""
    with pytest.raises(ConflictError, match="a thread that moves packets has ended"):
        cpu_ns(SimpleNamespace(process=gone, moving={gone}))
    with pytest.raises(ConflictError, match="testpmd has ended"):
        threads_of(gone, "testpmd")


def test_a_thread_that_ends_is_an_error_with_real_time_priority_too(
    gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not permitted everywhere: as if it were, for all threads that are there."""

    def give(tid: int, policy: int, param: os.sched_param) -> None:
        if tid == gone:
            raise ProcessLookupError

    monkeypatch.setattr(os, "sched_setscheduler", give)
    with pytest.raises(ConflictError, match="has ended"), undisturbed({gone}, realtime=True):
        pass
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    with pytest.raises(GuestError, match="gone"), undisturbed({gone}, realtime=True):  # noqa: PT012
        monkeypatch.setattr(os, "sched_setscheduler", give)
        raise GuestError("gone")


def test_a_testpmd_that_was_killed_is_an_error_that_says_so(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text("its last words")
    pipe = SimpleNamespace(write=Mock(), flush=Mock(side_effect=BrokenPipeError))
    pmd = _testpmd.Testpmd.__new__(_testpmd.Testpmd)
    vars(pmd).update(_what="testpmd", _output=output, _seen=0, _process=SimpleNamespace(stdin=pipe))
    with pytest.raises(ConflictError, match=r"testpmd has ended; it said last:\nits last words"):
        pmd.ask("start")


def test_instructions_per_packet_are_counted_or_it_is_said_why_not() -> None:
    scenario = type(vhost_user.SCENARIO)()
    with ExitStack() as stack:
        counter = scenario._count(stack, Mock(moving={threading.get_native_id()}))
        notes = "\n".join(scenario.notes(Settings(), []))
        if counter is None:
            assert "Instructions per packet are not counted: this processor counts no" in notes
        else:
            assert counter.read() > 0
            assert "not counted" not in notes


class _Loses(Mock):
    """A front-end (a back-end, too) whose first packets are lost: no real one does that at will."""

    sends_only = False
    moving = ahead = frozenset[int]()

    def rate(self) -> float:
        return 0.0 if self.put_in_again is None else 1e6

    def start_over(self) -> None:
        self.put_in_again = os.sched_getscheduler(0)


def test_lost_packets_are_put_in_again_without_real_time_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """To stop, testpmd's commands spin for its worker, which shares their CPU and would never get it."""
    if os.geteuid():
        pytest.skip("needs root, for real-time priority")
    monkeypatch.setattr(vhost_user, "_LOST_S", 0.0)
    monkeypatch.setattr(vhost_user, "cpu_ns", lambda _: 0)
    front = _Loses(put_in_again=None)
    point = vhost_user._Point("guest-guest", "split", "yes", 64)
    back = _Loses(put_in_again=None)
    back.stop.return_value = {}
    measured = vhost_user._measure(front, back, point, Settings(realtime=True, scale=0.01), None)
    assert front.put_in_again is not None
    assert front.put_in_again & os.SCHED_FIFO == 0
    assert measured.values["rate"] == 1.0


class _Dispatches(Source):
    """What QEMU's trace counts; so many more with each reading."""

    name = "given"

    def __init__(self, each: int, quantity: Quantity) -> None:
        self.quantity = quantity
        self._read = itertools.count(step=each) if each else itertools.repeat(7)

    def read(self) -> Units:
        return {"io": {self.quantity.value: next(self._read)}}


def _sent(each: int, quantity: Quantity) -> tuple[dict[str, float], list[str]]:
    """Two repetitions of a run whose guest sends 100 packets and kicks for each; notes of the scenario."""
    report = SimpleNamespace(packets=100, drained=1.0, kicks_per_packet=1.0, mpps=1.0)
    guest = Mock(guest=Mock(vcpu_tid=0, **{"run.return_value": report}))
    made = Mock(**{
        "guest.return_value": guest, "port_counters.side_effect": lambda _: Counter(),
        "worker_counters.side_effect": Counter, "workers.return_value": set(), "worker_ns.return_value": 0,
    })  # fmt: skip
    scenario = type(exits.SCENARIO)()
    session = Session(Vm("vm", Tier.TCG, "because"), _Dispatches(each, quantity), None)
    bench = exits._Bench(made, {"device": "passthrough", "load": "saturation"}, Settings())
    scenario._note(session, Accel("tcg", "no guest here"))
    for _ in range(2):
        values = scenario._run(bench, session, "notify").values
    return values, [note for note in scenario.notes(Settings(), []) if "count of" in note]


def test_no_dispatches_where_ioeventfds_take_the_kicks_are_no_zero() -> None:
    values, notes = _sent(0, Quantity.DISPATCHES)
    assert "dispatches" not in values
    assert values["kicks"] == 1
    assert notes == ["No count of dispatches in 2 repetitions: QEMU's ioeventfds take the kicks before."]


def test_dispatches_that_were_counted_are_divided_by_packets() -> None:
    values, notes = _sent(50, Quantity.DISPATCHES)
    assert values["dispatches"] == 0.5
    assert notes == []


def test_exits_that_were_not_counted_are_left_out_and_why_is_said_once() -> None:
    values, (note,) = _sent(50, Quantity.EXITS)
    assert "exits" not in values
    assert note == "No count of exits in 2 repetitions: irq_exits is n/a."


def test_an_echo_that_was_not_heard_of_is_not_left_where_it_gets_what_the_sink_does() -> None:
    """It would answer all of it, and the next repetition's pings would be lost in that."""
    with rig(Settings(), Accel("tcg", "no guest here")) as made:
        made._daemon.add_port(PortAdd(name="echo", switch="bench", kind="app"))

        def link() -> str:
            return str(made._daemon.call(lambda d: d.ports.show(PortName(name="echo"))).link)

        links = []

        def ping() -> None:
            with made.linked("echo"):
                links.append(link())
                raise GuestError("of 1 pings none came back")

        with pytest.raises(GuestError):
            ping()
        assert [*links, link()] == ["up", "down"]
