# SPDX-License-Identifier: BSD-2-Clause
"""`vpt exits` on real VMs: a payload makes a known number of exits, and that number has to come out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from support.exits_guest import CPL3, NATIVE, PIO, RING0_LOOP, RING0_UNKNOWN, Mailbox, build_payload
from support.leaks import open_fds
from support.vptd import Vptd
from support.waiting import PATIENCE_S, until
from vpt.cli.exits import exits
from vpt.doctor._daemon import listeners
from vpt.errors import ConflictError, GuestError, MissingError, NotFoundError, VptError
from vpt.exits import meter
from vpt.exits.model import Quantity, Tier
from vpt.exits.session import Session, open_session
from vpt.qemu.qmp import QmpSession

pytestmark = [pytest.mark.vm, pytest.mark.needs("qemu-system-x86_64", "gcc")]

MEMORY = 16 << 20


@dataclass
class Guest:
    """A VM that runs the payload."""

    pid: int
    qmp: Path
    process: subprocess.Popen[bytes]
    mailbox: Mailbox

    def order(self, what: int, times: int) -> None:
        self.mailbox.order(what, times)


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_payload(tmp_path_factory.mktemp("exits"))


@pytest.fixture
def boot(payload: Path, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """boot("kvm"): a guest under that accelerator, ended with the test whatever happens."""
    guests: list[Guest] = []

    def start(accel: str, mode: int = CPL3, wait: bool = True) -> Guest:
        if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("/dev/kvm can't be opened: modprobe kvm_intel or kvm_amd, or join the group kvm")
        folder = tmp_path / f"vm{len(guests)}"
        folder.mkdir()
        ram = folder / "ram"
        ram.touch()
        os.truncate(ram, MEMORY)
        argv = [
            *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-m", "16"),
            *("-machine", "microvm,rtc=off,pit=off,pic=off,acpi=off,memory-backend=ram", "-accel", accel),
            *("-cpu", "host,-arch-capabilities" if accel == "kvm" else "max"),
            *("-object", f"memory-backend-file,id=ram,size=16M,share=on,mem-path={ram}"),
            *("-kernel", str(payload), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        ]
        mailbox = Mailbox(ram, lambda: process.poll() is None)
        mailbox.mode(mode)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        guest = Guest(process.pid, folder / "qmp", process, mailbox)
        guests.append(guest)

        def listens() -> bool:  # the socket is there a moment before anybody listens
            assert process.poll() is None, "QEMU did not start"
            return str(guest.qmp) in listeners()

        until(listens, "QEMU's QMP socket")
        if wait:
            guest.order(NATIVE, 1)  # has reached user mode
        return guest

    yield start
    for guest in guests:
        guest.process.kill()
        guest.process.wait()
        guest.mailbox.close()


def counted(session: Session, act: Callable[[], None]) -> meter.Measure:
    before = session.sample()
    act()
    return meter.measure(session.identity, meter.delta(session.identity, before, session.sample()))


def cli(*args: object) -> Result:
    return CliRunner().invoke(exits, [str(arg) for arg in args])


def failure(result: Result, kind: type[VptError]) -> str:
    """The message of the error that a command ended with; it has a hint."""
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert result.exception.hint
    return str(result.exception)


def test_each_port_write_is_one_exit_under_kvm(boot: Callable[..., Guest]) -> None:
    guest = boot("kvm")
    with open_session(str(guest.qmp), "qmp") as session:
        m = counted(session, lambda: guest.order(PIO, 10_000))
    assert session.identity.tier in (Tier.KVM, Tier.KVM_PVM)
    assert m.refused is None
    assert m.counted == pytest.approx(10_000, rel=0.01)


def test_our_own_queries_are_not_counted_as_the_guests_exits(boot: Callable[..., Guest]) -> None:
    """Each query of an old QEMU interrupts the vCPU; 200 of them must not show up in 10,000 exits."""
    guest = boot("kvm")
    with open_session(str(guest.qmp), "qmp") as session:

        def act() -> None:
            for _ in range(200):
                session.sample()
            guest.order(PIO, 10_000)

        m = counted(session, act)
    assert m.counted == pytest.approx(10_000, rel=0.01)


def test_a_guest_that_only_computes_makes_no_exits_of_its_own(boot: Callable[..., Guest]) -> None:
    """What is left once the host's interrupts are off: at most the odd page fault."""
    guest = boot("kvm")
    with open_session(str(guest.qmp), "qmp") as session:
        m = counted(session, lambda: guest.order(NATIVE, 300_000_000))
    assert m.refused is None
    assert m.counted is not None
    assert 0 <= m.counted < 50


