# SPDX-License-Identifier: BSD-2-Clause
"""In-band notifications: kicks as messages, in one order with all others.

For front-ends that simulate time. VRING_KICK starts a ring, as a first kick does, and is acknowledged when
the ring has been served; by then the calls that this caused are on the back-end's channel (see ``calls``).
"""

from __future__ import annotations

import os

from vpt.daemon.transports.vhost import calls, rings
from vpt.daemon.transports.vhost.state import Group, State, payload_of
from vpt.vhost_user import Message, ProtocolFeature, Request, Rule, RuleError, VringState


def _vring_kick(state: State, message: Message) -> None:
    vring = payload_of(message, VringState)
    ring = state.rings[vring.index]
    if vring.num:
        raise RuleError(Rule.BAD_VALUE, f"number {vring.num}")
    if not ring.running:
        # Nobody signals it: it is there because a ring without one is polled.
        unused = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            rings.start(state, ring, unused)
        finally:
            os.close(unused)
    state.port.vring_kick(ring.index)
    calls.forward(state)


GROUP = Group({Request.VRING_KICK: _vring_kick}, offers=ProtocolFeature.INBAND_NOTIFICATIONS)
