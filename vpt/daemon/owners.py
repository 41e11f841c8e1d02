# SPDX-License-Identifier: BSD-2-Clause
"""What vptd calls the VM that a port was made for: libvirt:WHICH:UUID a domain, qmp:PATH a QEMU without.

The hook, which has no vpt to import, writes the first as well.
"""

from __future__ import annotations

import os

__all__ = ["IN_WORDS", "PATTERN", "domain_of", "of_domain", "of_qmp"]

# A path may have 4095 bytes.
PATTERN = r"^(libvirt|qmp):[^\x00-\x1f\x7f]{1,4200}$"
IN_WORDS = "libvirt:WHICH:UUID, or qmp:PATH of a QEMU's QMP socket"


def of_domain(libvirt: str, uuid: str) -> str:
    """libvirt: which one of this host, as vpt.libvirt_plugin calls it."""
    return f"libvirt:{libvirt}:{uuid}"


def of_qmp(path: str | os.PathLike[str]) -> str:
    """Whatever path leads to the socket."""
    return f"qmp:{os.path.realpath(path)}"


def domain_of(owner: str | None) -> tuple[str, str] | None:
    """Which libvirt, and the domain's UUID. None: it is no domain."""
    kind, _, rest = (owner or "").partition(":")
    libvirt, _, uuid = rest.rpartition(":")
    return (libvirt, uuid) if kind == "libvirt" and libvirt else None
