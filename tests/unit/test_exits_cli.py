# SPDX-License-Identifier: BSD-2-Clause
"""What report and diff print, and what they refuse; what vpt's own counters add."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from support.waiting import until
from vpt.cli import main
from vpt.cli.exits import exits
from vpt.errors import GuestError, MissingError, NotFoundError, UsageError, VptError
from vpt.exits.meter import STOPPED
from vpt.exits.model import Identity, Machine, Quantity, Recording, Sample, Tier
from vpt.exits.session import Session, load, save
from vpt.exits.sources import Source, Units
from vpt.exits.target import Vm, is_stopped, open_vm
from vpt.qemu.qmp import QmpSession


def write(path: Path, tier: Tier = Tier.KVM, per_second: int = 1000, **changes: object) -> Path:
    """A recording of five seconds, with one packet per millisecond."""
    samples = tuple(
        Sample(
            at_ns=second * 10**9,
            units={"vcpu0": {"exits": second * (per_second + 50), "irq_exits": second * 50, "io_exits": 0}},
            packets=second * 1000,
        )
        for second in range(6)
    )
    recording = Recording(
        started="2026-01-01T00:00:00+00:00",
        machine=Machine(cpu="some CPU", cores=2, kernel="6.1", python="3.11", vpt="0.1.0"),
        identity=Identity(
            tier=tier, tier_evidence="a reason", source="qmp", quantity=Quantity.EXITS, vm="vm1", qemu="7.2.0"
        ),
        command=("sleep", "5"),
        command_rc=0,
        complete=True,
        samples=samples,
    ).model_copy(update=changes)
    save(recording, path)
    return path


def cli(*args: object) -> Result:
    return CliRunner().invoke(exits, [str(arg) for arg in args])


def failure(result: Result, kind: type[VptError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert result.exception.hint
    return str(result.exception)


def test_a_recording_reads_back_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    recording = load(path)
    save(recording, tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()
    assert json.loads(path.read_text())["schema"] == "vpt.exits/v1"


def test_a_link_to_the_recording_stays_a_link(tmp_path: Path) -> None:
    """/dev/stdout is one."""
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "a.json").complete


@pytest.mark.parametrize("there", ["folder/a.json", "."])
def test_a_recording_that_can_not_be_written_is_not_begun(tmp_path: Path, there: str) -> None:
    """Not even the VM, which does not exist, is looked for."""
    assert "can't write" in failure(
        cli("record", "pid:4194304999", "-o", tmp_path / there, "--", "true"), UsageError
    )


def test_report_tells_machine_versions_tier_and_result(tmp_path: Path) -> None:
    result = cli("report", write(tmp_path / "a.json"))
    assert result.exit_code == 0
    for part in (
        "some CPU",
        "QEMU 7.2.0",
        "tier: kvm (a reason)",
        "5000 exits",
        "250 interrupts",
        "1 per packet",
    ):
        assert part in result.output


def test_report_as_json_csv_and_prometheus(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", Tier.KVM_PVM)
    document = json.loads(cli("report", path, "--json").output)
    assert document["schema"] == "vpt.exits/v1"
    assert document["measures"][0]["per_packet"] == 1.0
    assert document["measures"][0]["units"]["vcpu0"]["io_exits"] is None
    rows = list(csv.DictReader(io.StringIO(cli("report", path, "--csv").output)))
    assert {row["value"] for row in rows if row["counter"] == "io_exits"} == {""}
    assert [row["value"] for row in rows if row["counter"] == "counted"] == ["1000"] * 5
    text = cli("report", path, "--prometheus").output
    assert 'counter="exits"} 5250' in text
    assert "io_exits" not in text, "what says nothing is absent, not 0"


def test_diff_gives_a_verdict(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json"), write(tmp_path / "b.json", per_second=30)
    assert "kvm: B fewer" in cli("diff", a, b).output
    document = json.loads(cli("diff", a, b, "--json").output)
    assert document["kind"] == "comparison"
    assert document["factor"] == pytest.approx(0.03)


def test_diff_says_which_recording_is_incomplete_or_of_a_command_that_failed(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.json")
    cut, failed = write(tmp_path / "b.json", complete=False), write(tmp_path / "c.json", command_rc=7)
    for other, said in (
        (cut, "incomplete: the VM or a source of counts went away"),
        (failed, "failed (ended with 7)"),
    ):
        _, _, of_b = cli("diff", whole, other).output.partition("B  ")
        assert said in of_b
        before_b, _, _ = cli("diff", other, whole).output.partition("B  ")
        assert said in before_b
    assert "incomplete" not in cli("diff", whole, whole).output
    document = json.loads(cli("diff", whole, cut, "--json").output)
    assert (document["a"]["complete"], document["b"]["complete"]) == (True, False)
    assert (document["a"]["command_rc"], document["b"]["command_rc"]) == (0, 0)


def test_what_ended_a_recording_is_said_wherever_it_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", complete=False, ended="port v2 was deleted")
    said = "incomplete: port v2 was deleted, before the command ended"
    assert said in cli("report", path).stdout
    assert said in cli("diff", path, path).stdout
    assert json.loads(cli("report", path, "--json").stdout)["ended"] == "port v2 was deleted"
    table, text = cli("report", path, "--csv"), cli("report", path, "--prometheus")
    assert (table.exit_code, text.exit_code) == (0, 0)
    assert said in table.stderr
    assert said not in table.stdout, "rows stay rows"
    assert f"# {said}" in text.stdout.splitlines()
    assert said in text.stderr
    for whole in ("--csv", "--prometheus"):
        assert "incomplete" not in cli("report", write(tmp_path / "b.json"), whole).output


def test_a_remark_does_not_break_prometheus_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", complete=False, ended="two\nlines")
    lines = cli("report", path, "--prometheus").stdout.splitlines()
    assert all(line.startswith(("#", "vpt_exits_")) for line in lines)


def test_notes_of_a_recording_are_kept_and_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", notes=("port v2 is not vm1's",))
    assert "note: port v2 is not vm1's" in cli("report", path).stdout
    assert "port v2 is not vm1's" in cli("diff", path, path).stdout
    for fmt in ("--csv", "--prometheus"):
        assert "note: port v2 is not vm1's" in cli("report", path, fmt).stderr


def test_diff_says_which_vm_was_stopped_for_part_of_the_time(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json")
    samples = [s.model_copy(update={"stopped": s.at_ns == 2 * 10**9}) for s in load(a).samples]
    before_b, _, of_b = cli("diff", a, write(tmp_path / "b.json", samples=tuple(samples))).output.partition(
        "B  "
    )
    assert STOPPED in of_b
    assert STOPPED not in before_b


def test_a_recording_whose_packets_ran_backwards_gives_no_number(tmp_path: Path) -> None:
    first, *rest = load(write(tmp_path / "a.json")).samples
    more = first.model_copy(update={"packets": 200_000})
    result = cli("report", write(tmp_path / "b.json", samples=(more, *rest)))
    assert "ran backwards" in failure(result, GuestError)
    assert "per packet" not in result.output


def test_diff_refuses_two_tiers_as_wrong_usage(tmp_path: Path) -> None:
    result = cli("diff", write(tmp_path / "a.json"), write(tmp_path / "b.json", Tier.KVM_PVM))
    assert "not comparable" in failure(result, UsageError)


def test_exit_codes_are_those_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.json"), write(tmp_path / "b.json", Tier.TCG)
    assert main(["exits", "diff", str(a), str(a)]) == 0
    assert main(["exits", "diff", str(a), str(b)]) == 2
    assert main(["exits", "report", str(tmp_path / "absent")]) == 1
    assert "hint:" in capsys.readouterr().err


def test_what_is_no_recording_is_named_with_its_fault(tmp_path: Path) -> None:
    failure(cli("report", tmp_path / "absent.json"), NotFoundError)
    path = tmp_path / "x.json"
    for text in (
        "",
        "[]",
        '{"schema": "vpt.demo/v1"}',
        write(path).read_text().replace("vm1", "vm1").replace("1000", '"x"'),
    ):
        path.write_text(text)
        assert "is not a recording" in failure(cli("report", path), UsageError)


def test_one_sample_is_no_measurement(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a.json")).samples[:1]
    failure(cli("report", write(tmp_path / "b.json", samples=one)), GuestError)


def test_a_recording_without_movement_ends_with_a_failure(tmp_path: Path) -> None:
    """Never a zero that looks like a result, and not exit code 0 either."""
    stuck = tuple(Sample(at_ns=i * 10**9, units={"vcpu0": {"exits": 5, "irq_exits": 1}}) for i in range(3))
    result = cli("report", write(tmp_path / "a.json", samples=stuck))
    assert "no verdict" in failure(result, GuestError)
    assert "no verdict: no exits: the guest did not run" in result.stdout


def test_why_there_is_no_verdict_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers where there are any, else by the error."""
    why = "the guest did not run"
    stuck = tuple(Sample(at_ns=i * 10**9, units={"vcpu0": {"exits": 5, "irq_exits": 1}}) for i in range(3))
    session_of(monkeypatch, _Counts(*[5] * 9))
    commands = (
        ("report", write(tmp_path / "a.json", samples=stuck)),
        ("top", "vm1", "--interval", 0.05),
        ("record", "vm1", "-o", tmp_path / "r.json", "--", "true"),
    )
    for command in commands:
        result = cli(*command)
        assert "no verdict" in failure(result, GuestError)
        said = f"{result.output}{result.exception}{getattr(result.exception, 'hint', '')}"
        assert said.count(why) == 1, said


