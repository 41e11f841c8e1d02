# SPDX-License-Identifier: BSD-2-Clause
"""Filter expressions (pcap-filter(7)) to programs, by libpcap, which only this process has to have."""

from __future__ import annotations

import ctypes

from vpt.errors import MissingError, UsageError

__all__ = ["compile_filter"]

_DLT_EN10MB = 1
_NETMASK_UNKNOWN = 0xFFFFFFFF
_MAX_SNAPLEN = 1 << 18
_JUMP = 0x05
# Offsets from here on are Linux' own (SKF_LL_OFF and up): what a socket knows of a packet, and we do not.
_LOAD, _ANCILLARY = 0x00, 0xFFE00000
# Some 350 hosts. libpcap's optimizer takes seconds for that, and minutes for three times as many.
_MAX_BYTES = 6000


class _Insn(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("insns", ctypes.POINTER(_Insn)))


def _libpcap() -> ctypes.CDLL:
    # Debian's name, then everybody else's.
    for name in ("libpcap.so.0.8", "libpcap.so.1"):
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_geterr.restype = ctypes.c_char_p
        return pcap
    raise MissingError("filters need libpcap, which is not installed", hint="apt-get install libpcap0.8")


def compile_filter(expression: str) -> list[tuple[int, int, int, int]]:
    """The program of an expression: instructions (code, jt, jf, k); of an empty one none: all pass.

    May ask the resolver, for names of hosts. UsageError: libpcap does not understand it.
    """
    if not expression.strip():
        return []
    text = expression.encode(errors="surrogateescape")
    if len(text) > _MAX_BYTES:
        raise UsageError(
            f"a filter has {_MAX_BYTES} bytes at most, not {len(text)}",
            hint="say it by networks (net 10.0.0.0/24), or capture more, and let tshark filter",
        )
    pcap = _libpcap()
    handle = ctypes.c_void_p(pcap.pcap_open_dead(_DLT_EN10MB, _MAX_SNAPLEN))
    program = _Program()
    try:
        if pcap.pcap_compile(handle, ctypes.byref(program), text, 1, ctypes.c_uint(_NETMASK_UNKNOWN)):
            why = pcap.pcap_geterr(handle).decode(errors="replace")
            raise UsageError(f"filter {expression!r}: {why}", hint="man pcap-filter; such as: tcp port 80")
        found = [(i.code, i.jt, i.jf, i.k) for i in program.insns[: program.length]]
        pcap.pcap_freecode(ctypes.byref(program))
        if any(code == _JUMP and k >= len(found) for code, _, _, k in found):
            raise UsageError(
                f"filter {expression!r} needs a loop, which a filter in the data plane may not have",
                hint="leave protochain out; capture more, and let tshark filter",
            )
        if any(code & 7 == _LOAD and k >= _ANCILLARY for code, _, _, k in found):
            raise UsageError(
                f"filter {expression!r} asks for what is not in the packet",
                hint="for inbound and outbound: --direction in, --direction out",
            )
        return found
    finally:
        pcap.pcap_close(handle)
