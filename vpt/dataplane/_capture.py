# SPDX-License-Identifier: BSD-2-Clause
"""Capture: copies of ports' packets. CaptureReader: the observer who takes them, in any process."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpt.dataplane._native import check, ffi, lib, new, text
from vpt.dataplane._owned import Owned
from vpt.errors import ConflictError

if TYPE_CHECKING:
    from vpt.dataplane._engine import Engine, Port

__all__ = ["BpfInsn", "Capture", "CaptureInterface", "CaptureReader", "bpf_matches", "program"]

#: An instruction of classic BPF: code, jt, jf, k.
BpfInsn = tuple[int, int, int, int]

# More than the longest block: a frame of 64 KiB and its options.
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CaptureInterface:
    """A port that is, or was, captured. lost: its packets that found no room."""

    name: str
    lost: int


def program(filter_: Sequence[BpfInsn]) -> Any:
    """A filter as C has it."""
    return new("struct vpt_bpf_insn[]", [list(insn) for insn in filter_])


def bpf_matches(filter_: Sequence[BpfInsn], data: bytes, length: int | None = None) -> bool:
    """Does a filter match a packet of which `data` is the beginning? DataplaneError: it may not be run."""
    full = len(data) if length is None else length
    found = lib.vpt_bpf_matches(program(filter_), len(filter_), data, full, len(data))
    return bool(check(found, "run a filter"))


class Capture:
    """Copies of packets, made by Engine.capture(); what is captured is read by a CaptureReader of `fd`."""

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine = engine
        self._h: Any = handle

    def _handle(self) -> Any:
        if self._h is None or self.engine.closed:
            raise ConflictError("this capture has ended")
        return self._h

    @property
    def fd(self) -> int:
        """A sealed memfd. The capture's own: not to be closed."""
        return int(lib.vpt_capture_fd(self._handle()))

    def watch(self, port: Port) -> int:
        """Capture a port's packets from now on, until one of the two ends; its number as an interface."""
        rc = lib.vpt_capture_port(self._handle(), port._handle())
        return check(rc, f"capture port {port.name}", {errno.ENOSPC: "one capture has 1024 ports at most"})

    def close(self) -> None:
        """End it. Harmless the second time, or after the engine's end."""
        if self._h is not None and not self.engine.closed:
            lib.vpt_capture_del(self._h)
        self._h = None


class CaptureReader(Owned):
    """The observer's side. fd stays the caller's. One thread at a time."""

    _WHAT = "capture"
    _FREE = lib.vpt_capture_close

    def __init__(self, fd: int) -> None:
        out = ffi.new("vpt_capture_reader **")
        check(lib.vpt_capture_open(fd, out), "open a capture", {errno.EPROTO: "vptd is of another version"})
        self._own(out[0])
        self._buffer = ffi.new("uint8_t[]", _READ_BYTES)

    def read(self, most: int | None = None) -> tuple[memoryview, int]:
        """At most `most` packets that are there, as enhanced packet blocks of pcapng; how many they are.

        Nothing there: no bytes. The bytes are valid until the next call.
        """
        packets = new("uint64_t *", (1 << 64) - 1 if most is None else most)
        size = lib.vpt_capture_read(self._handle(), self._buffer, _READ_BYTES, packets)
        size = check(
            size, "read a capture", {errno.EPROTO: "the capture's memory was overwritten: start again"}
        )
        return memoryview(ffi.buffer(self._buffer, size)), int(packets[0])

    def interfaces(self) -> list[CaptureInterface]:
        """Ports, by the number that blocks name them by; those of blocks already read are there."""
        name, lost = ffi.new("char[32]"), ffi.new("uint64_t *")
        found = []
        for i in range(lib.vpt_capture_interfaces(self._handle())):
            check(lib.vpt_capture_interface(self._handle(), i, name, lost), f"interface {i}")
            found.append(CaptureInterface(text(name), int(lost[0])))
        return found
