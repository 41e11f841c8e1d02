# SPDX-License-Identifier: BSD-2-Clause
"""Sockets: nothing of others is unlinked, permissions are never wider than asked, no fd is lost."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from vpt.daemon.aio import receive, send
from vpt.daemon.runtime import (
    Lock,
    as_root,
    command,
    locate,
    make_private_dir,
    not_running,
    whole_command,
)
from vpt.daemon.sockets import (
    PeerCredentials,
    check_free,
    listen_unix,
    peer_credentials,
    unix_path,
)
from vpt.errors import EXIT_FAILED, ConflictError, ExistsError, NotFoundError, UsageError


def _leave_behind(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """A socket file whose owner died."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_stale_socket_of_ours_is_replaced(folder: Path, kind: int) -> None:
    _leave_behind(folder / "s", kind)
    check_free(str(folder / "s"), owned=True)
    listen_unix(folder / "s", kind=kind, replace_stale=True).close()
    assert not (folder / "s").exists()


def test_a_stale_socket_that_may_be_anothers_stays(folder: Path) -> None:
    _leave_behind(folder / "s")
    with pytest.raises(ExistsError, match="not known to be vpt's") as caught:
        listen_unix(folder / "s")
    assert "rm" in str(caught.value.hint)
    with pytest.raises(ExistsError):
        check_free(str(folder / "s"), owned=False)
    assert (folder / "s").exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_that_somebody_serves_stays(folder: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(folder / "s"))
        if kind != socket.SOCK_DGRAM:
            other.listen()
        with pytest.raises(ExistsError, match="another program listens"):
            listen_unix(folder / "s", replace_stale=True)
    assert (folder / "s").exists()


def test_what_is_no_socket_stays(folder: Path) -> None:
    (folder / "s").write_text("precious")
    with pytest.raises(ExistsError, match="not a socket"):
        listen_unix(folder / "s", replace_stale=True)
    assert (folder / "s").read_text() == "precious"


def test_a_link_to_a_stale_socket_is_no_stale_socket(folder: Path) -> None:
    _leave_behind(folder / "real")
    (folder / "s").symlink_to(folder / "real")
    with pytest.raises(ExistsError):
        listen_unix(folder / "s", replace_stale=True)
    assert (folder / "real").exists()
    assert (folder / "s").is_symlink()


def test_close_removes_our_own_file_only(folder: Path) -> None:
    ours = listen_unix(folder / "s")
    os.unlink(folder / "s")
    theirs = listen_unix(folder / "s")
    ours.close()
    assert (folder / "s").exists()
    theirs.close()
    assert not (folder / "s").exists()