def test_what_has_no_verdict_is_absent_from_prometheus(tmp_path: Path) -> None:
    """Neither bare HELP and TYPE lines, nor counters that stand still."""
    nothing = tuple(Sample(at_ns=i * 10**9, units={}, cpu_ms=i * 900) for i in range(3))
    tcg = load(write(tmp_path / "a.json", Tier.TCG)).identity.model_copy(
        update={"quantity": Quantity.DISPATCHES, "source": "qemu-trace"}
    )
    result = cli("report", write(tmp_path / "b.json", samples=nothing, identity=tcg), "--prometheus")
    assert "the counters did not move" in failure(result, GuestError)
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["top", "report"])
@pytest.mark.parametrize("second", ["--csv", "--prometheus"])
def test_two_formats_at_once_are_wrong_usage(command: str, second: str) -> None:
    """The VM, or the file, is not even looked for."""
    result = cli(command, "pid:4194304999", "--json", second)
    assert result.exit_code == 2
    assert f"--json and {second} exclude each other" in result.stderr


def test_a_refusal_does_not_spoil_the_document(tmp_path: Path) -> None:
    stuck = tuple(Sample(at_ns=i * 10**9, units={"vcpu0": {"exits": 5, "irq_exits": 1}}) for i in range(3))
    result = cli("report", write(tmp_path / "a.json", samples=stuck), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["measures"][0]["counted"] is None
    assert "no verdict" in result.stderr


class _Counts(Source):
    """A source whose values a test gives, reading by reading; an error is raised."""

    name = "given"

    def __init__(self, *values: int | GuestError, quantity: Quantity = Quantity.EXITS) -> None:
        self.quantity = quantity
        self._values = iter(values)

    def read(self) -> Units:
        value = next(self._values)
        if isinstance(value, GuestError):
            raise value
        return {"vm": {self.quantity.value: value, "irq_exits": 0, "packets": value}}


def session_of(
    monkeypatch: pytest.MonkeyPatch, source: Source, packets: Source | None = None, *notes: str
) -> Session:
    """What the commands measure by from now on."""
    made = Session(Vm("vm1", Tier.KVM_PVM, "because", notes=list(notes)), source, packets)
    monkeypatch.setattr("vpt.exits.session.open_session", lambda *_: contextlib.nullcontext(made))
    return made


@pytest.mark.native
@pytest.mark.parametrize("samples", [1, 2])
def test_a_recording_says_what_ended_it_and_that_is_not_always_the_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    what = GuestError("vptd was started again", hint="measure again while it runs on")
    session_of(monkeypatch, _Counts(*range(1, 9)), _Counts(*range(samples), what))
    out = tmp_path / "r.json"
    result = cli("record", "vm1", "-o", out, "--interval", 0.05, "--", "sleep", 0.3)
    said = failure(result, GuestError)
    assert said.startswith("vptd was started again, before the command ended")
    assert isinstance(result.exception, VptError)
    assert "measure again while it runs on" in str(result.exception.hint)
    assert "start the VM" not in str(result.exception.hint)
    recording = load(out)
    assert (recording.complete, recording.ended) == (False, "vptd was started again")
    assert len(recording.samples) == samples


class _Outlived(_Counts):
    """Counters that stay when the domain ends; which it does before they are read for the third time."""

    def __init__(self, domain: Any) -> None:
        super().__init__(*range(9))
        self._domain = domain

    def read(self) -> Units:
        units = super().read()
        if units["vm"]["exits"] == 2:
            self._domain.destroy()
        return units


@pytest.mark.native
@pytest.mark.parametrize("persistent", [False, True])
def test_a_domain_that_ends_during_a_recording_is_named_with_what_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """Of libvirt's own test driver, whose domains have no process. A transient one is gone from libvirt."""
    libvirt, uri = pytest.importorskip("libvirt"), "test:///default"
    xml = "<domain type='test'><name>d</name><memory>9</memory><os><type>hvm</type></os></domain>"
    connection = libvirt.open(uri)
    domain = connection.defineXML(xml) if persistent else connection.createXML(xml)
    try:
        if persistent:
            domain.create()
        with open_vm("libvirt:d", uri) as vm:
            made = Session(vm, _Outlived(domain), None)
            monkeypatch.setattr("vpt.exits.session.open_session", lambda *_: contextlib.nullcontext(made))
            monkeypatch.setattr("vpt.exits.session._FINISH_S", 0.1)
            out = tmp_path / "r.json"
            result = cli("record", "d", "-o", out, "--interval", 0.05, "--", "sleep", 60)
    finally:
        if persistent:
            domain.undefine()
        connection.close()
    assert failure(result, GuestError).startswith(
        "the VM 'd' ended while it was measured, before the command"
    )
    hint = str(getattr(result.exception, "hint", ""))
    assert f"virsh -c {uri} {'start d' if persistent else 'create XMLFILE'}; measure again" in hint
    assert len(load(out).samples) == 2
    assert not load(out).complete


@pytest.mark.native
def test_a_domain_that_is_paused_is_named_and_noted() -> None:
    libvirt, uri = pytest.importorskip("libvirt"), "test:///default"
    connection = libvirt.open(uri)
    domain = connection.lookupByName("test")
    try:
        with open_vm("libvirt:test", uri) as vm:
            session = Session(vm, _Counts(0, 0), None)
            assert not session.sample().stopped
            domain.suspend()
            assert session.sample().stopped
            with pytest.raises(GuestError, match="its status is paused") as caught:
                session.require_running()
    finally:
        domain.resume()
        connection.close()
    assert caught.value.hint == f"virsh -c {uri} resume test, then measure"


class _Interrupted(_Counts):
    """A user has enough while it is read for the third time, and the command runs."""

    def __init__(self, number: signal.Signals, command_runs: Path) -> None:
        super().__init__(0, 100)
        self._number = number
        self._command_runs = command_runs

    def read(self) -> Units:
        try:
            return super().read()
        except StopIteration:
            until(self._command_runs.exists, "the command to run")
            os.kill(os.getpid(), self._number)
            raise AssertionError("the signal was not heard") from None


@pytest.mark.native
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_is_kept_and_its_command_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    again: signal.Signals,
) -> None:
    """Also by one who does not wait until the command has ended, but sends another signal."""
    ready, out = tmp_path / "ready", tmp_path / "r.json"
    session_of(monkeypatch, _Interrupted(number, ready))
    command = f"trap 'kill -{int(again)} $PPID; exit 7' TERM; : >{ready}; while :; do sleep 0.01; done"
    ended_by = main(
        ["exits", "record", "vm1", "-o", str(out), "--interval", "0.05", "--", "sh", "-c", command]
    )
    assert ended_by == 130
    said = capsys.readouterr().err
    assert f"interrupted, before the command ended; {out} holds 2 samples and is marked incomplete" in said
    assert f"vpt exits report {out}" in said
    recording = load(out)
    assert (recording.complete, recording.ended, recording.command_rc) == (False, "interrupted", 7)
    assert [sample.units["vm"]["exits"] for sample in recording.samples] == [0, 100]
    assert "incomplete: interrupted, before the command ended" in cli("report", out).stdout


