# SPDX-License-Identifier: BSD-2-Clause
"""Whether memory that is to be a file is memory; and where libvirt puts guests': memory_backing_dir.

Seen on libvirt 9.0: memory that is shared, by `<source type='file'/>` or by `memAccess` alone, lies there
unless the domain asks for a memfd or for huge pages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["is_memory", "is_on_disk"]

_CONF = Path("/etc/libvirt/qemu.conf")
_MOUNTS = Path("/proc/self/mounts")
_DEFAULT = "/var/lib/libvirt/qemu/ram"
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*"([^"]*)"', re.MULTILINE)
_IN_MEMORY = ("tmpfs", "hugetlbfs")
_LINKS = ("/proc", "/dev/fd")  # what lies behind such a path is not known from it


def is_memory(conf: Path = _CONF, mounts: Path = _MOUNTS) -> bool:
    """Is that folder on tmpfs or hugetlbfs? Of the system's libvirt; only root may read its qemu.conf."""
    try:
        found = _SETTING.search(conf.read_text(errors="replace"))
    except OSError:
        found = None
    return not is_on_disk(found[1] if found else _DEFAULT, mounts)


def is_on_disk(path: str, mounts: Path = _MOUNTS) -> bool:
    """Is that file or folder, which need not exist, on anything but tmpfs or hugetlbfs?"""
    if path.startswith(_LINKS):
        return False
    place = Path(os.path.realpath(path))
    kinds = {}
    for line in mounts.read_text(errors="replace").splitlines():
        _, where, kind, *_ = line.split()
        kinds[Path(where)] = kind  # the last one mounted at a place is the one that is seen
    inner = next((each for each in (place, *place.parents) if each in kinds), None)
    return inner is None or kinds[inner] not in _IN_MEMORY