def test_code_that_kvm_interprets_gets_no_verdict(boot: Callable[..., Guest]) -> None:
    guest = boot("kvm", RING0_LOOP, wait=False)
    with open_session(str(guest.qmp), "qmp") as session:
        if session.identity.tier is not Tier.KVM_PVM:
            pytest.skip("needs a software KVM (PVM): hardware runs ring 0 too")
        m = counted(session, lambda: time.sleep(0.5))
    assert m.counted is None
    assert m.refused is not None
    assert "instructions were emulated" in m.refused


def test_a_kvm_that_cannot_run_the_guest_is_named(boot: Callable[..., Guest]) -> None:
    guest = boot("kvm", RING0_UNKNOWN, wait=False)
    time.sleep(0.5)
    with_hint = cli("top", guest.qmp, "--interval", 0.2)
    if with_hint.exception is None:
        pytest.skip("needs a software KVM (PVM): hardware runs every instruction")
    assert "can't run its code" in failure(with_hint, GuestError)


def test_dispatches_are_counted_exactly_under_tcg(boot: Callable[..., Guest]) -> None:
    guest = boot("tcg")
    with open_session(str(guest.qmp)) as session:
        m = counted(session, lambda: guest.order(PIO, 10_000))
    assert session.identity.tier is Tier.TCG
    assert session.identity.quantity is Quantity.DISPATCHES
    assert m.counted == 10_000
    assert m.delta.units["io"] == {"dispatches": 10_000, "reads": 0, "writes": 10_000}


@pytest.mark.parametrize("fmt", [[], ["--csv"], ["--prometheus"]], ids=["table", "csv", "prometheus"])
def test_a_guest_without_dispatches_gets_no_verdict(boot: Callable[..., Guest], fmt: list[str]) -> None:
    """It polls its memory. Nothing shows that this source would count if it did anything else."""
    guest = boot("tcg")
    result = cli("top", guest.qmp, "--interval", 0.2, *fmt)
    assert "no verdict" in failure(result, GuestError)
    assert "vpt_exits" not in result.stdout


def test_tracing_is_off_again_after_a_measurement(boot: Callable[..., Guest]) -> None:
    guest = boot("tcg")
    cli("top", guest.qmp, "--interval", 0.05)  # whether anything moved in that time is not the point
    with QmpSession(guest.qmp) as qmp:
        states = qmp.execute("trace-event-get-state", name="memory_region_ops_*")
    assert {state["state"] for state in states} == {"disabled"}
    guest.order(PIO, 1000)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_tracing_is_off_again_after_an_interrupted_measurement(
    boot: Callable[..., Guest], how: signal.Signals
) -> None:
    guest = boot("tcg")
    command = [sys.executable, "-m", "vpt.cli", "exits", "top", str(guest.qmp), "--interval", "60"]
    # What runs in a shell's background was told to ignore SIGINT, and so would this.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    _until_traced(guest, process)
    process.send_signal(how)
    assert process.wait(PATIENCE_S) == 130
    guest.order(PIO, 1000)
    with QmpSession(guest.qmp) as qmp:
        states = qmp.execute("trace-event-get-state", name="memory_region_ops_*")
    assert {state["state"] for state in states} == {"disabled"}


def test_a_guest_outlives_a_measurement_that_was_killed(boot: Callable[..., Guest], tmp_path: Path) -> None:
    """Its trace then goes to a FIFO that nobody reads: that must not stop it."""
    guest = boot("tcg")
    command = [sys.executable, "-m", "vpt.cli", "exits", "top", str(guest.qmp), "--interval", "60"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(tmp_path)})
    _until_traced(guest, process)
    process.kill()
    process.wait()
    guest.order(PIO, 10_000)


def test_kvm_sources_refuse_a_vm_under_tcg(boot: Callable[..., Guest]) -> None:
    """query-stats returns an empty list there, which must not become a zero."""
    guest = boot("tcg")
    for source in ("qmp", "stats-fd", "debugfs", "tracepoints"):
        assert "this VM has none" in failure(cli("top", guest.qmp, "--source", source), MissingError)


