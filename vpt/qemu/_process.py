# SPDX-License-Identifier: BSD-2-Clause
"""The process of a virtual machine that libvirt runs."""

from __future__ import annotations

import os
from pathlib import Path


def domain_pid(uuid: str, name: str) -> int | None:
    """QEMU's pid: the process whose command line holds the domain's UUID, which libvirt always passes."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            cmdline = Path(entry.path, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if uuid.encode() in cmdline and any(arg.startswith(f"guest={name}".encode()) for arg in cmdline):
            return int(entry.name)
    return None
