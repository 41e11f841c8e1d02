# SPDX-License-Identifier: BSD-2-Clause
"""What a VM may be called by."""

from __future__ import annotations

from pathlib import Path

__all__ = ["names_a_socket"]


def names_a_socket(vm: str) -> bool:
    """Is it the path of a QMP socket, and no name? Also if QEMU has ended, and took the socket along."""
    return "/" in vm or vm.endswith((".sock", ".qmp")) or Path(vm).is_socket()
