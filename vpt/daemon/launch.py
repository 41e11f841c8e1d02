# SPDX-License-Identifier: BSD-2-Clause
"""Start vptd in the background and end it: what `vpt daemon start|stop` does. Standard library only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpt.daemon.client import Client
from vpt.daemon.runtime import Lock, RuntimePaths
from vpt.errors import (
    EXIT_MISSING,
    EXIT_USAGE,
    ConflictError,
    DaemonError,
    MissingError,
    TimeoutExpired,
    UsageError,
    VptError,
)

__all__ = ["Launched", "launch", "running", "shut_down"]

_POLL_S = 0.05
_DYING_S = 5.0
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Launched:
    """A vptd that answers. new: it was started just now."""

    status: dict[str, Any]
    new: bool


def running(paths: RuntimePaths) -> dict[str, Any] | None:
    """The status of the vptd there, None if there is none."""
    deadline = time.monotonic() + _DYING_S
    while True:
        try:
            with Client(paths.control) as vptd:
                return vptd.call("daemon.status")
        except DaemonError as error:
            if error.code == "not-running":
                return None
            # One that was just killed may still take a connection, and then dies over it.
            if error.code != "broke-off" or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


def launch(paths: RuntimePaths, options: Sequence[str], timeout: float) -> Launched:
    """Make sure that a vptd runs. Raises what says why not, with the end of its log."""
    status = running(paths)
    if status is not None:
        return Launched(status, new=False)
    paths.create()
    with paths.log.open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "vpt.daemon.main"),
                *("--runtime-dir", str(paths.runtime), "--state-dir", str(paths.state)),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    status = _await_answer(paths, child, begin, timeout)
    # It goes on without us, and is not ours to wait for.
    child.returncode = 0
    return Launched(status, new=True)


def _await_answer(
    paths: RuntimePaths, child: subprocess.Popen[bytes], begin: int, timeout: float
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while True:
        status = running(paths)
        if status is not None:
            return status
        if child.poll() is not None:
            raise _ended(child.returncode, paths, begin)
        if time.monotonic() > deadline:
            child.terminate()
            child.wait()
            raise TimeoutExpired(
                f"vptd did not listen on {paths.control} within {timeout:.0f} s{_tail(paths, begin)}",
                hint=f"see {paths.log}; or run it in the foreground: vptd --log-level debug",
            )
        time.sleep(_POLL_S)


def _ended(code: int, paths: RuntimePaths, begin: int) -> VptError:
    kind = {EXIT_USAGE: UsageError, EXIT_MISSING: MissingError}.get(code, DaemonError)
    return kind(f"vptd ended at once (exit code {code}){_tail(paths, begin)}", hint=f"its log is {paths.log}")


def _tail(paths: RuntimePaths, begin: int) -> str:
    """What this vptd has logged, its last lines, indented."""
    with paths.log.open("rb") as log:
        log.seek(max(begin, os.fstat(log.fileno()).st_size - 8192))
        lines = log.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return "".join(f"\n  | {line}" for line in lines) if lines else " and said nothing"


def shut_down(paths: RuntimePaths, keep: bool | None, timeout: float) -> bool:
    """End the vptd there and wait until it is gone. False: there was none."""
    try:
        with Client(paths.control) as vptd:
            vptd.call("daemon.stop", keep=keep)
    except DaemonError as error:
        if error.code == "not-running":
            return False
        raise
    deadline = time.monotonic() + timeout
    while True:
        try:
            Lock(paths.lock, "vptd").release()
        except ConflictError:
            if time.monotonic() > deadline:
                raise TimeoutExpired(
                    f"vptd is still there after {timeout:.0f} s", hint=f"see {paths.log}"
                ) from None
            time.sleep(_POLL_S)
        else:
            return True
