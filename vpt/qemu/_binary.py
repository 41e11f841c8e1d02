# SPDX-License-Identifier: BSD-2-Clause
"""Which QEMU there is on this host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vpt.errors import MissingError

__all__ = ["Qemu", "find_qemu"]

_NAME = "qemu-system-x86_64"


@dataclass(frozen=True)
class Qemu:
    """A QEMU binary and what it says it is."""

    path: Path
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def number(self) -> int:
        """The version as libvirt counts: 7002022 for 7.2.22."""
        major, minor, micro = self.version
        return major * 1_000_000 + minor * 1000 + micro

    @property
    def tcg_vhost_msix(self) -> bool:
        """May a vhost-user NIC have MSI-X under TCG? 7.2 crashes when its driver starts, 10.0 does not."""
        return self.version >= (10, 0, 0)


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The version in the first line of `qemu-system-x86_64 --version`; None if there is none."""
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


@cache
def _ask(path: Path) -> Qemu:
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_qemu(path, str(error)) from None
    version = parse_version(run.stdout)
    if run.returncode or version is None:
        raise _no_qemu(path, next(iter((run.stderr or run.stdout).strip().splitlines()), "it said nothing"))
    return Qemu(path, version)


def _no_qemu(path: Path, said: str) -> MissingError:
    return MissingError(
        f"{path} is no QEMU that works: {said[:200]}",
        hint="VPT_QEMU=PATH names another; or: apt-get install qemu-system-x86",
    )


def find_qemu(name: str | None = None) -> Qemu:
    """The QEMU to use: `name` (a path or a command), else $VPT_QEMU, else the one on the PATH.

    Raises MissingError with the command that installs it.
    """
    told = os.environ.get("VPT_QEMU")
    wanted = name or told or _NAME
    path = shutil.which(wanted)
    if path is None and told and not name:
        raise MissingError(f"VPT_QEMU is {told}, which is no program", hint="unset VPT_QEMU, or set it right")
    if path is None:
        raise MissingError(f"{wanted} is not installed", hint="apt-get install qemu-system-x86")
    return _ask(Path(path))