@pytest.mark.native
def test_a_recording_without_a_count_of_its_packets_kicks_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest may have kicked each of them by an ioeventfd."""
    zero = _Counts(0, 0, quantity=Quantity.USERSPACE_EXITS)
    session_of(monkeypatch, zero, _Counts(0, 1509))
    result = cli("record", "vm1", "-o", tmp_path / "r.json", "--", "true")
    assert "no userspace_exits while 1509 packets passed" in failure(result, GuestError)
    assert "per packet" not in result.output


@pytest.mark.native
def test_record_prints_the_notes_that_its_number_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = _Counts(0, 7, quantity=Quantity.USERSPACE_EXITS)
    session_of(monkeypatch, few, _Counts(0, 500), "port v2 is not vm1's")
    result = cli("record", "vm1", "-o", tmp_path / "r.json", "--", "true")
    assert result.exit_code == 0, result.output
    assert "note: a kick that an ioeventfd takes" in result.stderr
    assert "note: port v2 is not vm1's" in result.stderr
    assert load(tmp_path / "r.json").notes == ("port v2 is not vm1's",)


@pytest.mark.parametrize(
    "fmt", [[], ["--json"], ["--csv"], ["--prometheus"]], ids=["table", "json", "csv", "text"]
)
def test_top_prints_the_notes_that_its_number_needs(monkeypatch: pytest.MonkeyPatch, fmt: list[str]) -> None:
    session_of(monkeypatch, _Counts(0, 7, 8, quantity=Quantity.USERSPACE_EXITS), _Counts(0, 500, 501))
    result = cli("top", "vm1", "--interval", 0.05, *fmt)
    assert result.exit_code == 0, result.output
    assert "ioeventfd" in (result.stderr if fmt in (["--csv"], ["--prometheus"]) else result.stdout)


def test_kicks_are_divided_by_the_packets_that_were_read_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that kicks each packet has 1 each, however fast packets come while counters are read."""
    ever_faster = _Counts(0, 100, 400, 900, quantity=Quantity.KICKS)
    monkeypatch.setattr("vpt.exits.session.open_vm", lambda *_: Vm("vm1", Tier.KVM, "because"))
    monkeypatch.setattr("vpt.exits.session.ports_of", lambda *_: ("p1",))
    monkeypatch.setattr("vpt.exits.session.open_source", lambda *_: ever_faster)
    result = cli("top", "vm1", "--source", "vpt", "--interval", 0.05, "--json")
    assert result.exit_code == 0, result.output
    (measure,) = json.loads(result.stdout)["measures"]
    assert measure["packets"] == measure["units"]["vm"]["packets"] == 100
    assert measure["per_packet"] == 1


