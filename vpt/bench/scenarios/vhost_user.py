# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user: vptd and dpdk-testpmd (net_vhost) as back-ends of one front-end, testpmd's net_virtio_user.

Two CPUs: the back-end has the last, the front-end and this program the first. All processes of a point are
there from its beginning; who is not being measured sleeps. The rate is the front-end's own count over
its own clock, so that both back-ends are held against the same instrument.

guest-host: the front-end transmits as fast as it can, the back-end consumes; vptd's sink reads every byte,
testpmd copies (rxonly). guest-guest: the front-end has two devices and sends each packet that it receives by
the other one, so a fixed number of packets goes round both ways, through vptd's switch (MAC learning, one
copy), between two ports of testpmd (`io`, or `mac`, which writes addresses, too; two copies), or through a
bridge of Open vSwitch with DPDK, where it is installed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar

from vpt.bench.programs import DPDK, OPEN_VSWITCH
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._instructions import Instructions
from vpt.bench.scenarios._openvswitch import OpenVSwitch
from vpt.bench.scenarios._ports import mac_of, other_cpus, undisturbed, worker_cpu
from vpt.bench.scenarios._testpmd import Testpmd, memory_is_huge
from vpt.bench.scenarios._vhost_backs import BackEnd, Moves, Vptd, cpu_ns, testpmd_backs
from vpt.dataplane import line_ns
from vpt.errors import MissingError, TimeoutExpired, VptError
from vpt.processor import cpuinfo

__all__ = ["SCENARIO"]

_BYTES = (64, 512, 1518)
_MRG = {"yes": "mrg_rxbuf=1", "no": "mrg_rxbuf=0"}


@dataclass(frozen=True, slots=True)
class _Ring:
    """A kind of ring, as net_virtio_user is told of it. mrg and sizes: what it is measured with.

    vectorized: with the front-end's vector instructions, where DPDK has such a path: then it is not the
    front-end that both wait for. For split rings that is the path of received packets only.
    flag: of an x86 processor, without which DPDK takes the usual path and does not say so.
    """

    options: str
    mrg: Sequence[str] = tuple(_MRG)
    sizes: Sequence[int] = _BYTES
    vectorized: bool = False
    flag: str = ""

    @property
    def measurable(self) -> bool:
        """On this processor?"""
        flags = cpuinfo().get("flags")  # no other architecture has a choice of widths
        return not (self.flag and flags) or self.flag in flags.split()


_RINGS = {
    "split": _Ring("in_order=0"),
    "split in order": _Ring("in_order=1"),
    "packed": _Ring("packed_vq=1,in_order=0"),
    "packed in order": _Ring("packed_vq=1,in_order=1"),
    "split, vectorized": _Ring("in_order=0,vectorized=1", ("no",), _BYTES[:1], vectorized=True),
    "packed in order, vectorized": _Ring(
        "packed_vq=1,in_order=1,vectorized=1", sizes=_BYTES[:1], vectorized=True, flag="avx512f"
    ),
}
#: DPDK keeps to 256 bits unless it is told otherwise.
_WIDE = "--force-max-simd-bitwidth=512"
_HOST, _GUEST = "guest-host", "guest-guest"
#: testpmd's forwarding modes, by the name under which each is compared.
_MODES = {_HOST: {"testpmd": "rxonly"}, _GUEST: {"testpmd": "io", "testpmd mac": "mac"}}
_RING_SIZE = 256
_SECONDS = 0.3
_SETTLE_S = 0.03
_FIRST_S = 10.0
#: As long as this without a packet, and those that went round have been lost.
_LOST_S = 1.0
#: Packets that go round, per direction, in bursts of 32: enough that no side waits, and with vpt's 64, whose
#: descriptors it gives back when they have arrived, no more than a ring holds: the front-end would drop them.
_BURSTS = 6
#: More than enough for the rest of a ring.
_DRAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class _Point:
    """What distinguishes one point from the others."""

    path: str
    ring: str
    mrg: str
    size: int

    @property
    def words(self) -> str:
        """For a message."""
        return f"{self.path}, {self.ring}, MRG_RXBUF {self.mrg}, {self.size} bytes"

    @property
    def usual(self) -> bool:
        """One of those that are measured unless all are asked for: each ring, and each length."""
        if self.mrg != "yes" or _RINGS[self.ring].vectorized:
            return False
        return self.size == min(_BYTES) or self.ring == "packed"

    @property
    def device(self) -> str:
        """The values of a virtio device of this kind."""
        return f"queue_size={_RING_SIZE},{_RINGS[self.ring].options},{_MRG[self.mrg]}"

    @property
    def devices(self) -> int:
        """Virtio devices of the front-end."""
        return 1 if self.path == _HOST else 2


