# SPDX-License-Identifier: BSD-2-Clause
"""The command line: what it prints, how it ends, what it loads, and that its help is complete."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from support.vptd import Vptd, gone, run_vpt, vpt_json
from support.waiting import PATIENCE_S, until
from vpt import __version__, errors
from vpt.cli import _main, _system_errors, main
from vpt.cli._main import vpt
from vpt.cli._table import COMMANDS
from vpt.daemon.transports.unix import open_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    """A vptd with a switch and some ports."""
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    daemon.call("port.add", switch="sw0", name="vm1", kind="vhost-user", mac="52:54:00:00:00:01", pairs=2)
    daemon.call("port.add", switch="sw0", name="vm2", kind="passthrough")
    daemon.call("port.add", switch="sw0", name="sink", kind="null")
    yield daemon
    daemon.close()


@pytest.fixture
def nowhere() -> Iterator[Path]:
    """A folder for a vptd that is not there. Whatever a test starts there is ended."""
    with tempfile.TemporaryDirectory(prefix="vpt-") as name:
        yield Path(name)
        run_vpt(Path(name), "daemon", "stop", "--no-keep")


# ---- what is loaded ----

HEAVY = {
    *("pydantic", "rich", "cffi", "yaml", "asyncio", "libvirt", "lxml", "paramiko", "difflib", "logging"),
    *("vpt._vpt", "vpt.dataplane", "vpt.topology", "vpt.provision", "vpt.libvirt_plugin", "vpt.qemu"),
}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY | {"socket", "vpt.daemon", "vpt.cli._common"}),
        (["--version"], HEAVY | {"socket", "vpt.daemon", "vpt.cli._common"}),
        (["port", "--help"], HEAVY | {"socket", "vpt.daemon"}),
        (["daemon", "status"], HEAVY),
        (["ls"], HEAVY),
    ],
)
def test_nothing_heavy_is_loaded(lab: Vptd, arguments: list[str], unwanted: set[str]) -> None:
    """`vpt --help` is to answer in under 150 ms, `vpt ls` in 250: what decides that is what is imported."""
    script = (
        "import sys, vpt.cli; code = vpt.cli.main(sys.argv[1:]);"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        env={**os.environ, "VPT_RUNTIME_DIR": str(lab.paths.runtime)},
    )
    assert not unwanted & set(done.stderr.split())


def test_attaching_loads_no_more_than_it_needs() -> None:
    script = "import sys, vpt.libvirt_plugin.attach; print(*sys.modules)"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    unwanted = {"ssl", "hashlib", "pydantic", "asyncio", "cffi", "lxml", "vpt.dataplane"}
    assert not unwanted & set(done.stdout.split())


# ---- help ----


def _commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


ALL = [pytest.param(command, id=" ".join(path)) for path, command in _commands(vpt)]


@pytest.mark.parametrize("command", ALL)
def test_each_command_explains_itself_with_an_example(command: click.Command) -> None:
    assert command.help
    assert command.help.splitlines()[0].endswith("."), "its first line is a sentence"
    if not isinstance(command, click.Group):
        assert "vpt " in command.help, "it shows at least one example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts[0]} has no help"


_NUMBERS = [
    pytest.param(parameter, id=f"{' '.join(path)} {parameter.opts[0]}")
    for path, command in _commands(vpt)
    for parameter in command.params
    if isinstance(parameter.type, click.types.FloatParamType)
]


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize("parameter", _NUMBERS)
def test_no_option_takes_what_is_no_finite_number(parameter: click.Parameter, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not (a finite number|in the range)"):
        parameter.type.convert(text, parameter, None)


@pytest.mark.parametrize("row", COMMANDS, ids=[row.name for row in COMMANDS])
def test_the_table_of_commands_says_what_the_command_says(row: object) -> None:
    """The list in `vpt --help` is printed without loading the commands, so it could differ from them."""
    module, _, attribute = row.target.partition(":")  # type: ignore[attr-defined]
    command = getattr(importlib.import_module(module), attribute)
    assert command.help.splitlines()[0] == row.help  # type: ignore[attr-defined]
    assert command.name == row.name  # type: ignore[attr-defined]


def test_help_lists_all_commands(nowhere: Path) -> None:
    done = run_vpt(nowhere, "--help")
    assert done.returncode == 0
    for row in COMMANDS:
        assert f"  {row.name} " in done.stdout
    assert run_vpt(nowhere, "-h").stdout == done.stdout


def test_version(nowhere: Path) -> None:
    assert run_vpt(nowhere, "--version").stdout == f"vpt, version {__version__}\n"


# ---- exit codes, errors ----


@pytest.mark.parametrize(
    "where", ["README.md", "docs/cli.md", "docs/continuous-integration.md", "vpt --help"]
)
def test_every_exit_code_is_in_each_table_of_them(where: str) -> None:
    text = vpt.epilog if where == "vpt --help" else (ROOT / where).read_text()
    table = str(text).partition("0 done")[2]
    for code in (errors.EXIT_FAILED, errors.EXIT_USAGE, errors.EXIT_MISSING, errors.EXIT_DIFFERENT):
        assert re.search(rf"\b{code}\b", table[:260]), code


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["port"],
        ["port", "add"],
        ["port", "add", "sw0", "x"],
        ["port", "add", "sw0", "x", "--kind", "nonsense"],
        ["port", "add", "sw0", "x", "--kind", "null", "--pairs", "many"],
        ["port", "set", "x"],
        ["daemon", "start", "--workers", "0"],
        ["ls", "extra"],
    ],
)
def test_wrong_usage_is_2_before_anything_is_asked_of_vptd(nowhere: Path, arguments: list[str]) -> None:
    done = run_vpt(nowhere, *arguments)
    assert done.returncode == 2
    assert "Usage: vpt" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["port", "list"], ["switch", "add", "x"], ["show", "x"], ["top", "--once"], ["stats"]],
)
def test_without_vptd_the_hint_says_how_to_start_it(nowhere: Path, arguments: list[str]) -> None:
    done = run_vpt(nowhere, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: vptd is not running" in done.stderr
    assert f"hint: start it with: vpt --runtime-dir {nowhere} daemon start\n" in done.stderr
    done = run_vpt(nowhere, *arguments, "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert (error["schema"], error["code"]) == ("vpt.error/v1", "not-running")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["port", "add", "none", "x", "--kind", "null"], 1, "no switch 'none'"),
        (["port", "add", "sw0", "vm1", "--kind", "null"], 1, "there is a port 'vm1' already"),
        (["port", "add", "sw0", "x", "--kind", "null", "--mac", "ff:ff:ff:ff:ff:ff"], 2, "multicast"),
        (["port", "add", "sw0", "x", "--kind", "null", "--pairs", "2"], 2, "at most 1 queue pair"),
        (["port", "add", "sw0", "x" * 32, "--kind", "null"], 2, "name"),
        (["port", "del", "x"], 1, "no port 'x'"),
        (["port", "list", "--switch", "none"], 1, "no switch 'none'"),
        (["switch", "del", "sw0"], 1, "still has ports"),
        (["switch", "add", "y", "--mac-entries", "1000"], 2, "power of two"),
        (["show", "vm3"], 1, "did you mean vm"),
        (["show", "none"], 1, "no switch or port 'none'"),
        (["capture", "none", "-w", "/dev/null"], 1, "no port or switch 'none'"),
        (["gen", "send"], 2, "either --switch or --port"),
        (["gen", "send", "--port", "vm3", "--count", "1"], 1, "no port 'vm3'"),
        (["daemon", "methods", "none"], 1, "no method"),
    ],
)
def test_refusals_have_message_hint_and_exit_code_and_the_hint_asks_the_same_vptd(
    lab: Vptd, arguments: list[str], code: int, says: str
) -> None:
    done = run_vpt(lab.paths.runtime, *arguments)
    assert done.returncode == code
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    assert says in done.stderr
    as_json = json.loads(run_vpt(lab.paths.runtime, *arguments, "--json").stdout)
    assert as_json["message"]
    assert as_json["hint"]
    assert "vpt " not in as_json["hint"].replace(f"vpt --runtime-dir {lab.paths.runtime} ", "")


def test_the_path_of_a_qmp_socket_is_no_domain_when_qemu_has_ended(lab: Vptd) -> None:
    """QEMU has taken the file along; only the words can tell."""
    done = run_vpt(lab.paths.runtime, "attach", "gone.qmp", "--switch", "sw0")
    assert (done.returncode, "gone.qmp: no such QMP socket" in done.stderr) == (1, True), done.stderr
    lab.call("port.add", switch="sw0", name="left", kind="null", owner=f"qmp:{Path('gone.qmp').absolute()}")
    done = run_vpt(lab.paths.runtime, "detach", "gone.qmp")
    assert (done.returncode, "the VM has ended; the port is deleted" in done.stdout) == (0, True), done.stderr


@pytest.mark.needs("py:libvirt")
@pytest.mark.native
def test_with_connect_it_is_a_domain_whatever_it_is_called(lab: Vptd) -> None:
    away = "qemu+unix:///system?socket=/nonexistent/sock"
    done = run_vpt(lab.paths.runtime, "attach", "odd.qmp", "--switch", "sw0", "--connect", away)
    assert (done.returncode, "no libvirt at" in done.stderr) == (3, True), done.stderr


def test_a_file_is_no_qmp_socket(lab: Vptd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_vpt(lab.paths.runtime, "attach", str(tmp_path / "file"), "--switch", "sw0")
    assert (done.returncode, "is not a socket" in done.stderr) == (1, True)
    assert "hint: QEMU makes one of the option -qmp unix:PATH" in done.stderr


@pytest.mark.needs("py:libvirt")
@pytest.mark.native
@pytest.mark.parametrize("uri", ["foo:///x", "nonsense", "lxc:///system"])
def test_a_libvirt_that_has_no_qemu_is_wrong_usage(lab: Vptd, uri: str) -> None:
    """Nothing that is started would help."""
    attach = ("attach", "web1", "--switch", "sw0")
    for done in (
        run_vpt(lab.paths.runtime, *attach, "--connect", uri),
        run_vpt(lab.paths.runtime, *attach, LIBVIRT_DEFAULT_URI=uri),
    ):
        assert (done.returncode, f"{uri!r} is no URI of libvirt's driver for QEMU" in done.stderr) == (
            2,
            True,
        )
        assert "--connect qemu:///system" in done.stderr.partition("hint:")[2]


@pytest.mark.needs("/dev/full")
def test_a_full_disk_is_said_in_one_line(lab: Vptd) -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "vpt.cli", "apply", "--schema"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: its output: No space left on device",
        "hint: the disk is full: df -h .",
    ]


@pytest.mark.parametrize("number", sorted(_system_errors._HINTS))
def test_what_the_host_refuses_has_its_hint(number: int, tmp_path: Path) -> None:
    told = _system_errors.in_words(OSError(number, "", str(tmp_path / "file")))
    assert told is not None
    assert told.message == f"{tmp_path}/file: {os.strerror(number)}"
    assert told.hint
    assert "{" not in told.hint


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT, 0])
def test_a_fault_of_our_own_is_not_put_down_to_the_host(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, "ours")

    monkeypatch.setattr(_main.vpt, "main", fail)
    with pytest.raises(OSError, match="ours"):
        main(["ls"])


def test_deleting_a_port_in_use_says_who_loses_it(lab: Vptd) -> None:
    shown = lab.call("port.add", switch="sw0", name="used", kind="app", owner="qmp:/run/web.qmp")
    with open_app(shown["socket"]):
        until(lambda: lab.call("port.show", name="used")["state"] == "up", "the port to be up")
        done = run_vpt(lab.paths.runtime, "port", "del", "used")
    assert (done.returncode, done.stdout) == (0, "deleted port used\n")
    assert done.stderr == (
        f"warning: used was in use by qmp:/run/web.qmp (process {os.getpid()}), which has lost its link\n"
    )
    lab.call("port.add", switch="sw0", name="used", kind="app")
    assert run_vpt(lab.paths.runtime, "port", "del", "used").stderr == ""


def test_a_reader_that_had_enough_is_no_error(lab: Vptd) -> None:
    script = f"{sys.executable} -m vpt.cli daemon methods --json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "VPT_RUNTIME_DIR": str(lab.paths.runtime)},
    )
    assert done.stderr == ""
    assert len(done.stdout) == 10


# ---- what is printed ----


def test_ls_has_a_line_per_port(lab: Vptd) -> None:
    lines = run_vpt(lab.paths.runtime, "ls").stdout.splitlines()
    assert lines[0].split()[:4] == ["PORT", "SWITCH", "KIND", "STATE"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["sink", "sw0", "null", "up"],
        ["vm1", "sw0", "vhost-user", "down"],
        ["vm2", "sw0", "passthrough", "down"],
    ]
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize(
    ("arguments", "schema", "key"),
    [
        (["ls"], "vpt.ls/v1", "ports"),
        (["port", "list"], "vpt.ports/v1", "ports"),
        (["switch", "list"], "vpt.switches/v1", "switches"),
        (["switch", "macs", "sw0"], "vpt.macs/v1", "macs"),
        (["show", "vm1"], "vpt.show/v1", "port"),
        (["show", "sw0"], "vpt.show/v1", "switch"),
        (["daemon", "status"], "vpt.daemon/v1", "pid"),
        (["daemon", "methods"], "vpt.methods/v1", "methods"),
        (["top", "--once", "--interval", "0.1"], "vpt.top/v1", "ports"),
    ],
)
def test_json_says_which_schema_it_is(lab: Vptd, arguments: list[str], schema: str, key: str) -> None:
    printed = vpt_json(lab.paths.runtime, *arguments)
    assert next(iter(printed)) == "schema"
    assert printed["schema"] == schema
    assert key in printed


def test_show_says_how_to_plug_a_guest_in(lab: Vptd) -> None:
    shown = run_vpt(lab.paths.runtime, "show", "vm2").stdout
    assert f"-chardev socket,id=vm2,path={lab.socket('vm2')}" in shown
    assert "-device ivshmem-doorbell,vectors=3,chardev=vm2" in shown
    assert "maxcpus=2" in shown, "one CPU under TCG loses memory barriers"
    shown = run_vpt(lab.paths.runtime, "show", "vm1").stdout
    assert "share=on" in shown
    assert "queues=2" in shown
    assert "mac=52:54:00:00:00:01,mq=on,vectors=6" in shown


def test_a_port_is_added_changed_and_deleted(lab: Vptd) -> None:
    runtime = lab.paths.runtime
    done = run_vpt(
        runtime, "port", "add", "sw0", "new", "--kind", "app", "--policy", "sleep", "--sleep-us", "9"
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "port new (app) is on switch sw0"
    again = vpt_json(
        runtime,
        *[
            "port",
            "add",
            "sw0",
            "new",
            "--kind",
            "app",
            "--policy",
            "sleep",
            "--sleep-us",
            "9",
            "--may-exist",
        ],
    )
    assert again["policy"] == {"kind": "sleep", "spin_us": 50, "sleep_us": 9}
    changed = vpt_json(
        runtime, *["port", "set", "new", "--link", "down", "--policy", "adaptive", "--spin-us", "7"]
    )
    assert (changed["link"], changed["policy"]["kind"], changed["policy"]["spin_us"]) == (
        "down",
        "adaptive",
        7,
    )
    assert run_vpt(runtime, "port", "del", "new").stdout == "deleted port new\n"
    assert vpt_json(runtime, "port", "del", "new", "--if-exists") == {
        "schema": "vpt.changed/v1",
        "name": "new",
        "changed": False,
    }


def test_top_counts_what_passes(lab: Vptd) -> None:
    rows = {port["port"]: port for port in vpt_json(lab.paths.runtime, "top", "--interval", "0.1")["ports"]}
    assert set(rows) == {"vm1", "vm2", "sink"}
    assert rows["sink"]["tx_pps"] == 0
    assert rows["sink"]["kicks_per_packet"] is None, "no packets: no ratio"
    table = run_vpt(lab.paths.runtime, "top", "--once", "--interval", "0.1").stdout
    assert "KICKS/pkt" in table


# ---- vpt daemon ----


def test_start_and_stop_are_idempotent(nowhere: Path) -> None:
    first = vpt_json(nowhere, "daemon", "start", "--timeout", "30")
    assert first["started"] is True
    again = vpt_json(nowhere, "daemon", "start")
    assert again["started"] is False
    assert again["pid"] == first["pid"]
    assert "running already" in run_vpt(nowhere, "daemon", "start").stdout
    assert run_vpt(nowhere, "daemon", "status").returncode == 0
    assert vpt_json(nowhere, "daemon", "stop")["stopped"] is True
    until(lambda: gone(first["pid"]), "vptd to be gone")
    assert vpt_json(nowhere, "daemon", "stop")["stopped"] is False
    status = run_vpt(nowhere, "daemon", "status")
    assert status.returncode == 1
    assert status.stderr.endswith(f"start it with: vpt --runtime-dir {nowhere} daemon start\n")


def test_what_was_set_up_is_there_again_after_stop_and_start(nowhere: Path) -> None:
    assert run_vpt(nowhere, "daemon", "start").returncode == 0
    assert run_vpt(nowhere, "switch", "add", "sw0").returncode == 0
    assert run_vpt(nowhere, "port", "add", "sw0", "vm1", "--kind", "vhost-user").returncode == 0
    assert run_vpt(nowhere, "daemon", "stop").returncode == 0
    assert run_vpt(nowhere, "daemon", "start").returncode == 0
    assert [port["name"] for port in vpt_json(nowhere, "ls")["ports"]] == ["vm1"]


def test_a_start_that_fails_shows_the_end_of_the_log(nowhere: Path) -> None:
    (nowhere / "state").mkdir()
    (nowhere / "state" / "journal.json").write_text("garbage")
    done = run_vpt(nowhere, "daemon", "start")
    assert done.returncode == 2, "vptd's own exit code"
    assert "vptd ended at once" in done.stderr
    assert f"mv {nowhere}/state/journal.json" in done.stderr


def test_the_runtime_dir_can_be_an_option(lab: Vptd, nowhere: Path) -> None:
    done = run_vpt(nowhere, "--runtime-dir", str(lab.paths.runtime), "ls")
    assert done.returncode == 0
    assert "vm1" in done.stdout


# ---- vpt doctor ----


def test_doctor_sends_packets_and_gives_each_line_a_verdict(nowhere: Path) -> None:
    done = run_vpt(nowhere, "doctor", "--no-boot", "--json")
    report = json.loads(done.stdout)
    assert report["schema"] == "vpt.doctor/v1"
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["data plane"]["verdict"] == "ok"
    assert "1000 packets" in checks["data plane"]["what"]
    assert checks["vptd"] == {
        "name": "vptd",
        "verdict": "note",
        "what": "not running",
        "fix": f"vpt --runtime-dir {nowhere} daemon start",
    }
    missing = [check for check in checks.values() if check["verdict"] == "missing"]
    assert done.returncode == (3 if missing else 0)
    assert report["ready"] is (not missing)
    for check in missing:
        assert check["fix"], f"{check['name']}: missing, and no word on what to do"


def test_doctor_says_what_is_missing_and_how_to_get_it(nowhere: Path) -> None:
    """On a PATH where there is no QEMU and no busybox."""
    done = run_vpt(nowhere, "doctor", "--no-boot", PATH=str(nowhere))
    assert done.returncode == 3
    assert "apt-get install qemu-system-x86" in done.stdout
    assert "apt-get install busybox-static" in done.stdout
    assert "missing: QEMU" in done.stdout
