# SPDX-License-Identifier: BSD-2-Clause
"""Where vptd keeps its sockets, counters and state, and the lock that makes it the only one there.

runtime dir     option, $VPT_RUNTIME_DIR, /run/vpt (root), $XDG_RUNTIME_DIR/vpt, /tmp/vpt-UID
state dir       option, $VPT_STATE_DIR, RUNTIME/state where the runtime dir was chosen by hand,
                /var/lib/vpt (root), $XDG_STATE_HOME/vpt, ~/.local/state/vpt
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from vpt.errors import ConflictError, DaemonError, MissingError, UsageError

__all__ = [
    "ENV_RUNTIME_DIR",
    "ENV_STATE_DIR",
    "Lock",
    "RuntimePaths",
    "as_root",
    "command",
    "locate",
    "make_private_dir",
    "not_running",
    "whole_command",
]

ENV_RUNTIME_DIR = "VPT_RUNTIME_DIR"
ENV_STATE_DIR = "VPT_STATE_DIR"
#: As Debian's sudo has it (secure_path).
_ROOTS_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """All the paths of one vptd."""

    runtime: Path
    state: Path

    @property
    def control(self) -> Path:
        return self.runtime / "vptd.sock"

    @property
    def stats(self) -> Path:
        return self.runtime / "stats"

    @property
    def log(self) -> Path:
        """Where `vpt daemon start` sends vptd's standard error."""
        return self.runtime / "vptd.log"

    @property
    def lock(self) -> Path:
        return self.runtime / "vptd.lock"

    @property
    def keeper_socket(self) -> Path:
        return self.runtime / "keeper.sock"

    @property
    def keeper_lock(self) -> Path:
        return self.runtime / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        return self.runtime / "keeper.log"

    @property
    def ports(self) -> Path:
        """Sockets of the ports, apart from ours so that a port may have any name."""
        return self.runtime / "ports"

    @property
    def journal(self) -> Path:
        return self.state / "journal.json"

    def port_socket(self, name: str) -> Path:
        return self.ports / f"{name}.sock"

    def negotiated(self, name: str) -> Path:
        """What the front-end of a vhost-user port has negotiated."""
        return self.ports / f"{name}.negotiated"

    def create(self) -> None:
        """Make the folders, and refuse those that others could tamper with."""
        make_private_dir(self.runtime)
        make_private_dir(self.ports)
        make_private_dir(self.state)


def locate(
    runtime_dir: str | os.PathLike[str] | None = None, state_dir: str | os.PathLike[str] | None = None
) -> RuntimePaths:
    """The paths that these choices, the environment and the defaults give. Touches nothing."""
    chosen = runtime_dir or os.environ.get(ENV_RUNTIME_DIR)
    runtime = Path(chosen).absolute() if chosen else _default_runtime_dir()
    state = state_dir or os.environ.get(ENV_STATE_DIR)
    if state:
        return RuntimePaths(runtime, Path(state).absolute())
    return RuntimePaths(runtime, runtime / "state" if chosen else _default_state_dir())


def private(folder: str | os.PathLike[str]) -> RuntimePaths:
    """The paths of a vptd that has all of its own in a folder, whatever the environment says of another."""
    return locate(folder, Path(folder) / "state")


def command(runtime: str | os.PathLike[str], words: str) -> str:
    """What to type, in any shell, to have `vpt WORDS` mean the vptd of that folder."""
    if Path(runtime).absolute() == _default_runtime_dir():
        return f"vpt {words}"
    return whole_command(runtime, words)


def whole_command(runtime: str | os.PathLike[str], words: str) -> str:
    """The same for whoever types it: another user's vptd is in another folder by default."""
    return f"vpt --runtime-dir {shlex.quote(str(Path(runtime).absolute()))} {words}"


def as_root(words: str) -> str:
    """What to type to have root run `vpt WORDS`: sudo does not look into a virtual environment."""
    beside, found = os.path.join(os.path.dirname(sys.executable), "vpt"), shutil.which("vpt")
    program = beside if os.path.exists(beside) else found and os.path.abspath(found)
    if not program:
        return f"sudo {shlex.quote(sys.executable)} -m vpt.cli {words}"
    return f"sudo {'vpt' if os.path.dirname(program) in _ROOTS_PATH else shlex.quote(program)} {words}"


def not_running(runtime: str | os.PathLike[str], sign: str) -> DaemonError:
    """What to raise where the vptd of that folder is needed and is not there. sign: by what that is known."""
    return DaemonError(
        f"vptd is not running ({sign})",
        hint=f"start it with: {command(runtime, 'daemon start')}",
        code="not-running",
    )


def _default_runtime_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/run/vpt")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "vpt" if base else Path(f"/tmp/vpt-{os.geteuid()}")


def _default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/vpt")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "vpt"


def make_private_dir(path: Path) -> None:
    """Create `path` (0755), or check that an existing one is ours and that not everybody can write there."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = path.stat()
    except FileExistsError:
        raise UsageError(
            f"{path} is not a folder", hint="choose another with --runtime-dir or --state-dir"
        ) from None
    except PermissionError:
        raise MissingError(
            f"no permission to create {path}",
            hint=f"run as root, or choose a folder of yours: export {ENV_RUNTIME_DIR}=$HOME/.vpt",
        ) from None
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        raise UsageError(
            f"{path} can be changed by others (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chown {os.geteuid()} {path} && chmod o-w {path}",
        )


class Lock:
    """An exclusive lock on a file that holds our process id. other: what to do where somebody has it.

    Released when the process ends, however it ends.
    """

    def __init__(self, path: Path, what: str, other: str = "") -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise ConflictError(
                f"{what} is already running for {path.parent} (process {owner})",
                hint=other
                or f"see it with: {command(path.parent, 'daemon status')};"
                f" stop it with: {command(path.parent, 'daemon stop')}",
                code="running",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock up. The file stays: removing it would let two hold a lock each."""
        os.close(self._fd)