class _FrontEnd:
    """The generator, on the sockets of one back-end."""

    def __init__(self, stack: ExitStack, point: _Point, cpu: int, sockets: Sequence[str]) -> None:
        self.sends_only = point.path == _HOST
        self._first = "start" if point.path == _HOST else f"start tx_first {_BURSTS}"
        self._start = self._first
        devices = [
            f"net_virtio_user{i},path={path},mac={mac_of(2 + i)},{point.device}"
            for i, path in enumerate(sockets)
        ]
        peers = [mac_of(1)] if point.path == _HOST else [mac_of(3), mac_of(2)]
        options = [f"--eth-peer={i},{mac}" for i, mac in enumerate(peers)]
        options += [f"--txpkts={point.size}", f"--forward-mode={'txonly' if point.path == _HOST else 'io'}"]
        eal = [_WIDE] if _RINGS[point.ring].vectorized else []
        self._pmd = stack.enter_context(Testpmd("dpdk-testpmd as front-end", cpu, devices, options, eal))
        self.process = self._pmd.pid
        self.moving, self.ahead = self._pmd.threads()

    def start(self) -> None:
        """Send. Packets that go round are put in once: they stay in the rings from one start to the next."""
        self._pmd.ask(self._start)
        self._start = "start"

    def start_over(self) -> None:
        """The same, with nothing of what was sent before."""
        self._pmd.stop()
        self._start = self._first
        self.start()

    def tell(self) -> str:
        """What it has counted in all, for an error's message."""
        return self._pmd.tell()

    def stop(self) -> int:
        """Send no more; how many there were."""
        return self._pmd.stop()[1]

    def rate(self) -> float:
        """Packets per second since this was asked for last: those sent, or those that came back."""
        return sum(each.tx if self.sends_only else each.rx for each in self._pmd.rates().values())


def _await_packets(front: _FrontEnd) -> bool:
    """Until packets flow: on a busy host a thread may wait for its turn longer than a measurement takes.

    A back-end that was not ready when they were put in has dropped them, and nobody will ever send one again:
    then they are put in once more. A ring that stands still is full, and takes no more by that.
    Not with real-time priority: testpmd's `stop` spins until its thread has stopped, on the same CPU.
    """
    lost = _LOST_S
    began = time.monotonic()
    while (waited := time.monotonic() - began) < _FIRST_S:
        time.sleep(_SETTLE_S)
        if front.rate():
            return True
        if waited > lost and not front.sends_only:
            front.start_over()
            lost += _LOST_S
    return False


def _why_none(
    front: _FrontEnd, back: BackEnd, cpu: Sequence[int], point: _Point, *, any_before: bool
) -> TimeoutExpired:
    """No packet came: what either side has seen, and whether its thread could run at all."""
    what = "no packet came" if not any_before else "packets came and then no more"
    sides: tuple[Moves, ...] = (front, back)
    ms = [(cpu_ns(who) - before) / 1e6 for who, before in zip(sides, cpu, strict=True)]
    return TimeoutExpired(
        f"{what} through the back-end at {point.words}\n"
        f"front-end: {front.tell()}; {ms[0]:.0f} ms of CPU time\n"
        f"back-end: {back.tell()}; {ms[1]:.0f} ms of CPU time",
        hint="who had no CPU time waited for another process's real-time threads: ps -eLo tid,cls,rtprio,comm"
        " shows them; who sent and was not heard has lost packets",
    )


def _measure(
    front: _FrontEnd, back: BackEnd, point: _Point, settings: Settings, instructions: Instructions | None
) -> Measured:
    """Let packets flow, and read the front-end's clock and counts at both ends of a while.

    instructions: the back-end's. Those of looking for packets in vain are counted, too.
    """
    cpu = [cpu_ns(front), cpu_ns(back)]
    back.start()
    front.start()
    pps = 0.0
    if flowed := _await_packets(front):
        with undisturbed(front.moving | back.moving, settings.realtime, front.ahead | back.ahead):
            time.sleep(_SETTLE_S)
            front.rate()
            began, before = time.monotonic(), instructions.read() if instructions else 0
            time.sleep(_SECONDS * settings.scale)
            seconds, after = time.monotonic() - began, instructions.read() if instructions else 0
            pps = front.rate()
    sent = front.stop()
    time.sleep(_DRAIN_S)
    values = back.stop()
    if not pps:
        raise _why_none(front, back, cpu, point, any_before=flowed)
    if instructions:
        values["instructions"] = (after - before) / (pps * seconds)
    if point.path == _HOST:
        values["missing"] = float(sent - back.taken())
    return Measured({"rate": pps / 1e6, "ns": 1e9 / pps, "gbit": 8 * point.size * pps / 1e9, **values})