@pytest.mark.native
def test_a_sample_says_whether_the_vms_process_is_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            made = Session(Vm("vm1", Tier.KVM, "because", pid=process.pid), _Counts(0, 0, 0), None)
            assert not made.sample().stopped
            process.send_signal(signal.SIGSTOP)
            until(lambda: is_stopped(Vm("vm1", Tier.KVM, "because", pid=process.pid)), "the process to stop")
            assert made.sample().stopped
        finally:
            process.kill()


@pytest.mark.native
@pytest.mark.parametrize("reaped", [True, False])
def test_a_vm_that_ended_is_noticed_by_a_source_that_is_not_its_own(reaped: bool) -> None:
    """A port's counters stay, and stand still: that would look like a guest without kicks."""
    with subprocess.Popen(["sleep", "60"]) as process:
        made = Session(Vm("vm1", Tier.TCG, "because", pid=process.pid), _Counts(0, 0), None)
        made.sample()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            process.wait()
        with pytest.raises(GuestError, match=rf"'vm1' ended .*\(process {process.pid}\)") as caught:
            made.sample()
    assert caught.value.hint


@pytest.mark.parametrize(("status", "stopped"), [("running", False), ("inmigrate", False), ("paused", True)])
def test_a_sample_says_whether_the_vm_is_paused(status: str, stopped: bool) -> None:
    class Qmp:
        def execute(self, command: str) -> dict[str, str]:
            assert command == "query-status"
            return {"status": status}

    vm = Vm("vm1", Tier.KVM, "because", qmp=cast("QmpSession", Qmp()))
    assert Session(vm, _Counts(0), None).sample().stopped == stopped


