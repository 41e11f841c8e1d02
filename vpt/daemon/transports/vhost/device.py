# SPDX-License-Identifier: BSD-2-Clause
"""The device as a whole: status, reset, MTU."""

from __future__ import annotations

from vpt.daemon.transports.vhost.resets import Reset, reset
from vpt.daemon.transports.vhost.state import Group, State, u64_of
from vpt.vhost_user import U64, Message, Payload, ProtocolFeature, Request, Rule, RuleError

MIN_MTU = 68  # RFC 791


def _reset_device(state: State, _message: Message) -> None:
    reset(state, Reset.DEVICE, state.rings)


def _set_status(state: State, message: Message) -> None:
    value = u64_of(message)
    if value > 0xFF:
        raise RuleError(Rule.BAD_VALUE, f"status {value:#x}")
    if value == 0:
        reset(state, Reset.STATUS, state.rings)
    state.status = value


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
