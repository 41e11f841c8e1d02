# SPDX-License-Identifier: BSD-2-Clause
"""A real vptd and clients of every sort of manners."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from typing import Any

import pytest

from support.vptd import Vptd
from support.waiting import PATIENCE_S, until
from vpt.daemon.client import Client
from vpt.daemon.rpc import MAX_REQUEST
from vpt.daemon.sockets import connect_unix
from vpt.errors import (
    DaemonError,
    NotFoundError,
    VptError,
)


def raw(daemon: Vptd) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    connect_unix(sock, str(daemon.paths.control), PATIENCE_S)
    return sock


def line(sock: socket.socket) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(sock.makefile("rb").readline())
    return answer


def test_a_request_that_never_ends_is_cut_off(shared: Vptd) -> None:
    with raw(shared) as sock:
        try:
            sock.sendall(b"x" * (2 * MAX_REQUEST + 1))
        except ConnectionError:
            pass
        else:
            answer = sock.makefile("rb").readline()
            assert not answer or json.loads(answer)["error"]["code"] == -32600
    shared.call("daemon.status")


def test_a_line_that_is_too_long_gets_an_error(shared: Vptd) -> None:
    with raw(shared) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * MAX_REQUEST + b'"}\n')
        assert line(sock)["error"]["code"] == -32600


def test_garbage_is_answered_and_the_connection_goes_on(shared: Vptd) -> None:
    with raw(shared) as sock:
        stream = sock.makefile("rb")
        for garbage in (b"\n", b"{}\n", b"\xff\xfe\n", b"[1,2]\n", b"[" * 10000 + b"\n"):
            sock.sendall(garbage)
            assert "error" in json.loads(stream.readline())
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"daemon.status"}\n')
        assert json.loads(stream.readline())["result"]["version"]


def test_requests_in_one_burst_are_answered_in_order(shared: Vptd) -> None:
    with raw(shared) as sock:
        request = '{{"jsonrpc":"2.0","id":{},"method":"switch.list"}}\n'
        sock.sendall("".join(request.format(i) for i in range(500)).encode())
        stream = sock.makefile("rb")
        assert [json.loads(stream.readline())["id"] for _ in range(500)] == list(range(500))


def test_a_client_that_never_reads_stops_itself_only(shared: Vptd) -> None:
    """Its requests are taken until its answers fill the socket; nobody else waits, memory does not grow."""
    with raw(shared) as deaf:
        deaf.setblocking(False)
        request = b'{"jsonrpc":"2.0","id":1,"method":"daemon.methods"}\n' * 100
        sent = 0
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                sent += deaf.send(request)
            except BlockingIOError:
                if shared.call("daemon.status") and sent:
                    break
        assert sent < 10 << 20, "it was stopped"
        for _ in range(20):
            shared.call("daemon.status")


def test_a_slow_client_is_waited_for(shared: Vptd) -> None:
    with raw(shared) as slow:
        for byte in b'{"jsonrpc":"2.0","id":1,"method":"daemon.status"}\n':
            slow.send(bytes([byte]))
            shared.call("daemon.status")
        assert line(slow)["result"]["pid"]


def test_too_many_clients_are_told_so(shared: Vptd) -> None:
    clients = []
    try:
        for _ in range(64):
            clients.append(Client(shared.paths.control))
            clients[-1].call("daemon.status")
        clients.append(Client(shared.paths.control))
        with pytest.raises(VptError, match="64 clients are connected"):
            clients[-1].call("daemon.status")
    finally:
        for client in clients:
            client.close()
    until(lambda: shared.call("daemon.status")["clients"] == 1, "the others to be forgotten")


def test_a_thousand_short_visits_leave_nothing(shared: Vptd) -> None:
    assert shared.process is not None
    fds = f"/proc/{shared.process.pid}/fd"
    before = len(os.listdir(fds))
    for i in range(1000):
        with raw(shared) as sock:
            if i % 3:
                with contextlib.suppress(BrokenPipeError):
                    sock.send(b'{"jsonrpc":')
    until(lambda: len(os.listdir(fds)) <= before, "descriptors to be closed")


def test_a_stranger_is_refused(shared: Vptd) -> None:
    """The socket's mode keeps strangers out; should one get in all the same, its credentials do."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    assert stat.S_IMODE(shared.paths.control.stat().st_mode) == 0o660
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); os.setgroups([]);"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "s.connect('vptd.sock'); print(s.makefile().readline())"
    )
    argv = [sys.executable, "-c", script, str(shared.paths.runtime)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "PermissionError" in done.stderr
    shared.paths.control.chmod(0o666)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    finally:
        shared.paths.control.chmod(0o660)
    error = json.loads(done.stdout)["error"]
    assert error["data"]["code"] == "denied"
    assert "65534" in error["message"]


def test_a_member_of_the_sockets_group_may_control(vptd: Vptd) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    vptd.folder.chmod(0o755)
    vptd.start("--group", "65533")
    assert vptd.paths.control.stat().st_gid == 65533
    script = (
        "import os, sys; from vpt.daemon.client import Client; os.setgroups([65533]);"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "print(Client(sys.argv[1]).call('daemon.status')['pid'])"
    )
    argv = [sys.executable, "-c", script, str(vptd.paths.control)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert vptd.process is not None
    assert int(done.stdout) == vptd.process.pid
    vptd.call("switch.add", name="sw0")
    for kind in ("app", "passthrough", "vhost-user"):
        vptd.call("port.add", switch="sw0", name=kind, kind=kind)
        assert os.stat(vptd.socket(kind)).st_gid == 65533


def test_the_client_says_what_is_wrong(shared: Vptd) -> None:
    with pytest.raises(DaemonError, match="not running") as caught:
        Client(shared.folder / "nothing.sock")
    assert caught.value.code == "not-running"
    assert caught.value.hint == f"start it with: vpt --runtime-dir {shared.folder} daemon start"
    with shared.client() as client:
        with pytest.raises(NotFoundError):
            client.call("port.show", name="none")
        assert client.call("daemon.status")["pid"], "an error does not end the connection"


def test_a_hint_of_vptd_asks_that_vptd_and_says_so_only_to_who_would_ask_another(
    shared: Vptd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hint() -> str | None:
        with shared.client() as client, pytest.raises(NotFoundError) as caught:
            client.call("switch.del", name="none")
        return caught.value.hint

    where = f"vpt --runtime-dir {shared.paths.runtime}"
    assert hint() == f"add it: {where} switch add none; see: {where} switch list"
    monkeypatch.setattr("vpt.daemon.runtime._default_runtime_dir", lambda: shared.paths.runtime)
    assert hint() == "add it: vpt switch add none; see: vpt switch list"