@pytest.mark.parametrize("vm", ["pid:²", "pid:٣", "pid:", "pid:-1", "pid:" + "9" * 5000, "pid:1_0"])
def test_what_is_no_process_id_is_wrong_usage(vm: str) -> None:
    failure(cli("top", vm), UsageError)


def test_without_a_daemon_its_counters_are_said_to_be_missing(tmp_path: Path) -> None:
    from vpt.exits.sources.vpt_counters import VptCounters

    with pytest.raises(MissingError, match="is vptd running"):
        VptCounters(tmp_path / "absent", ("p0",))


def test_vpts_own_counters_by_port(tmp_path: Path) -> None:
    from vpt.dataplane import Engine, Kind
    from vpt.exits.sources.vpt_counters import VptCounters

    path = tmp_path / "stats"
    with path.open("w+b") as file, Engine(stats_fd=file.fileno()) as engine:
        switch = engine.add_switch("s0")
        for name in ("p0", "p1"):
            switch.add_port(name, Kind.NULL)
        with VptCounters(path, ("p0",)) as source:
            assert source.read() == {
                "p0": dict.fromkeys(
                    ("kicks", "kicks_suppressed", "interrupts", "interrupts_suppressed", "packets", "copies"),
                    0,
                )
            }
        with VptCounters(path, ("p0", "p1")) as source:
            assert set(source.read()) == {"p0", "p1"}
        with pytest.raises(NotFoundError, match=r"no port p9; there are p0, p1") as caught:
            VptCounters(path, ("p9",))
        assert caught.value.hint == f"vpt --runtime-dir {tmp_path} ls"


