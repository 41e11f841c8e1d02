# SPDX-License-Identifier: BSD-2-Clause
"""Features, protocol features, ownership, number of queues."""

from __future__ import annotations

from vpt.daemon.transports.vhost.resets import Reset, reset
from vpt.daemon.transports.vhost.state import Group, State, port_refuses, u64_of
from vpt.vhost_user import (
    U64,
    Message,
    Payload,
    ProtocolFeature,
    Request,
    Rule,
    RuleError,
    VirtioFeature,
    feature_names,
)

# "The back-end should close the connection", the specification says of in-band notifications without these.
_INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


def _get_features(state: State, _message: Message) -> Payload:
    return U64(state.offered)


def _set_features(state: State, message: Message) -> None:
    value = u64_of(message)
    if value & ~state.offered:
        names = ", ".join(feature_names(value & ~state.offered, VirtioFeature))
        raise RuleError(Rule.NOT_OFFERED, names)
    # With several pairs QEMU repeats it for each one, when the first are running already. Migration switches
    # the log on and off under running rings.
    if state.any_running and (value ^ (state.features or 0)) & ~VirtioFeature.LOG_ALL:
        raise RuleError(Rule.RING_RUNNING, "other features while rings are running")
    with port_refuses(Rule.BAD_VALUE, f"features {value:#x}"):
        state.port.vhost_set_features(value)
    state.take_features(value)
    state.on_features(value)


def _get_protocol_features(state: State, _message: Message) -> Payload:
    return U64(state.offered_protocol)


def _set_protocol_features(state: State, message: Message) -> None:
    value = u64_of(message)
    if value & ~state.offered_protocol:
        names = ", ".join(feature_names(value & ~state.offered_protocol, ProtocolFeature))
        raise RuleError(Rule.NOT_OFFERED, names)
    if value & ProtocolFeature.INBAND_NOTIFICATIONS and _INBAND_NEEDS & ~value:
        raise RuleError(Rule.NOT_NEGOTIATED, "in-band notifications need BACKEND_REQ, REPLY_ACK", fatal=True)
    state.protocol = value


def _set_owner(state: State, _message: Message) -> None:
    state.owner = True


def _reset_owner(state: State, _message: Message) -> None:
    reset(state, Reset.OWNER, state.rings)


def _get_queue_num(state: State, _message: Message) -> Payload:
    return U64(state.max_pairs)


GROUP = Group(
    {
        Request.GET_FEATURES: _get_features,
        Request.SET_FEATURES: _set_features,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.SET_OWNER: _set_owner,
        Request.RESET_OWNER: _reset_owner,
        Request.GET_QUEUE_NUM: _get_queue_num,
    },
    offers=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK,
)
