# SPDX-License-Identifier: BSD-2-Clause
"""What a VM may be called by."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vpt.errors import UsageError

__all__ = ["names_a_socket", "split_name"]


def names_a_socket(vm: str) -> bool:
    """Is it the path of a QMP socket, and no name? Also if QEMU has ended, and took the socket along."""
    return "/" in vm or vm.endswith((".sock", ".qmp")) or Path(vm).is_socket()


def split_name(vm: str, kinds: Collection[str]) -> tuple[str | None, str]:
    """The kind in front of a colon, if it is one of these, and what is behind. UsageError: nothing is."""
    kind, colon, rest = vm.partition(":")
    decided, name = (kind, rest) if colon and kind in kinds else (None, vm)
    if not name.strip():
        raise UsageError(
            f"{vm!r} names no VM", hint="name it by libvirt name, QMP socket or pid: pgrep -a qemu lists them"
        )
    return decided, name
