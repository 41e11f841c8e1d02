# SPDX-License-Identifier: BSD-2-Clause
"""What packages install beside the program: systemd takes it, and vptd lives within what its unit allows."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.vptd import Vptd
from support.waiting import until

pytestmark = pytest.mark.native  # groff, systemd and shells are not built with sanitizers

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = ("systemd/vptd.service", "systemd/user/vptd.service")
SOCKETS = ("systemd/vptd.socket", "systemd/user/vptd.socket")
WATCH_UNITS = ("systemd/vpt-libvirt-watch.service", "systemd/user/vpt-libvirt-watch.service")


def _run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)


def _settings(unit: str) -> dict[str, str]:
    lines = (PACKAGING / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


# ---- what systemd says ----


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS + SOCKETS + WATCH_UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: str, tmp_path: Path) -> None:
    """It also looks for the program and the manual pages: those of this tree are not installed."""
    programs = Path(sys.executable).parent
    # A socket's service is looked at with it.
    for name in (unit, unit.replace(".socket", ".service")):
        text = (PACKAGING / name).read_text()
        text = re.sub(r"^ExecStart=(\S+)", rf"ExecStart={programs}/\1", text, flags=re.MULTILINE)
        path = tmp_path / Path(name).name
        path.write_text(re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE))
    path = tmp_path / Path(unit).name
    scope = ["--user"] if "/user/" in unit else []
    verify = ["systemd-analyze", *scope, "verify", "--man=no", "--recursive-errors=no"]
    done = _run(*verify, path, XDG_RUNTIME_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", [UNITS[0], WATCH_UNITS[0]])
def test_the_unit_gives_its_program_little_to_be_abused_for(unit: str) -> None:
    """systemd's own measure: below 3.0 (of 10, "UNSAFE"). What remains is the network, taps and /tmp."""
    path = PACKAGING / unit
    done = _run("systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", path)
    assert done.returncode == 0, done.stdout[-600:]


@pytest.mark.needs("systemd-sysusers")
def test_the_user_that_the_unit_names_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = _run("systemd-sysusers", f"--root={tmp_path}", PACKAGING / "sysusers.d/vpt.conf")
    assert done.returncode == 0, done.stderr
    made = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    settings = _settings(UNITS[0])
    assert made == {settings["User"]} == {settings["Group"]}


@pytest.mark.needs("systemd-tmpfiles")
def test_systemd_reads_the_rules_for_temporary_files(tmp_path: Path) -> None:
    done = _run("systemd-tmpfiles", "--create", f"--root={tmp_path}", PACKAGING / "tmpfiles.d/vpt.conf")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_spares_the_keeper_and_does_not_repeat_what_cannot_work(unit: str) -> None:
    settings = _settings(unit)
    assert settings["KillMode"] == "process", "the keeper holds guests' memory, and must outlive vptd"
    assert settings["RestartPreventExitStatus"] == "2 3", "wrong usage, damaged journal, something missing"
    assert settings["Restart"] == "on-failure"


# ---- what vptd does ----


@pytest.mark.parametrize("form", ["path", "abstract"])
def test_the_service_manager_hears_when_ports_are_there_and_when_vptd_ends(
    vptd: Vptd, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type=notify: what is ordered after vptd starts when its sockets exist, not when its process does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(vptd.folder / "notify")
        manager.bind(path if form == "path" else f"\0{path}")
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", path if form == "path" else f"@{path}")
        vptd.process = vptd.spawn()
        assert manager.recv(100) == b"READY=1"
        assert vptd.call("daemon.status")["pid"] == vptd.process.pid, "ready means that it answers"
        vptd.process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert vptd.process.wait(30) == 0


# What systemd does for a socket unit (sd_listen_fds(3)): the listening socket is descriptor 3 of the program.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "vpt.daemon.main", *sys.argv[2:]])
"""


def _activated(vptd: Vptd, listener: socket.socket) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", _ACTIVATE, str(listener.fileno())]
    argv += ["--runtime-dir", str(vptd.paths.runtime), "--state-dir", str(vptd.paths.state), "--no-keeper"]
    return subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)


def test_a_command_that_came_before_vptd_is_answered_and_the_socket_outlives_it(vptd: Vptd) -> None:
    vptd.paths.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vptd.paths.control))
        listener.listen()
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as early:
                early.connect(str(vptd.paths.control))
                early.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "daemon.status", "params": {}}\n')
                process = _activated(vptd, listener)
                early.settimeout(60)
                assert b'"pid":' in early.recv(4096)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert vptd.paths.control.is_socket(), "it is the service manager's, who goes on listening"
        process.stderr.close()  # type: ignore[union-attr]


def test_a_socket_that_the_commands_would_not_find_is_refused(vptd: Vptd) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vptd.folder / "elsewhere.sock"))
        listener.listen()
        _, said = (process := _activated(vptd, listener)).communicate(timeout=60)
        assert process.returncode == 2
        assert b"elsewhere.sock" in said
        assert b"hint: make ListenStream=" in said


def test_a_service_manager_that_is_not_there_does_not_matter(
    vptd: Vptd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(vptd.folder / "nobody"))
    vptd.start()
    assert vptd.stop() == 0


def _allowed(group: str) -> set[str]:
    """System calls of a group of systemd's, with those of the groups in it."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    # The first line is the group itself.
    members = [line.strip() for line in listed.stdout.splitlines()[1:] if not line.strip().startswith("#")]
    calls = {member for member in members if not member.startswith("@")}
    return calls.union(*(_allowed(member) for member in members if member.startswith("@")))


@pytest.mark.native
@pytest.mark.needs("strace", "systemd-analyze")
def test_vptd_and_its_keeper_make_only_system_calls_that_the_unit_allows(vptd: Vptd) -> None:
    """Under strace, a port of each kind that needs no device. And no memory is both written and executed."""
    trace = vptd.folder / "trace"
    if _run("strace", "-o", "/dev/null", "true").returncode:
        pytest.skip("missing: permission to trace processes")
    program = ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "vpt.daemon.main"]
    program += ["--runtime-dir", str(vptd.paths.runtime), "--state-dir", str(vptd.paths.state)]
    vptd.process = subprocess.Popen([*program, "--linger", "5"], stderr=subprocess.DEVNULL)
    until(vptd.answers, "vptd to answer")
    vptd.call("switch.add", name="sw0")
    for kind in ("passthrough", "vhost-user", "app", "null"):
        vptd.call("port.add", switch="sw0", name=f"p-{kind}", kind=kind)
    vptd.keeper()
    vptd.call("daemon.stop", keep=False)
    vptd.process.wait(60)
    lines = trace.read_text().splitlines()
    # "[pid] name(...": what is resumed or exits was counted when it began.
    made = {match[1] for line in lines if (match := re.match(r"\d+ +([a-z_0-9]+)\(", line))}
    assert {"epoll_pwait2", "memfd_create"} & made, "the data plane was traced as well"
    assert made <= _allowed(_settings(UNITS[0])["SystemCallFilter"])
    both = [line for line in lines if "PROT_WRITE|PROT_EXEC" in line]
    assert not both, "MemoryDenyWriteExecute"