def test_a_port_that_was_made_anew_or_deleted_is_no_longer_the_one_that_was_counted(tmp_path: Path) -> None:
    """Even where the new one carried more packets than the old one had."""
    from vpt.dataplane import Engine, Kind
    from vpt.exits.sources.vpt_counters import VptCounters

    path = tmp_path / "stats"
    with path.open("w+b") as file, Engine(stats_fd=file.fileno()) as engine:
        switch = engine.add_switch("s0")
        old = switch.add_port("p0", Kind.NULL)
        with VptCounters(path, ("p0",)) as source:
            source.read()
            old.delete()
            with pytest.raises(GuestError, match="port p0 was deleted while") as caught:
                source.read()
            assert f"vpt --runtime-dir {tmp_path} ls shows" in (caught.value.hint or "")
            switch.add_port("p0", Kind.NULL)
            with pytest.raises(GuestError, match="port p0 was deleted and made anew") as caught:
                source.read()
            assert caught.value.hint


def test_a_vptd_that_ended_or_was_started_again_is_named(tmp_path: Path) -> None:
    """The old one's counters can be read for ever, and stand still."""
    from vpt.dataplane import Engine, Kind
    from vpt.exits.sources.vpt_counters import VptCounters

    path = tmp_path / "stats"
    with path.open("w+b") as file, Engine(stats_fd=file.fileno()) as engine:
        engine.add_switch("s0").add_port("p0", Kind.NULL)
        with VptCounters(path, ("p0",)) as source:
            path.rename(tmp_path / "old")
            with pytest.raises(GuestError, match="vptd ended") as caught:
                source.read()
            assert "daemon start" in (caught.value.hint or "")
            path.write_bytes((tmp_path / "old").read_bytes())
            with pytest.raises(GuestError, match="vptd was started again"):
                source.read()
