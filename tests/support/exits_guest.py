# SPDX-License-Identifier: BSD-2-Clause
"""A guest that makes a known number of exits: building it, and giving it orders. See exits_payload.S."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Callable
from pathlib import Path

from support.waiting import until

__all__ = [
    "CPL3",
    "NATIVE",
    "PIO",
    "RING0_LOOP",
    "RING0_UNKNOWN",
    "TINY_VMM",
    "Mailbox",
    "build_payload",
    "domain_xml",
]

PIO, NATIVE = 0, 1
CPL3, RING0_LOOP, RING0_UNKNOWN = 0, 1, 2

TINY_VMM = Path(__file__).with_name("tiny_vmm.py")

_SOURCE = Path(__file__).with_name("exits_payload.S")
_MAILBOX = 0x300000
_PATIENCE_S = 60.0

_DOMAIN = """
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel></os>
  <cpu mode='{cpu}'><feature policy='disable' name='arch-capabilities'/></cpu>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


def domain_xml(name: str, kind: str, payload: Path) -> str:
    """A domain of libvirt's that runs it: of kind "kvm" or "qemu" (TCG)."""
    # KVM may offer arch-capabilities and then refuse to set them (a software KVM on AMD does).
    cpu = "host-passthrough" if kind == "kvm" else "maximum"
    return _DOMAIN.format(kind=kind, name=name, kernel=payload, cpu=cpu)


def build_payload(folder: Path) -> Path:
    """Something for QEMU's -kernel."""
    out = folder / "payload"
    link = "-Wl,-estart,-Ttext=0x100000,--build-id=none,-z,noexecstack"
    subprocess.run(["gcc", "-m64", "-nostdlib", "-static", link, "-o", out, _SOURCE], check=True)
    return out


class Mailbox:
    """The guest's side of things, through the file that is its memory."""

    def __init__(self, ram: Path, alive: Callable[[], bool] = lambda: True) -> None:
        self._alive = alive
        with ram.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def mode(self, mode: int) -> None:
        """What to be, before it starts."""
        self._put(16, mode)

    def order(self, what: int, times: int) -> None:
        """Have the guest do something so many times, and wait until it has."""
        self._put(8, what)
        self._put(0, times)

        def done() -> bool:
            assert self._alive(), "the VM ended"
            return not any(self._memory[_MAILBOX : _MAILBOX + 8])

        until(done, "the guest to finish its order", _PATIENCE_S)

    def close(self) -> None:
        self._memory.close()

    def _put(self, at: int, value: int) -> None:
        self._memory[_MAILBOX + at : _MAILBOX + at + 8] = value.to_bytes(8, "little")
