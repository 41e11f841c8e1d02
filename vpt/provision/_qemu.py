# SPDX-License-Identifier: BSD-2-Clause
"""A guest in a QEMU of its own, in the background."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator

from vpt.daemon.sockets import unix_path
from vpt.errors import GuestError, VptError
from vpt.hints import vpt
from vpt.provision.record import Folder
from vpt.qemu import Machine, command_line, find_qemu
from vpt.qemu.qmp import QmpSession

__all__ = ["clean", "pid_of", "start", "stop"]

_START_S = 60.0
_KILL_S = 15.0


@contextlib.contextmanager
def _process(folder: Folder) -> Iterator[tuple[int, int] | None]:
    """Process id and pidfd of the guest's QEMU, none if it does not run.

    The number alone could be somebody else's by now: the pidfd is opened first, and then the process is
    looked at, so that what is signalled is what was looked at.
    """
    try:
        pid = int(folder.pidfile.read_text())
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        yield None
        return
    try:
        ours = _is_ours(pid, folder) and not _ended(fd, 0)
        yield (pid, fd) if ours else None
    finally:
        os.close(fd)


def _is_ours(pid: int, folder: Folder) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(str(folder.pidfile)) in file.read().split(b"\0")
    except OSError:
        return False


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def pid_of(folder: Folder) -> int | None:
    """Of the guest's QEMU, if it runs."""
    with _process(folder) as found:
        return found[0] if found else None


def start(machine: Machine, folder: Folder, runtime: str) -> None:
    """Start QEMU and return when it is set up. GuestError has what it said if it is not.

    runtime: of the vptd whose ports it has, for a hint.
    """
    unix_path(folder.qmp)
    for path in (folder.qmp, folder.pidfile, folder.console):
        path.unlink(missing_ok=True)
    argv = command_line(machine, find_qemu())
    with folder.errors.open("wb") as errors:
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, timeout=_START_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise GuestError(
                f"QEMU of {machine.name} was not set up within {_START_S:.0f} s",
                hint=f"is vptd there? {vpt('daemon', 'status', runtime=runtime)}",
            ) from None
    said = folder.errors.read_text(errors="replace").strip()
    if done.returncode:
        raise GuestError(
            f"QEMU does not start {machine.name}: {said[-500:] or f'status {done.returncode}'}",
            hint=f"its ports must be there, and nobody else on them: {vpt('ls', runtime=runtime)}",
            code="hostfwd" if "host forwarding" in said else None,
        )


def stop(folder: Folder, *, grace_s: float) -> None:
    """End QEMU. grace_s: seconds that the guest has to shut down by itself; 0: the plug is pulled at once."""
    with _process(folder) as found:
        if found is None:
            return
        _, pidfd = found
        if grace_s > 0:
            with contextlib.suppress(VptError), QmpSession(folder.qmp) as qmp:
                qmp.execute("system_powerdown")
            if _ended(pidfd, grace_s):
                return
        for number, wait_s in ((signal.SIGTERM, _KILL_S), (signal.SIGKILL, _KILL_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if _ended(pidfd, wait_s):
                return
    raise GuestError(
        f"QEMU of {folder.path.name} did not end after SIGKILL",
        hint=f"cat {folder.pidfile}; is its disk stuck?",
    )


def clean(folder: Folder) -> None:
    """Take away what a QEMU that was killed leaves."""
    for path in (folder.qmp, folder.pidfile):
        path.unlink(missing_ok=True)
