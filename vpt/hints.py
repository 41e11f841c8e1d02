# SPDX-License-Identifier: BSD-2-Clause
"""Commands in hints, as whoever reads them can type them."""

from __future__ import annotations

import os
import shlex

from vpt.daemon.runtime import command

__all__ = ["virsh", "vpt"]


def virsh(uri: str | None, *words: str) -> str:
    """`virsh WORDS`, asking the libvirt of that URI. None: the one that virsh asks by itself."""
    return shlex.join(["virsh", *_asking("-c", uri), *words])


def vpt(*words: str, runtime: str | os.PathLike[str] | None = None, uri: str | None = None) -> str:
    """`vpt WORDS`, asking the vptd of that folder and the libvirt of that URI. None: it asks none."""
    typed = shlex.join([*words, *_asking("--connect", uri)])
    return f"vpt {typed}" if runtime is None else command(runtime, typed)


def _asking(option: str, uri: str | None) -> list[str]:
    by_itself = f"qemu:///{'session' if os.geteuid() else 'system'}"
    if uri in (None, os.environ.get("LIBVIRT_DEFAULT_URI") or by_itself):
        return []
    return [option, str(uri)]
