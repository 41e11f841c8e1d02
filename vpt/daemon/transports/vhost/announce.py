# SPDX-License-Identifier: BSD-2-Clause
"""SEND_RARP: a guest has arrived by migration and cannot say so itself.

The frame is broadcast as if the guest had sent it, so that this switch, and those behind its other ports,
learn where the guest's address is now.
"""

from __future__ import annotations

import errno
from struct import pack

from vpt.daemon.transports.vhost.state import Group, State, u64_of
from vpt.errors import DataplaneError
from vpt.vhost_user import Message, ProtocolFeature, Request, Rule, RuleError


def rarp(mac: bytes) -> bytes:
    """A RARP request of that address for itself (RFC 903), padded to Ethernet's shortest frame."""
    ethernet = b"\xff" * 6 + mac + pack(">H", 0x8035)
    body = pack(">HHBBH", 1, 0x0800, 6, 4, 3) + mac + bytes(4) + mac + bytes(4)
    return (ethernet + body).ljust(60, b"\0")


def _send_rarp(state: State, message: Message) -> None:
    mac = u64_of(message).to_bytes(8, "little")[:6]
    if mac[0] & 1 or mac == bytes(6):
        raise RuleError(Rule.BAD_VALUE, f"no address of a guest: {mac.hex(':')}")
    try:
        state.port.inject(rarp(mac))
    except DataplaneError as error:
        # No fault of the front-end's, which asks once and takes no answer: the guest is there, and who it may
        # be is the port's rules' business.
        if error.errno == errno.EPERM:
            state.on_rarp_dropped(mac)
        # A link that is down has nobody to tell; the guest is heard when it is up and the guest speaks.
        elif error.errno != errno.ENETDOWN:
            raise


GROUP = Group({Request.SEND_RARP: _send_rarp}, offers=ProtocolFeature.RARP)
