# SPDX-License-Identifier: BSD-2-Clause
"""Calls and errors of rings to their front-end, beside the data plane's own way by eventfd.

With in-band notifications a ring that was given no call descriptor has one of ours; its signals are read here
and become VRING_CALL. A ring that broke is told by its error descriptor, or by VRING_ERR.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from vpt.dataplane import signal_eventfd
from vpt.vhost_user import BackendRequest, ProtocolFeature, VringState

if TYPE_CHECKING:
    from vpt.daemon.transports.vhost.state import Ring, State


class InbandCall:
    """A ring's call descriptor, of ours."""

    def __init__(self, state: State, index: int) -> None:
        self._state = state
        self._index = index
        self._loop = asyncio.get_running_loop()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.add_reader(self.fd, self.forward)

    def forward(self) -> None:
        """Pass on what has been signalled."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
            if self._state.channel is not None:
                self._state.channel.request(BackendRequest.VRING_CALL, VringState(self._index, 0))

    def close(self) -> None:
        """Not needed any more."""
        self._loop.remove_reader(self.fd)
        os.close(self.fd)


def descriptor(state: State, ring: Ring) -> int:
    """The call descriptor to start a ring with; it stays the ring's."""
    if ring.call_given or not state.has(ProtocolFeature.INBAND_NOTIFICATIONS):
        return ring.call.fd
    if ring.inband_call is None:
        ring.inband_call = InbandCall(state, ring.index)
    return ring.inband_call.fd


def forward(state: State) -> None:
    """Pass on all that has been signalled so far."""
    for ring in state.rings:
        if ring.inband_call is not None:
            ring.inband_call.forward()


def tell_broken(state: State, ring: Ring) -> None:
    """This ring broke."""
    if ring.err.fd >= 0:
        signal_eventfd(ring.err.fd)
    elif state.has(ProtocolFeature.INBAND_NOTIFICATIONS) and state.channel is not None:
        state.channel.request(BackendRequest.VRING_ERR, VringState(ring.index, 0))
