# SPDX-License-Identifier: BSD-2-Clause
"""App ports with somebody on them: what the scenarios that need a switch have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vpt.bench.machine import two_cpus
from vpt.dataplane import (
    App,
    Engine,
    EventType,
    Kind,
    Policy,
    Port,
    RegionOptions,
    Switch,
    region_create,
    vec_count,
)
from vpt.errors import ConflictError, MissingError, TimeoutExpired
from vpt.processor import patience

__all__ = [
    "Ends",
    "app_port",
    "mac_of",
    "other_cpus",
    "tasks",
    "thread_name",
    "threads_of",
    "undisturbed",
    "while_it_lives",
    "worker_cpu",
]

_HANDSHAKE_S = patience(5.0)


def mac_of(i: int) -> str:
    """A locally administered unicast address per port."""
    return f"52:54:00:00:{i >> 8:02x}:{i & 255:02x}"


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of an app port."""

    port: Port
    app: App
    mac: str


def _eventfds(stack: ExitStack, count: int) -> list[int]:
    fds = []
    for _ in range(count):
        fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        stack.callback(os.close, fds[-1])
    return fds


@contextmanager
def app_port(
    engine: Engine,
    switch: Switch,
    index: int,
    policy: Policy,
    num_slots: int = 0,
    *,
    features: int = 0,
    lossless: bool = False,
) -> Iterator[Ends]:
    """A port with an application on it that has finished its handshake. No offloads: frames are plain.

    features: those that the application accepts.
    """
    name, mac = f"p{index}", mac_of(index)
    opts = RegionOptions(name=name, num_slots=num_slots, mac=mac)
    with ExitStack() as stack:
        region = region_create(opts)
        stack.callback(os.close, region)
        kicks, intrs = _eventfds(stack, vec_count(1)), _eventfds(stack, vec_count(1))
        port = switch.add_port(name, Kind.APP, policy=policy, mac=mac, lossless=lossless)
        stack.callback(port.delete)
        port.ring_attach(region, opts, kicks, intrs)
        app = stack.enter_context(App(region, kicks, intrs, features))
        _handshake(engine, port, app)
        yield Ends(port, app, mac)


def _handshake(engine: Engine, port: Port, app: App) -> None:
    """Be the control plane while the application goes through its steps."""
    end = time.monotonic() + _HANDSHAKE_S
    while not app.step():
        for event in engine.events():
            if event.type is EventType.STATUS and event.port_id == port.id:
                port.ring_status()
        if time.monotonic() > end:
            raise TimeoutExpired(f"the handshake on port {port.name} did not end within {_HANDSHAKE_S:g} s")
        time.sleep(0)


def worker_cpu(cpus: Sequence[int]) -> int:
    """The CPU for the worker: the last of those it may have. The measuring thread goes to the first."""
    return two_cpus(cpus, "this scenario needs a CPU for the worker and one for itself")[-1]


@contextmanager
def other_cpus(cpus: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread off the worker's CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, (set(cpus) or before) - {worker_cpu(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def undisturbed(threads: Iterable[int], realtime: bool, ahead: Iterable[int] = ()) -> Iterator[None]:
    """Real-time priority for these threads and the caller's, if asked for; for as long as something is timed.

    The threads in `ahead`, which sleep most of the time, go before the others, and the caller before all:
    where one of those never leaves its CPU, its commander still has to get there. As long as it took, others
    get the CPUs after it.
    """
    if not realtime:
        yield
        return
    everybody = {0: 3} | dict.fromkeys(ahead, 2) | dict.fromkeys(threads, 1)
    began = time.monotonic()
    try:
        with while_it_lives("a thread that is measured"):
            for tid, priority in everybody.items():
                os.sched_setscheduler(tid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        yield
    except PermissionError as err:
        raise MissingError(
            "real-time priority is not permitted",
            hint="run as root or with CAP_SYS_NICE, or without --realtime",
        ) from err
    finally:
        for tid in reversed(everybody):  # the caller last: it has to get to the end of this
            with suppress(ProcessLookupError):
                os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
        time.sleep(time.monotonic() - began)


@contextmanager
def while_it_lives(what: str) -> Iterator[None]:
    """ConflictError: what is looked at ended before or meanwhile. A run goes on after that."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise ConflictError(
            f"{what} has ended", hint="dmesg says whether the kernel killed it; measure again"
        ) from None


def threads_of(process: int, what: str) -> set[int]:
    """Ids of a process's threads."""
    with while_it_lives(what):
        return {int(tid) for tid in os.listdir(f"/proc/{process}/task")}


def tasks() -> dict[int, int]:
    """CPU time in nanoseconds of each thread of this process."""
    times = {}
    for tid in map(int, os.listdir("/proc/self/task")):
        try:
            with open(f"/proc/self/task/{tid}/schedstat", encoding="ascii") as f:
                times[tid] = int(f.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return times


def thread_name(tid: int) -> str:
    """Of a thread of any process; empty if it has ended."""
    try:
        return Path(f"/proc/{tid}/comm").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