def test_userspace_exits_by_tracepoint(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot("kvm")
    with _mounted("tracefs", tmp_path), open_session(str(guest.pid), "tracepoints") as session:
        m = counted(session, lambda: guest.order(PIO, 10_000))
    assert m.delta.units["vm"]["userspace_exits"] == pytest.approx(10_000, rel=0.01)
    assert m.delta.units["vm"]["pio"] == 10_000
    if session.identity.tier is Tier.KVM_PVM:
        assert session.identity.quantity is Quantity.USERSPACE_EXITS
        assert m.delta.units["vm"]["exits"] is None, "kvm_exit never fires there: n/a, not 0"


def test_debugfs_counts_or_says_that_it_may_not(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot("kvm")
    refused: MissingError | None = None
    m: meter.Measure | None = None
    with _mounted("debugfs", tmp_path):
        try:
            with open_session(str(guest.pid), "debugfs") as session:
                m = counted(session, lambda: guest.order(PIO, 10_000))
        except MissingError as exc:
            refused = exc
    if refused:
        assert "locked down" in str(refused)
        assert refused.hint
    else:
        assert m
        assert m.counted == pytest.approx(10_000, rel=0.01)


def test_a_vm_given_by_pid_is_asked_through_the_qmp_socket_on_its_command_line(
    boot: Callable[..., Guest],
) -> None:
    guest = boot("kvm")
    result = cli("top", guest.pid, "--interval", 0.2, "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "vpt.exits/v1"
    assert document["identity"]["source"] in ("qmp", "stats-fd")


def test_record_report_diff(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot("kvm")
    out = {name: tmp_path / f"{name}.json" for name in ("quiet", "busy")}
    assert cli("record", guest.qmp, "-o", out["quiet"], "--interval", 0.1, "--", "sleep", 0.6).exit_code == 0
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            guest.order(PIO, 200)

    kicker = threading.Thread(target=keep_busy)
    kicker.start()
    try:
        busy = cli("record", guest.qmp, "-o", out["busy"], "--interval", 0.1, "--", "sleep", 0.6)
    finally:
        stop.set()
        kicker.join()
    assert busy.exit_code == 0, busy.output
    report = cli("report", out["busy"])
    assert report.exit_code == 0
    assert "sleep 0.6" in report.output
    assert "exits in" in report.output
    verdict = json.loads(cli("diff", out["quiet"], out["busy"], "--json").output)
    assert verdict["clear"] is True
    assert verdict["verdict"].startswith("B more")


def test_a_vm_that_dies_during_a_recording_leaves_a_marked_file(
    boot: Callable[..., Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not wait for the command for ever."""
    from vpt.exits import session

    monkeypatch.setattr(session, "_FINISH_S", 0.2)
    guest = boot("kvm")
    out = tmp_path / "r.json"
    killer = ["sh", "-c", f"sleep 0.3; kill -9 {guest.pid}; sleep 60"]
    result = cli("record", guest.qmp, "-o", out, "--interval", 0.1, "--", *killer)
    assert "went away" in failure(result, GuestError)
    assert json.loads(out.read_text())["complete"] is False
    assert "incomplete" in cli("report", out).output


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("port del sink && {vpt} port add sw0 sink --kind null", "port sink was deleted and made anew"),
        ("port del sink", "port sink was deleted"),
    ],
    ids=["made-anew", "deleted"],
)
def test_a_port_that_does_not_outlast_a_recording_is_named_and_the_vm_is_not(
    boot: Callable[..., Guest], tmp_path: Path, act: str, said: str
) -> None:
    """Its packets would be divided by, were they fewer or more than before."""
    guest = boot("tcg")
    out = tmp_path / "r.json"
    vptd = Vptd()
    try:
        vptd.start()
        vptd.call("switch.add", name="sw0")
        vptd.call("port.add", switch="sw0", name="sink", kind="null")
        vpt = f"{sys.executable} -m vpt.cli --runtime-dir {vptd.paths.runtime}"
        command = ["sh", "-c", f"{vpt} " + act.format(vpt=vpt)]
        named = ("--stats", vptd.paths.stats, "--port", "sink", "--interval", PATIENCE_S)
        result = cli("record", guest.qmp, *named, "-o", out, "--", *command)
    finally:
        vptd.close()
    assert said in failure(result, GuestError)
    assert "per packet" not in result.output
    assert "the VM" not in str(result.exception)
    assert json.loads(out.read_text())["ended"].startswith(said)


def test_a_vm_that_dies_under_top_is_named(boot: Callable[..., Guest]) -> None:
    guest = boot("kvm")
    with open_session(str(guest.qmp)) as session:
        guest.process.kill()
        guest.process.wait()
        with pytest.raises(GuestError, match=r"went away|ended"):
            session.sample()


def test_a_paused_vm_gets_no_number(boot: Callable[..., Guest]) -> None:
    guest = boot("kvm")
    with QmpSession(guest.qmp) as qmp:
        qmp.execute("stop")
    assert "paused" in failure(cli("top", guest.qmp), GuestError)


def test_kicks_of_other_vms_ports_are_not_a_vms_kicks(boot: Callable[..., Guest]) -> None:
    guest = boot("tcg")
    vptd = Vptd()
    try:
        vptd.start()
        vptd.call("switch.add", name="sw0")
        vptd.call("port.add", switch="sw0", name="other", kind="vhost-user")
        result = cli("top", guest.qmp, "--source", "vpt", "--stats", vptd.paths.stats)
        assert "no port of vptd belongs to" in failure(result, NotFoundError)
    finally:
        vptd.close()


def test_a_stopped_vmm_gets_no_number(boot: Callable[..., Guest], tmp_path: Path) -> None:
    """SIGSTOP: the VM is there, its counters can be read from outside, and nothing moves."""
    guest = boot("kvm")
    with _mounted("tracefs", tmp_path), open_session(str(guest.pid), "tracepoints") as session:
        guest.process.send_signal(signal.SIGSTOP)
        try:
            _await_stopped(guest.pid)
            m = counted(session, lambda: time.sleep(0.2))
        finally:
            guest.process.send_signal(signal.SIGCONT)
    assert m.counted is None
    assert m.refused is not None
    assert "did not run" in m.refused


def test_a_qmp_socket_in_use_is_not_waited_for_in_vain(
    boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpt.qemu import qmp

    monkeypatch.setattr(qmp, "_STEP_S", 0.5)
    guest = boot("tcg")
    with qmp.QmpSession(guest.qmp):
        assert "another client" in failure(cli("top", guest.qmp), ConflictError)


def test_why_qmp_was_not_used_is_said_where_that_leaves_no_source(
    boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpt.qemu import qmp

    monkeypatch.setattr(qmp, "_STEP_S", 0.5)
    guest = boot("kvm")
    with qmp.QmpSession(guest.qmp):
        assert "no greeting" in failure(cli("top", guest.pid, "--source", "qmp"), MissingError)


def test_a_vmm_that_is_stopped_is_named_with_the_way_on(
    boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpt.qemu import qmp

    monkeypatch.setattr(qmp, "_STEP_S", 0.5)
    guest = boot("tcg")
    guest.process.send_signal(signal.SIGSTOP)
    _await_stopped(guest.pid)
    for vm in (guest.pid, guest.qmp):
        result = cli("top", vm)
        assert "is stopped" in failure(result, GuestError)
        assert f"kill -CONT {guest.pid}" in str(getattr(result.exception, "hint", ""))


def test_a_vmm_that_is_stopped_meanwhile_is_named_with_the_way_on(
    boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpt.qemu import qmp

    guest = boot("tcg")
    with open_session(str(guest.qmp)) as session:
        session.sample()
        monkeypatch.setattr(qmp, "_STEP_S", 0.5)
        guest.process.send_signal(signal.SIGSTOP)
        try:
            _await_stopped(guest.pid)
            for act in (session.sample, session.require_running):
                with pytest.raises(GuestError, match="is stopped") as caught:
                    act()
                assert caught.value.hint == f"kill -CONT {guest.pid}"
        finally:
            guest.process.send_signal(signal.SIGCONT)


def test_a_recording_of_a_vmm_that_is_stopped_says_so(
    boot: Callable[..., Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and has not gone away."""
    from vpt.exits import session
    from vpt.qemu import qmp

    monkeypatch.setattr(session, "_FINISH_S", 0.2)
    guest = boot("tcg")
    monkeypatch.setattr(qmp, "_STEP_S", 1.0)
    stopper = ["sh", "-c", f"sleep 0.3; kill -STOP {guest.pid}; sleep 60"]
    try:
        result = cli("record", guest.qmp, "-o", tmp_path / "r.json", "--interval", 0.1, "--", *stopper)
    finally:
        guest.process.send_signal(signal.SIGCONT)
    assert f"process {guest.pid} is stopped" in failure(result, GuestError)
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is False


def test_a_process_that_is_no_vm_is_refused() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        assert "is not a VM" in failure(cli("top", sleeper.pid), NotFoundError)
    finally:
        sleeper.kill()
        sleeper.wait()


def _until_traced(guest: Guest, measurement: subprocess.Popen[bytes]) -> None:
    """QEMU has the file open that its trace goes to."""

    def traced() -> bool:
        assert measurement.poll() is None, "the measurement ended"
        return any(Path(name).name == "trace" for name in open_fds(guest.pid).values())

    until(traced, "tracing to be switched on")


def _await_stopped(pid: int) -> None:
    """Each thread takes the signal by itself, the vCPU's by an exit."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        until(lambda stat=stat: stat.read_text().rpartition(")")[2].split()[0] == "T", "the VM to stop")


class _mounted:  # noqa: N801 - reads as a phrase where it is used
    """A kernel file system on a folder of the test's own, where the host has not mounted it itself."""

    def __init__(self, fstype: str, folder: Path) -> None:
        from vpt.exits.sources.debugfs import mount_point

        self._fstype, self._at = fstype, folder / fstype
        self._needed = mount_point(fstype) is None

    def __enter__(self) -> None:
        if not self._needed:
            return
        self._at.mkdir()
        command = ["mount", "-t", self._fstype, "none", self._at]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip(f"{self._fstype} is not mounted and can't be mounted here (needs root)")

    def __exit__(self, *exc: object) -> None:
        if self._needed:
            subprocess.run(["umount", "-R", self._at], check=True)