def _with_hint(why: VptError) -> str:
    return f"{why} ({why.hint})" if why.hint else str(why)


def _beside_the_line(measure: Runnable, front: int, back: int) -> Measured:
    """Also what a cache line takes from one's CPU to the other's, on which all rates depend.

    A hypervisor may move the two apart and together again in the middle of a run.
    """
    measured = measure()
    measured.values["line"] = line_ns(front, back)
    return measured


class _VhostUser(Scenario):
    _missing = _uncounted = ""

    name: ClassVar[str] = "vhost-user"
    title: ClassVar[str] = "vhost-user back-ends under the same front-end, DPDK's"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="rate", unit="Mpps", better="higher", title="Rate"),
        Metric(name="ns", unit="ns/packet", better="lower", title="Time"),
        Metric(name="gbit", unit="Gbit/s", better="higher", title="Throughput"),
        Metric(name="missing", unit="packets", better="lower", kind="count", title="Sent but not consumed"),
        Metric(name="instructions", unit="per packet", better="lower", title="Instructions"),
        Metric(name="batch", unit="packets", better="neither", title="Taken at a time"),
        Metric(name="line", unit="ns", better="neither", title="Cache line, CPU to CPU"),
    )
    reference: ClassVar[str | None] = "testpmd"
    programs: ClassVar[Sequence[str]] = (DPDK, OPEN_VSWITCH)
    plots: ClassVar[Sequence[Plot]] = tuple(
        Plot(
            title=f"{path}, 64 bytes",
            x="ring",
            y=["rate"],
            x_label="ring, mergeable buffers",
            y_label="Mpps",
            style="bar",
            where={"path": path, "bytes": 64, "mrg": "yes"},
        )
        for path in (_HOST, _GUEST)
    )

    def points(self, settings: Settings) -> Sequence[Params]:
        kinds = [
            (name, mrg, size)
            for name, ring in _RINGS.items()
            if ring.measurable
            for mrg, size in product(ring.mrg, ring.sizes)
        ]
        every = (_Point(path, *kind) for path, kind in product((_HOST, _GUEST), kinds))
        return [
            {"path": p.path, "ring": p.ring, "mrg": p.mrg, "bytes": p.size}
            for p in every
            if settings.full or p.usual
        ]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        point = _Point(str(params["path"]), str(params["ring"]), str(params["mrg"]), int(params["bytes"]))
        cpu = worker_cpu(settings.cpus)
        with other_cpus(settings.cpus), ExitStack() as stack:
            here = min(os.sched_getaffinity(0))
            vptd: dict[str, BackEnd] = {
                "vpt": Vptd(stack, cpu, point.devices, sink=point.path == _HOST),
            }
            backs = vptd | testpmd_backs(stack, cpu, point.devices, _MODES[point.path])
            if point.path == _GUEST:
                backs |= self._openvswitch(stack, cpu, here, point)
            sockets = {tuple(back.sockets) for back in backs.values()}
            fronts = {paths: _FrontEnd(stack, point, here, paths) for paths in sockets}
            yield {
                name: partial(
                    _beside_the_line,
                    partial(
                        _measure, fronts[tuple(back.sockets)], back, point, settings, self._count(stack, back)
                    ),
                    here,
                    cpu,
                )
                for name, back in backs.items()
            }

    def _count(self, stack: ExitStack, back: BackEnd) -> Instructions | None:
        """Where the processor counts; else a note says why they are not there."""
        try:
            return Instructions(stack, back.moving)
        except MissingError as why:
            self._uncounted = f"Instructions per packet are not counted: {_with_hint(why)}."
            return None

    def _openvswitch(self, stack: ExitStack, cpu: int, here: int, point: _Point) -> dict[str, BackEnd]:
        """Where it is installed and starts; else a note says why it is not there."""
        try:
            return {"Open vSwitch": OpenVSwitch(stack, cpu, here, point.devices)}
        except (MissingError, TimeoutExpired) as why:
            self._missing = f"Not compared with Open vSwitch: {_with_hint(why)}."
            return {}

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        pages = "huge pages" if memory_is_huge() else "pages of 4 KiB (no huge pages are free)"
        return [
            *filter(None, (self._missing, self._uncounted)),
            f"Rates are the front-end's. Its memory, which both back-ends map, is of {pages}.",
            "vpt takes up to 64 packets at a time: where it took fewer, it had emptied the ring, and waited"
            " for the front-end.",
            "Rates depend on what a cache line takes from CPU to CPU, and a hypervisor may change that in the"
            " middle of a run.",
        ]


SCENARIO = _VhostUser()
