# SPDX-License-Identifier: BSD-2-Clause
"""Server side of QEMU's ivshmem protocol, version 0 (docs/specs/ivshmem-spec.rst there).

    server -> QEMU, each an int64, little-endian:
        0                    protocol version
        1                    QEMU's own id
        -1       + memfd     the shared memory: BAR2
        0        + eventfd   once per vector: how to ring the host
        1        + eventfd   once per vector: how the guest is interrupted (MSI-X)

QEMU sends nothing. There is one socket and one memfd per virtual machine, and the only other peer is the
host. More vectors than the device's `vectors=` must not be sent, so the device needs vectors=2*pairs+1.
"""

from __future__ import annotations

import socket
import struct

from vpt.daemon.aio import send
from vpt.daemon.transports.peer import Bundle, PeerServer

__all__ = ["GUEST_ID", "HOST_ID", "PROTOCOL_VERSION", "IvshmemServer"]

PROTOCOL_VERSION = 0
# VPT_IVSHMEM_HOST_ID and VPT_IVSHMEM_GUEST_ID of abi.h.
HOST_ID = 0
GUEST_ID = 1
_MEMORY = -1


class IvshmemServer(PeerServer):
    """The ivshmem server of one port."""

    async def greet(self, conn: socket.socket, bundle: Bundle) -> None:
        await send(conn, _message(PROTOCOL_VERSION))
        await send(conn, _message(GUEST_ID))
        await send(conn, _message(_MEMORY), [bundle.memory])
        for owner, fds in ((HOST_ID, bundle.kicks), (GUEST_ID, bundle.interrupts)):
            for fd in fds:
                await send(conn, _message(owner), [fd])


def _message(value: int) -> bytes:
    return struct.pack("<q", value)
