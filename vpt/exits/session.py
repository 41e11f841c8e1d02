# SPDX-License-Identifier: BSD-2-Clause
"""Sampling a VM over time: the thin layer of effects around the meter."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

import vpt
from vpt.daemon.runtime import command
from vpt.errors import GuestError, NotFoundError, UsageError
from vpt.exits.model import Identity, Machine, Recording, Sample
from vpt.exits.ports import ports_of, ports_of_others
from vpt.exits.sources import Source, open_source
from vpt.exits.target import Vm, cpu_ms, is_stopped, open_vm, require_awake, require_running, require_there
from vpt.processor import cpuinfo

__all__ = ["Session", "load", "machine", "open_session", "record", "save"]

_FINISH_S = 5.0


class Session:
    """A VM, a source of its exits, and optionally the ports whose packets they are divided by.

    packets: what counts those; the source itself, if it does, and is then read once for both.
    """

    def __init__(self, vm: Vm, source: Source, packets: Source | None) -> None:
        self._vm = vm
        self._source = source
        self._packets = packets
        self.notes = tuple(vm.notes)
        # Why a recording is incomplete: what ended it, or somebody did.
        self.ended: GuestError | None = None
        self.interrupted = False
        self.identity = Identity(
            tier=vm.tier,
            tier_evidence=vm.tier_evidence,
            source=source.name,
            quantity=source.quantity,
            vm=vm.name,
            qemu=vm.qemu,
            missing=source.missing,
            kicks_per_query=source.kicks_per_query,
        )

    def sample(self) -> Sample:
        """All counters now. GuestError: the VM is gone or was stopped, or a port is not what it was."""
        with self._awake():
            stopped = is_stopped(self._vm)
            units = self._source.read()
        at_ns = time.monotonic_ns()
        packets = None
        if self._packets is not None:
            counted = units if self._packets is self._source else self._packets.read()
            packets = sum(unit["packets"] for unit in counted.values())
        used = cpu_ms(self._vm.pid)
        require_there(self._vm)
        return Sample(at_ns=at_ns, units=units, cpu_ms=used, packets=packets, stopped=stopped)

    def require_running(self) -> None:
        """GuestError if the VM is paused or has crashed."""
        with self._awake():
            require_running(self._vm)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """Of a QEMU that does not answer because it was stopped, that is said."""
        try:
            yield
        except GuestError:
            require_awake(self._vm.pid)
            raise


@contextlib.contextmanager
def open_session(
    name: str,
    source: str = "auto",
    connect: str | None = None,
    stats: Path | None = None,
    ports: tuple[str, ...] = (),
) -> Iterator[Session]:
    """Find the VM and open the source; both are given back at the end.

    stats, ports: vptd's counters and the ports that carry the packets; without ports nothing is divided, and
    the source "vpt" counts those that belong to the VM.
    UsageError: the source "vpt" was to count the kicks of another VM's port.
    """
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(open_vm(name, connect))
        require_running(vm)
        if source == "vpt" and stats is not None and not ports:
            ports = ports_of(vm, stats)
        elif stats is not None:
            _look_whose(vm, source, stats, ports)
        opened = stack.enter_context(open_source(vm, source, stats, ports))
        packets = opened if source == "vpt" else None
        if packets is None and ports:
            packets = stack.enter_context(open_source(vm, "vpt", stats, ports))
        yield Session(vm, opened, packets)


def _look_whose(vm: Vm, source: str, stats: Path, ports: tuple[str, ...]) -> None:
    """A generator's or a sink's packets may well divide a VM's exits, another VM's kicks are not its own."""
    for name, why in ports_of_others(vm, stats, ports).items():
        if source == "vpt":
            raise UsageError(
                f"port {name} is not {vm.name}'s: {why}, so that its kicks are another VM's",
                hint=f"name ports of this VM ({command(stats.parent, 'ls')} shows them), or none;"
                " or name the other VM",
            )
        vm.notes.append(f"port {name} is not {vm.name}'s: {why}. Its packets are what is divided by")


def record(session: Session, command: Sequence[str], interval: float) -> Recording:
    """Run a command and sample until it ends. If the VM or a source goes away first, or Ctrl-C is pressed,
    what there is comes back as incomplete.

    The command is ended then; unless by Ctrl-C, it is given a few seconds to end by itself.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    samples = [session.sample()]
    try:
        process = subprocess.Popen(command)
    except OSError as exc:
        raise UsageError(
            f"{command[0]}: {exc.strerror}", hint="the command comes after --, as in: -- sleep 10"
        ) from exc
    try:
        _until_exit(session, process, interval, samples)
    except KeyboardInterrupt:
        session.interrupted = session.ended is None
    finally:
        _finish(process)
    return Recording(
        started=started,
        machine=machine(),
        identity=session.identity,
        command=tuple(command),
        command_rc=process.returncode,
        complete=session.ended is None and not session.interrupted,
        ended="interrupted" if session.interrupted else str(session.ended) if session.ended else None,
        notes=session.notes,
        samples=tuple(samples),
    )


def machine() -> Machine:
    """This machine and the versions on it."""
    return Machine(
        cpu=cpuinfo().get("model name", "unknown"),
        cores=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        vpt=vpt.__version__,
    )


def save(recording: Recording, path: Path) -> None:
    """Write a recording, whole or not at all; what is no regular file, as /dev/stdout, stays what it is."""
    text = recording.model_dump_json(by_alias=True, indent=1) + "\n"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: {exc.strerror}", hint="name another file with -o") from exc


def load(path: Path) -> Recording:
    """Read a recording. UsageError: it is not one."""
    try:
        return Recording.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such file", hint="vpt exits record VM -o FILE -- COMMAND makes one"
        ) from None
    except OSError as exc:
        raise UsageError(
            f"{path}: {exc.strerror}", hint="vpt exits record VM -o FILE -- COMMAND makes one"
        ) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(
            f"{path} is not a recording of vpt.exits/v1: {where}: {first['msg']}",
            hint="vpt exits record VM -o FILE -- COMMAND makes one",
        ) from None


def _until_exit(
    session: Session, process: subprocess.Popen[bytes], interval: float, samples: list[Sample]
) -> None:
    """Add samples until the command ends, or a source can't be read any more."""
    running = True
    while running:
        try:
            process.wait(interval)
            running = False
        except subprocess.TimeoutExpired:
            pass
        try:
            samples.append(session.sample())
        except GuestError as exc:
            session.ended = exc
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_FINISH_S)
            return


def _finish(process: subprocess.Popen[bytes]) -> None:
    """Leave no child behind."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_FINISH_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
