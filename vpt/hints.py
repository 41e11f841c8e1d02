# SPDX-License-Identifier: BSD-2-Clause
"""Commands of others' in hints, as whoever reads them can type them."""

from __future__ import annotations

import os
import shlex

__all__ = ["virsh"]


def virsh(uri: str | None, *words: str) -> str:
    """`virsh WORDS`, asking the libvirt of that URI. None: the one that virsh asks by itself."""
    by_itself = f"qemu:///{'session' if os.geteuid() else 'system'}"
    if uri == (os.environ.get("LIBVIRT_DEFAULT_URI") or by_itself):
        uri = None
    return shlex.join(["virsh", *(["-c", uri] if uri else []), *words])
