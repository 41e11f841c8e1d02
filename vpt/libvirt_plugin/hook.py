# SPDX-License-Identifier: BSD-2-Clause
"""Putting the hook where libvirt looks for it, and taking it away. `_hook` is the hook itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpt.daemon.runtime import as_root
from vpt.errors import ExistsError, MissingError

__all__ = ["HOOKS", "HookStatus", "install", "remove", "status"]

HOOKS = Path("/etc/libvirt/hooks")
"""Where each libvirtd looks, the system's and that of a user's session, which runs them as that user."""

_SOURCE = Path(__file__).with_name("_hook.py")
_MARK = b"vpt's hook for libvirt"


@dataclass(frozen=True, slots=True)
class HookStatus:
    """outdated: ours, of another version of vpt. foreign: something of that name that is not ours."""

    path: Path
    state: Literal["installed", "outdated", "foreign", "absent"]


def status(hooks: Path) -> HookStatus:
    """What is there."""
    path = hooks / "qemu.d" / "vpt"
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return HookStatus(path, "absent")
    except IsADirectoryError:
        return HookStatus(path, "foreign")
    except PermissionError:
        raise MissingError(f"no permission to read {path}", hint="run as root") from None
    if found == _SOURCE.read_bytes():
        return HookStatus(path, "installed")
    return HookStatus(path, "outdated" if _MARK in found else "foreign")


def install(hooks: Path) -> bool:
    """Put the hook there, in the place of an older one. True if libvirtd must be restarted to see it."""
    before = status(hooks)
    _require_ours(before)
    # libvirt looks for hooks when it starts; a new file beside others it finds by itself.
    restart = not before.path.parent.exists()
    beside = before.path.with_name(".vpt.new")
    try:
        before.path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(_SOURCE.read_bytes())
        beside.chmod(0o755)
        beside.replace(before.path)
    except PermissionError:
        raise MissingError(
            f"no permission to write to {before.path.parent}",
            hint=f"run as root: {as_root('libvirt hook install')}; users' own libvirt looks there as well",
        ) from None
    return restart


def remove(hooks: Path) -> bool:
    """Take it away. False if there was none."""
    before = status(hooks)
    if before.state == "absent":
        return False
    _require_ours(before)
    try:
        before.path.unlink()
        # The folder, too, unless somebody else's hooks are in it.
        with suppress(OSError):
            before.path.parent.rmdir()
    except PermissionError:
        raise MissingError(
            f"no permission to remove {before.path}", hint=f"run as root: {as_root('libvirt hook remove')}"
        ) from None
    return True


def _require_ours(found: HookStatus) -> None:
    if found.state != "foreign":
        return
    path = found.path
    if path.is_dir():
        raise ExistsError(f"{path} is a folder, and not vpt's hook", hint=f"see what is in it: ls -la {path}")
    raise ExistsError(
        f"{path} is not vpt's",
        hint=f"see what it does: less {path}; any name there will do for it: mv {path} {path}-other",
    )