def test_a_path_that_does_not_fit_is_an_error_that_says_so(folder: Path) -> None:
    unix_path("x" * 107)
    with pytest.raises(UsageError, match="108 bytes"):
        unix_path("x" * 108)
    with pytest.raises(UsageError, match="bytes"):
        listen_unix(folder / ("ä" * 60))
    with pytest.raises(UsageError, match="NUL"):
        unix_path("a\0b")


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder") as caught:
        listen_unix(folder / "no" / "s")
    assert "mkdir" in str(caught.value.hint)
    assert caught.value.exit_code == EXIT_FAILED, "as for a path that is taken: the host is not as it must be"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_as_asked_for_whatever_the_umask(folder: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listener = listen_unix(folder / "s", mode=mode)
        assert stat.S_IMODE((folder / "s").stat().st_mode) == mode
        listener.close()
    finally:
        assert os.umask(before) == 0o077, "the process's umask is as it was"


def test_who_may_control() -> None:
    owner, group = 1000, 2000
    assert PeerCredentials(1, 0, 0).may_control(owner, group)
    assert PeerCredentials(1, owner, 5).may_control(owner, group)
    assert PeerCredentials(1, 1001, group).may_control(owner, group)
    assert PeerCredentials(1, 1001, 5, (6, group)).may_control(owner, group)
    assert not PeerCredentials(1, 1001, 5, (6, 7)).may_control(owner, group)
    assert not PeerCredentials(1, 1001, 5, (0,)).may_control(owner, None)


def test_credentials_are_the_kernels() -> None:
    a, b = socket.socketpair()
    with a, b:
        peer = peer_credentials(a)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert set(peer.groups) == set(os.getgroups())


@pytest.mark.usefixtures("no_leaks")
def test_more_fds_than_wanted_are_an_error_and_no_leak() -> None:
    async def exchange(count: int) -> None:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with a, b:
            await send(a, b"x", [a.fileno()] * count)
            with pytest.raises(ConflictError):
                await receive(b, 10, 1)

    for count in (2, 5, 100):
        asyncio.run(exchange(count))


def test_send_waits_for_a_reader_and_sends_all() -> None:
    async def exchange() -> int:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with a, b:
            sending = asyncio.create_task(send(a, bytes(1 << 20)))
            got = 0
            while got < 1 << 20:
                data, _ = await receive(b, 65536)
                got += len(data)
            await sending
            return got

    assert asyncio.run(exchange()) == 1 << 20


# ---- the folders and the lock ----


def test_a_command_names_the_vptd_that_it_is_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the environment, which the shell that it is pasted into may not have."""
    usual = locate().runtime
    monkeypatch.setenv("VPT_RUNTIME_DIR", str(folder))
    assert command(folder, "ls") == f"vpt --runtime-dir {folder} ls"
    assert command(folder / "a b", "ls") == f"vpt --runtime-dir '{folder}/a b' ls"
    assert command(usual, "ls") == "vpt ls"
    assert whole_command(usual, "ls") == f"vpt --runtime-dir {usual} ls"
    assert not_running(usual, "why").hint == "start it with: vpt daemon start"


def test_a_second_lock_names_who_has_the_first(folder: Path) -> None:
    lock = Lock(folder / "lock", "vptd")
    with pytest.raises(ConflictError, match=f"process {os.getpid()}"):
        Lock(folder / "lock", "vptd")
    lock.release()
    Lock(folder / "lock", "vptd").release()


def test_a_folder_that_anybody_may_change_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="can be changed by others") as caught:
        make_private_dir(folder)
    assert "chmod o-w" in str(caught.value.hint)


def test_a_file_is_no_folder(folder: Path) -> None:
    (folder / "x").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        make_private_dir(folder / "x")


def test_a_runtime_dir_chosen_by_hand_takes_its_state_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two daemons in two folders must not share the default state dir."""
    monkeypatch.delenv("VPT_STATE_DIR", raising=False)
    assert locate("/a").state == Path("/a/state")
    monkeypatch.setenv("VPT_RUNTIME_DIR", "/b")
    assert locate().runtime == Path("/b")
    assert locate().state == Path("/b/state")
    assert locate(None, "/c").state == Path("/c")
    monkeypatch.setenv("VPT_STATE_DIR", "/d")
    assert locate("/a").state == Path("/d")


@pytest.mark.parametrize(
    ("python", "has_vpt", "on_path", "typed"),
    [
        ("/home/me/.venv/bin/python", True, None, "sudo /home/me/.venv/bin/vpt doctor"),
        ("/home/my own/bin/python", True, None, "sudo '/home/my own/bin/vpt' doctor"),
        ("/usr/bin/python3", True, "/usr/bin/vpt", "sudo vpt doctor"),
        ("/usr/bin/python3", False, "/home/me/.local/bin/vpt", "sudo /home/me/.local/bin/vpt doctor"),
        ("/usr/bin/python3", False, None, "sudo /usr/bin/python3 -m vpt.cli doctor"),
    ],
)
def test_what_root_is_told_to_type_is_found_by_sudo(
    python: str, has_vpt: bool, on_path: str | None, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks in folders of its own, in which a virtual environment is not."""
    monkeypatch.setattr("sys.executable", python)
    monkeypatch.setattr("os.path.exists", lambda _: has_vpt)
    monkeypatch.setattr("shutil.which", lambda _: on_path)
    assert as_root("doctor") == typed
