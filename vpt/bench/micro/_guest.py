# SPDX-License-Identifier: BSD-2-Clause
"""A running micro guest: boot, orders, results, end."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from vpt.bench.micro._desk import CMD_OPEN, DESK_ADDR, MAGIC, STATE_DEAD, VERSION, Desk, DeskOrder, Device
from vpt.bench.micro._machine import RAM_SIZE, Machine, qemu_command
from vpt.bench.micro._orders import Counters, Found, Order, Report
from vpt.bench.micro._payload import payload
from vpt.errors import ConflictError, GuestError, MissingError, TimeoutExpired, UsageError
from vpt.processor import patience
from vpt.qemu import Accel, Qemu, find_qemu, kvm_fault

__all__ = ["MicroGuest", "choose_accel"]

_OLDEST_QEMU = (7, 1, 0)  # query-stats
BOOT_TIMEOUT_S = patience(30.0)  # q35's firmware alone takes 3 s on a software KVM
OPEN_TIMEOUT_S = patience(10.0)
CLOCK_TIMEOUT_S = patience(2.0)
ALL_FEATURES = (1 << 64) - 1
MARGIN_S = patience(10.0)  # how much longer than an order's own end the host waits
KVM_TIMEOUT_S = patience(8.0)  # one that can't run the payload hangs
CONSOLE_TAIL = 12  # lines


@dataclass(slots=True)
class _Pending:
    """An order on the desk that has not been reported yet."""

    number: int
    deadline: float  # time.monotonic()
    what: str
    order: Order | None = None  # None: not a run


class MicroGuest:
    """A running micro guest; a context manager, at whose end it is gone.

    serve: called again and again while this object waits for the guest. For callers whose own thread has to
    answer at the other end of the device, as the control thread of an Engine does.

    Raises MissingError when QEMU is not installed, TimeoutExpired when something awaited did not happen,
    GuestError when the guest or QEMU says why not.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        elf: Path | None = None,
        serve: Callable[[], object] | None = None,
        boot_timeout: float = BOOT_TIMEOUT_S,
    ) -> None:
        self.machine = machine
        self.tsc_hz = 0.0
        self._elf = elf
        self._serve = serve
        self._boot_timeout = boot_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._desk_or_none: Desk | None = None
        self._pending: _Pending | None = None

    # ---- life ----

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Boot, wait until the payload is ready for orders, find its clock's frequency."""
        if self._process is not None:
            raise ConflictError("this micro guest runs already")
        qemu = find_qemu()
        if qemu.version < _OLDEST_QEMU:
            raise MissingError(
                f"QEMU {qemu} ({qemu.path}) is too old for the micro guest: exits are counted from 7.1 on",
                hint="VPT_QEMU=PATH names another; Debian 12 has 7.2",
            )
        elf = self._elf or payload()
        self._work = tempfile.TemporaryDirectory(prefix="vpt-micro-")
        try:
            self._spawn(qemu, elf)
            self._await_ready()
            if self.machine.cpu is not None:
                self._pin(self.machine.cpu)
            self.tsc_hz = self._calibrate()
        except BaseException:
            self.close()
            raise

    def _spawn(self, qemu: Qemu, elf: Path) -> None:
        ram = os.memfd_create("vpt-micro-ram")
        try:
            os.ftruncate(ram, RAM_SIZE)
            self._desk_or_none = Desk.from_buffer(mmap.mmap(ram, ctypes.sizeof(Desk), offset=DESK_ADDR))
            ram_path = Path(f"/proc/self/fd/{ram}")
            command = qemu_command(self.machine, qemu, elf=elf, ram=ram_path, console=self._file("console"))
            with self._file("stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, pass_fds=(ram,)
                )
        finally:
            os.close(ram)

    def _await_ready(self) -> None:
        desk = self._desk
        what = f"booting the micro guest under {self.machine.accel} on {self.machine.board}"
        self._until(lambda: desk.magic == MAGIC, time.monotonic() + self._boot_timeout, what)
        if desk.version != VERSION or desk.size != ctypes.sizeof(Desk):
            self._fail(f"the payload's desk, version {desk.version}, {desk.size} bytes, is not this vpt's")

    def _pin(self, cpu: int) -> None:
        tid = self.vcpu_tid
        try:
            os.sched_setaffinity(tid, {cpu})
        except ProcessLookupError:
            raise self._no_vcpu() from None
        except OSError as e:
            raise UsageError(f"the micro guest can't run on CPU {cpu}: {e.strerror}") from None

    def close(self) -> None:
        """End QEMU and release everything. Harmless the second time."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pending = None
        # Unmapped with the last reference: the frames of an exception on its way may still hold one.
        self._desk_or_none = None
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._qemu.pid

    @property
    def vcpu_tid(self) -> int:
        """Thread id of the vCPU."""
        # Of a process that is ending the folder goes, and threads go from it while it is read.
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                if (task / "comm").read_text().startswith("CPU "):
                    return int(task.name)
        raise self._no_vcpu()

    def _no_vcpu(self) -> GuestError:
        """Raises it already where more is known of what happened."""
        self._check_alive("its vCPU was looked for")
        return GuestError("QEMU has no vCPU thread", hint="it may just be ending: measure again")

    # ---- orders ----

    def open(
        self, kind: Device = Device.ANY, *, features: int = ALL_FEATURES, timeout: float = OPEN_TIMEOUT_S
    ) -> Found:
        """Find the device and start its rings, accepting no feature outside `features`."""
        order = DeskOrder(cmd=CMD_OPEN, device=kind, features=features, duration=int(timeout * self.tsc_hz))
        self._give(order, "opening its network device", timeout)
        self._await_done()
        return Found.from_desk(self._desk.found)

    def run(self, order: Order) -> Report:
        """Carry out an order and wait for its end."""
        self.begin(order)
        return self.finish()

    def begin(self, order: Order) -> None:
        """run()'s first half: the guest starts at once, this returns."""
        what = f"running as {order.role.name.lower()} for {order.seconds:g} s"
        self._give(order.to_desk(self.tsc_hz), what, order.seconds + order.linger, order)

    def finish(self) -> Report:
        """run()'s second half: waits for the end."""
        order = self._pending.order if self._pending else None
        if order is None:
            raise ConflictError("the micro guest has no run to finish")
        self._await_done()
        return Report.from_desk(order, self._desk, self.tsc_hz)

    @property
    def busy(self) -> bool:
        """Is an order given by begin() still being carried out?"""
        return self._pending is not None and self._desk.done_seq != self._pending.number

    def live(self) -> Counters:
        """The running order's counters, without disturbing the guest."""
        return Counters.from_desk(self._desk.result)

    def stop(self) -> None:
        """End the running order early; finish() then gives what it came to."""
        self._desk.stop = 1

    def _give(self, desk_order: DeskOrder, what: str, seconds: float, order: Order | None = None) -> None:
        if self._pending is not None:
            raise ConflictError("the micro guest has an order already: finish() it first")
        desk = self._desk
        desk.stop = 0
        desk.order = desk_order
        # x86 keeps stores in order: the guest that sees the new number sees the order.
        number = (desk.order_seq + 1) & 0xFFFFFFFF
        desk.order_seq = number
        self._pending = _Pending(number, time.monotonic() + seconds + MARGIN_S, what, order)

    def _await_done(self) -> None:
        pending, desk = self._pending, self._desk
        assert pending is not None
        self._until(lambda: desk.done_seq == pending.number, pending.deadline, pending.what)
        self._pending = None
        if desk.error:
            self._fail(f"the micro guest refused: {self._reason()}")

    # ---- waiting, and what to say when it was in vain ----

    @property
    def _qemu(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ConflictError("this micro guest does not run")
        return self._process

    @property
    def _desk(self) -> Desk:
        if self._desk_or_none is None:
            raise ConflictError("this micro guest does not run")
        return self._desk_or_none

    def _until(self, happened: Callable[[], bool], deadline: float, what: str) -> None:
        """Poll. The pause grows from 50 us to 5 ms: short waits are short, long ones cost nothing."""
        pause = 50e-6
        while not happened():
            if self._serve:
                self._serve()
            self._check_alive(what)
            if time.monotonic() > deadline:
                raise TimeoutExpired(
                    f"time is up while {what}{self._progress()}{self._tail()}", hint=self._hint()
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5e-3)

    def _check_alive(self, what: str) -> None:
        if self._desk.state == STATE_DEAD:
            self._fail(f"the micro guest gave up while {what}: {self._reason()}")
        if self._qemu.poll() is not None:
            self._fail(
                f"QEMU ended with status {self._qemu.returncode} while {what}",
                hint="what it said is above; a negative status is the signal that killed it: measure again",
            )

    def _progress(self) -> str:
        if self._pending is None or self._pending.order is None:
            return ""
        live = self.live()
        return f"; so far {live.tx_packets} packets sent, {live.rx_packets} received"

    def _hint(self) -> str:
        if self.machine.accel == "kvm" and not self._desk.magic:
            return "this KVM may be unable to run the payload: try TCG"
        return "is somebody serving the other end of the device?"

    def _reason(self) -> str:
        code = errno.errorcode.get(-self._desk.error, str(self._desk.error))
        return f"{bytes(self._desk.message).decode(errors='replace') or 'no reason given'} ({code})"

    def _fail(self, message: str, hint: str = "what guest and QEMU said is above") -> NoReturn:
        raise GuestError(f"{message}{self._tail()}", hint=hint)

    def _tail(self) -> str:
        """The end of what guest and QEMU have said, for an error message."""
        text = ""
        for name in ("stderr", "console"):
            path = self._file(name)
            said = path.read_text(errors="replace").strip() if path.exists() else ""
            if said:
                text += f"\n--- {name} ---\n" + "\n".join(said.splitlines()[-CONSOLE_TAIL:])
        return text

    def _file(self, name: str) -> Path:
        assert self._work is not None
        return Path(self._work.name) / name

    # ---- the clock ----

    def _calibrate(self) -> float:
        """Frequency of the guest's TSC, from the copy that the idle guest keeps refreshing.

        A copy that is old because the vCPU did not run makes the clock look late, never early: of each end's
        samples the one that is furthest ahead counts.
        """
        first = self._clock_samples()
        end = time.monotonic() + CLOCK_TIMEOUT_S
        while True:
            time.sleep(0.05)
            last = self._clock_samples()
            # On a busy host the vCPU may not have run all the while.
            if last[-1][1] > first[-1][1] or time.monotonic() > end:
                break
        hz = _slope(first[-1], last[-1])
        for _ in range(2):
            hz = _slope(_furthest_ahead(first, hz), _furthest_ahead(last, hz))
        self._check_alive("having its clock read")
        if hz <= 0:
            self._fail("the guest's clock stands still")
        return hz

    def _clock_samples(self) -> list[tuple[float, int]]:
        taken = []
        for _ in range(40):
            taken.append((time.perf_counter(), int(self._desk.tsc)))
            time.sleep(100e-6)
        return taken


def _slope(a: tuple[float, int], b: tuple[float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _furthest_ahead(samples: list[tuple[float, int]], hz: float) -> tuple[float, int]:
    return max(samples, key=lambda s: s[1] - hz * s[0])


@functools.cache
def choose_accel(timeout: float = KVM_TIMEOUT_S) -> Accel:
    """KVM if the payload really runs there, else TCG, and why. It may run where no Linux guest does.

    Opening /dev/kvm proves nothing: a KVM that can't run the code hangs. So it is run.
    """
    fault = kvm_fault()
    if fault is not None:
        return Accel("tcg", str(fault))
    try:
        with MicroGuest(Machine(accel="kvm"), boot_timeout=timeout):
            return Accel("kvm", "the micro guest runs under KVM")
    except (GuestError, TimeoutExpired) as e:
        what, *said = e.message.splitlines()
        return Accel(
            "tcg", f"KVM does not run the micro guest: {'; it last said: '.join([what, *said[-1:]])}"
        )
