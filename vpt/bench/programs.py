# SPDX-License-Identifier: BSD-2-Clause
"""Programs that scenarios measure with, and the versions that they say they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable

from vpt.errors import VptError
from vpt.qemu import find_qemu

__all__ = ["DPDK", "OPEN_VSWITCH", "QEMU", "versions_of"]

QEMU, DPDK, OPEN_VSWITCH = "qemu", "dpdk", "openvswitch"


def _qemu() -> str | None:
    try:
        return str(find_qemu())
    except VptError:
        return None


def _said(pattern: str, program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else None


_ASK: dict[str, Callable[[], str | None]] = {
    QEMU: _qemu,
    # testpmd has no option for it; DPDK's own -v prints it before -h ends the program.
    DPDK: lambda: _said(r"RTE Version: 'DPDK ([^']+)'", "dpdk-testpmd", "-v", "-h"),
    OPEN_VSWITCH: lambda: _said(r"Open vSwitch\) (\S+)", "ovs-vsctl", "--version"),
}


def versions_of(programs: Iterable[str]) -> dict[str, str]:
    """By name. One that is not installed, or does not say, is absent."""
    asked = {name: _ASK[name]() for name in sorted(set(programs))}
    return {name: version for name, version in asked.items() if version is not None}
