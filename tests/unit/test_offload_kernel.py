# SPDX-License-Identifier: BSD-2-Clause
"""Software offload beside the kernel: the same packets, cut by a tap without offloads, are the same bytes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from support.offloads import (
    ETH,
    V4,
    Vnet,
    gso,
    needs_csum,
    offload,
    pattern,
    stacks,
)

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP, IFF_NOARP = 0x8913, 0x8914, 0x1, 0x80
SOL_PACKET, PACKET_VNET_HDR = 263, 15


class KernelTap:
    """A tap without offloads, in a network namespace of its own: the kernel must cut what is sent to it."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.tap, TUNSETIFF, struct.pack("16sH22x", b"vpt0", IFF_TAP | IFF_NO_PI))
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        fcntl.ioctl(self.sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"vpt0", IFF_UP | IFF_NOARP))
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.bind(("vpt0", 0))

    def close(self) -> None:
        self.sock.close()
        os.close(self.tap)

    def offload(self, vnet: Vnet, frame: bytes, count: int) -> list[bytes]:
        """The frames that leave the tap, count of them; router solicitations and the like are skipped."""
        fields = (vnet.flags, vnet.gso_type, vnet.hdr_len, vnet.gso_size, vnet.csum_start, vnet.csum_offset)
        self.sock.send(struct.pack("=BBHHHH", *fields) + frame)
        frames: list[bytes] = []
        while len(frames) < count and select.select([self.tap], [], [], 5)[0]:
            got = os.read(self.tap, 1 << 17)
            if got[:12] == frame[:12]:
                frames.append(got)
        return frames


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelTap]:
    # unshare() moves only the thread that calls it, so the namespace is left behind with the thread.
    with ThreadPoolExecutor(1) as pool:
        try:
            tap = pool.submit(KernelTap).result()
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT):
                pytest.skip(f"needs CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun: {error}")
            raise
        yield tap
        tap.close()


def mask_zero_checksum(frame: bytes) -> bytes:
    """Write a TCP checksum of zero in its other form: the kernel does it for UDP only, vpt always."""
    parsed = Ether(frame)
    if TCP in parsed and parsed[TCP].chksum == 0:
        at = len(frame) - len(parsed[TCP]) + 16
        frame = frame[:at] + b"\xff\xff" + frame[at + 2 :]
    return frame


@pytest.mark.parametrize("head", list(stacks()))
def test_segments_are_those_that_the_kernel_makes(kernel: KernelTap, head: Packet) -> None:
    vnet, frame = gso(head / pattern(3 * 1001 + 17), 1001)
    ours = offload(vnet, frame)
    assert list(map(mask_zero_checksum, kernel.offload(vnet, frame, len(ours)))) == ours


@pytest.mark.parametrize("flags", ["A", "FPA", "FPCEA", "CA", "UPA"])
def test_flags_are_those_that_the_kernel_leaves(kernel: KernelTap, flags: str) -> None:
    vnet, frame = gso(ETH / V4 / TCP(flags=flags) / pattern(2500), 1000, ecn="C" in flags)
    ours = offload(vnet, frame)
    assert list(map(mask_zero_checksum, kernel.offload(vnet, frame, len(ours)))) == ours


@pytest.mark.parametrize("head", list(stacks()))
def test_checksum_is_the_one_that_the_kernel_completes(kernel: KernelTap, head: Packet) -> None:
    vnet, frame = needs_csum(head / pattern(1001))
    assert kernel.offload(vnet, frame, 1) == offload(vnet, frame)
