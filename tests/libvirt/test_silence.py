# SPDX-License-Identifier: BSD-2-Clause
"""A libvirtd that takes connections and says nothing: stopped, as a debugger or a full disk would do it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.libvirt import NEEDS, Vpt
from support.libvirtd import Libvirtd, stopped
from support.waiting import PATIENCE_S, until
from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.doctor import _libvirt as doctor
from vpt.hints import virsh
from vpt.libvirt_plugin import _answers, rules

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240), pytest.mark.needs(*NEEDS, "libvirtd", "unshare")]


@pytest.fixture(autouse=True)
def nobody_waits_any_more() -> Iterator[None]:
    """A connection that came too late for one test is not the next one's."""
    yield
    while _answers._opening:
        returned, connection = _answers._opening.popitem()[1].get(timeout=PATIENCE_S)
        if returned:
            connection.close()


def test_attach_says_what_it_waited_for_when_nobody_takes_its_connection(
    libvirtd: Libvirtd, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_answers, "_OPEN_S", 1.0)
    with stopped(libvirtd):
        code, out, err = vpt("attach", "any", "--switch", "sw0", uri=libvirtd.uri)
    assert (code, out) == (1, "")
    assert f"libvirt at {libvirtd.uri} does not answer: waited 1 s for it to take a connection" in err
    assert "ps -o pid,stat,cmd -C libvirtd" in err
    assert vptd.call("port.list")["ports"] == []


def test_who_tries_again_and_again_waits_for_the_same_answer(
    libvirtd: Libvirtd, vpt: Vpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch does, for as long as libvirtd is stopped: a thread and a socket each time would be too many."""
    monkeypatch.setattr(_answers, "_OPEN_S", 0.2)
    with stopped(libvirtd):
        assert vpt("detach", "any", uri=libvirtd.uri)[0] == 1
        waiting = threading.active_count()
        for _ in range(5):
            assert vpt("detach", "any", uri=libvirtd.uri)[0] == 1
        assert threading.active_count() == waiting
    monkeypatch.undo()
    code, _, err = vpt("detach", "any", uri=libvirtd.uri)
    assert (code, "no domain 'any'" in err) == (1, True), err
    assert _answers._opening == {}


def test_doctor_says_so_and_goes_on(
    libvirtd: Libvirtd, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ANSWER_S", 1.0)
    with stopped(libvirtd):
        [check] = doctor.looked_at(locate(str(runtime)), "libvirt", libvirtd.uri)
    assert check.verdict == "note"
    assert f"libvirt at {libvirtd.uri} does not answer: waited 1 s" in check.what
    assert "systemctl restart libvirtd" in check.fix


def test_silence_in_the_middle_of_an_attach_is_named_and_undone(
    libvirtd: Libvirtd, vpt: Vpt, vptd: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the port made, and the domain about to be changed."""
    monkeypatch.setattr(_answers, "_ASK_S", 1)
    monkeypatch.setattr(_answers, "_SILENT", 1)
    guest = libvirtd.libvirt.define("quiet")
    before = guest.domain.XMLDesc(2)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(rules, "validate", lambda _xml: os.kill(libvirtd.pid, signal.SIGSTOP))
            code, _, err = vpt("attach", "quiet", "--switch", "sw0", uri=libvirtd.uri)
        assert (code, "does not answer: waited" in err, "isPersistent()" in err) == (1, True, True), err
        assert vptd.call("port.list")["ports"] == []
        os.kill(libvirtd.pid, signal.SIGCONT)
        assert guest.domain.XMLDesc(2) == before
    finally:
        os.kill(libvirtd.pid, signal.SIGCONT)
        libvirtd.libvirt.remove(guest)


def test_a_qemu_that_does_not_answer_libvirt_is_named_and_its_ports_stay_for_it(
    libvirtd: Libvirtd, vpt: Vpt, vptd: Client, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does what it was told once it goes on, and would hang for good if the port had gone."""
    guest = libvirtd.libvirt.define("stuck")
    guest.start()
    pid = libvirtd.qemu_pid("stuck")
    named = ("attach", "stuck", "--switch", "sw0", "--live", "--port")
    try:
        assert vpt(*named, "p1", uri=libvirtd.uri)[0] == 0
        monkeypatch.setattr(_answers, "_VM_S", 2.0)
        os.kill(pid, signal.SIGSTOP)
        code, _, err = vpt(*named, "p2", uri=libvirtd.uri)
        assert (code, "QEMU did not answer libvirt within 2 s" in err, "port p2 stays" in err) == (
            1,
            True,
            True,
        )
        undo = virsh(libvirtd.uri, "detach-device-alias", "stuck", "ua-vpt-p2", "--live")
        assert f"{undo}; vpt --runtime-dir {runtime} port del p2" in err.partition("hint:")[2]
        code, _, err = vpt(*named, "p1", "--packed", uri=libvirtd.uri)
        detach = shlex.join(["vpt", "detach", "stuck", "p1", "--connect", libvirtd.uri])
        assert (code, detach in err) == (1, True), err
        code, _, err = vpt("detach", "stuck", "p1", uri=libvirtd.uri)
        assert (code, "QEMU did not answer libvirt within 2 s" in err, "kill -CONT" in err) == (1, True, True)
        assert [port["name"] for port in vptd.call("port.list")["ports"]] == ["p1", "p2"]
        os.kill(pid, signal.SIGCONT)
        until(lambda: rules.alias_in(guest.domain.XMLDesc(0), "p2"), "the device that was asked for")
    finally:
        os.kill(pid, signal.SIGCONT)
        libvirtd.libvirt.remove(guest)
        for port in vptd.call("port.list")["ports"]:
            vptd.call("port.del", name=port["name"])


@pytest.mark.parametrize("command", [("attach", "any", "--switch", "sw0"), ("detach", "any")], ids=" ".join)
def test_ctrl_c_ends_a_command_that_waits_for_libvirt(
    libvirtd: Libvirtd, runtime: Path, command: tuple[str, ...]
) -> None:
    argv = [
        "env",
        "--default-signal=INT",  # of a test run in the background of a shell, it is ignored
        sys.executable,
        "-m",
        "vpt.cli",
        "--runtime-dir",
        str(runtime),
        *command,
        "--connect",
        libvirtd.uri,
    ]
    with stopped(libvirtd), subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as waiting:
        try:
            # Itself, libvirt's events, and the call that waits.
            tasks = Path(f"/proc/{waiting.pid}/task")
            until(lambda: len(list(tasks.iterdir())) == 3, "it to wait")
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(PATIENCE_S) == 130
        finally:
            waiting.kill()
        assert waiting.stderr is not None
        assert waiting.stderr.read().strip() == ""
