# SPDX-License-Identifier: BSD-2-Clause
"""vptd: where it is to live, whether it runs, and whose the sockets in its folder are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vpt.daemon.runtime import RuntimePaths, as_root, command
from vpt.doctor._check import Check

__all__ = ["runtime_dir", "sockets", "vptd"]

_LISTENS = 0x10000


def runtime_dir(paths: RuntimePaths) -> Check:
    nearest = paths.runtime
    while not nearest.exists():
        nearest = nearest.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        state = "is there" if nearest == paths.runtime else "can be made"
        return Check("runtime dir", "ok", f"{paths.runtime} {state}")
    return Check(
        "runtime dir",
        "missing",
        f"user {os.geteuid()} may not write to {nearest}",
        f"{as_root('doctor')}, or choose a folder of yours: export VPT_RUNTIME_DIR=$HOME/.vpt",
    )


def vptd(paths: RuntimePaths) -> Check:
    from vpt import __version__
    from vpt.daemon.launch import running

    status = running(paths)
    if status is None:
        return Check("vptd", "note", "not running", command(paths.runtime, "daemon start"))
    what = f"version {status['version']}, process {status['pid']}, {status['ports']} ports"
    if status["version"] != __version__:
        fix = f"{command(paths.runtime, 'daemon stop')} && {command(paths.runtime, 'daemon start')}"
        return Check("vptd", "note", f"{what}; this is {__version__}", fix)
    return Check("vptd", "ok", what)


def sockets(paths: RuntimePaths) -> Iterator[Check]:
    """Each socket file in vptd's folders that is not what it should be; one line if all are."""
    listening = listeners()
    files = [path for folder in (paths.runtime, paths.ports) if folder.is_dir() for path in folder.iterdir()]
    files = sorted(path for path in files if path.is_socket())
    wrong = [found for path in files if (found := _wrong(path, listening)) is not None]
    if wrong:
        yield from wrong
    elif files:
        yield Check("sockets", "ok", f"{len(files)}. {_by_owner(files, listening, paths.runtime)}")
    else:
        yield Check("sockets", "ok", f"none in {paths.runtime}")


def _by_owner(files: list[Path], listening: dict[str, int], runtime: Path) -> str:
    """Which of them each program has; three by name."""
    owned: dict[str, list[str]] = {}
    for path in files:
        owner = ", ".join(sorted(programs(listening[str(path)]))) or "another user"
        owned.setdefault(owner, []).append(str(path.relative_to(runtime)))
    return "; ".join(
        f"{owner}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for owner, names in owned.items()
    )


def _wrong(path: Path, listening: dict[str, int]) -> Check | None:
    owner = path.stat().st_uid
    if str(path) not in listening:
        return Check(
            f"socket {path.name}", "note", f"left over in {path.parent}: nobody listens there", f"rm {path}"
        )
    if owner not in (os.geteuid(), path.parent.stat().st_uid):
        return Check(
            f"socket {path.name}",
            "note",
            f"{path} belongs to user {owner}, not to its folder's",
            f"ls -l {path}",
        )
    return None


def listeners() -> dict[str, int]:
    """Paths that somebody of this network namespace listens on, and the sockets' inodes."""
    found = {}
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split(maxsplit=7)
        if path and int(flags, 16) & _LISTENS:
            found[path[0]] = int(inode)
    return found


def programs(inode: int) -> set[str]:
    """Who has that socket open, as NAME (PID); empty if only others' processes may."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(fd) for fd in (process / "fd").iterdir()}
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # another user's, or ended
        if f"socket:[{inode}]" in links:
            found.add(f"{name} ({process.name})")
    return found
