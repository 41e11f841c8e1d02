# SPDX-License-Identifier: BSD-2-Clause
"""The device as a whole: status, reset, MTU.

RESET_DEVICE and status 0 stop and disable all rings and forget the features, but keep memory and call
descriptors: QEMU sends only what changed in its memory table since the connection began.
"""

from __future__ import annotations

from vpt.daemon.transports.vhost.state import Group, State, u64_of
from vpt.vhost_user import U64, Message, Payload, ProtocolFeature, Request, Rule, RuleError

MIN_MTU = 68  # RFC 791


def _reset_device(state: State, _message: Message) -> None:
    for ring in state.rings:
        if ring.running:
            state.port.vring_stop(ring.index)
            ring.stopped()
        ring.reset()
        state.port.vring_enable(ring.index, False)
    state.port.vhost_set_features(0)
    state.take_features(None)
    state.status = 0


def _set_status(state: State, message: Message) -> None:
    value = u64_of(message)
    if value > 0xFF:
        raise RuleError(Rule.BAD_VALUE, f"status {value:#x}")
    state.status = value
    if value == 0:
        # QEMU 7.2 asks where the rings have come to after this, when a guest is stopped or migrates.
        bases = [state.port.vring_stop(r.index) if r.running else r.base for r in state.rings]
        _reset_device(state, message)
        for ring, base in zip(state.rings, bases, strict=True):
            ring.base = base


def _get_status(state: State, _message: Message) -> Payload:
    return U64(state.status)


def _net_set_mtu(state: State, message: Message) -> None:
    value = u64_of(message)
    if not MIN_MTU <= value <= state.settings.mtu:
        raise RuleError(Rule.BAD_VALUE, f"MTU {value}, {MIN_MTU}..{state.settings.mtu} allowed")
    state.mtu = value


GROUP = Group(
    {
        Request.RESET_DEVICE: _reset_device,
        Request.SET_STATUS: _set_status,
        Request.GET_STATUS: _get_status,
        Request.NET_SET_MTU: _net_set_mtu,
    },
    offers=ProtocolFeature.RESET_DEVICE | ProtocolFeature.STATUS | ProtocolFeature.NET_MTU,
)
