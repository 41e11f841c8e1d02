# SPDX-License-Identifier: BSD-2-Clause
"""Rings: described, started, stopped, enabled.

A ring starts at SET_VRING_KICK, complete or not at all; what an enabled one holds is found without a kick.
One that is not enabled is left alone until it is, or until its first kick (vpt_vhost_vring_start()).
"""

from __future__ import annotations

import errno

from vpt.daemon.descriptors import is_eventfd
from vpt.daemon.transports.vhost import calls
from vpt.daemon.transports.vhost.resets import Reset, reset
from vpt.daemon.transports.vhost.state import Group, Ring, State, payload_of, port_refuses
from vpt.dataplane import Vring
from vpt.vhost_user import (
    Message,
    Payload,
    ProtocolFeature,
    Request,
    Rule,
    RuleError,
    VringAddr,
    VringFd,
    VringState,
)

MAX_RING = 32768
_FIRST_LAP = 0x8000_8000  # base of a packed ring: index 0 and wrap counter 1, for available and for used


def _set_vring_num(state: State, message: Message) -> None:
    vring = payload_of(message, VringState)
    if not 1 <= vring.num <= MAX_RING or (vring.num & (vring.num - 1) and not state.packed):
        raise RuleError(Rule.BAD_VALUE, f"ring of {vring.num}")
    state.rings[vring.index].num = vring.num


def _set_vring_addr(state: State, message: Message) -> None:
    addr = payload_of(message, VringAddr)
    ring = state.rings[addr.index]
    if addr.flags & ~VringAddr.LOG:
        raise RuleError(Rule.BAD_VALUE, f"flags {addr.flags:#x}")
    if ring.running and not (ring.addr and addr.same_place(ring.addr)):
        raise RuleError(Rule.RING_RUNNING, f"ring {ring.index} is running elsewhere")
    with port_refuses(Rule.BAD_MEMORY, f"ring {ring.index} at {addr.log:#x} of the log"):
        state.port.vring_log(ring.index, bool(addr.flags & VringAddr.LOG), addr.log)
    ring.addr = addr


def _set_vring_base(state: State, message: Message) -> None:
    vring = payload_of(message, VringState)
    if vring.num > 0xFFFF and not state.packed:
        raise RuleError(Rule.BAD_VALUE, f"base {vring.num:#x}")
    state.rings[vring.index].base = vring.num


def _get_vring_base(state: State, message: Message) -> Payload:
    ring = state.rings[payload_of(message, VringState).index]
    reset(state, Reset.STOP, [ring])
    return VringState(ring.index, _base(state, ring))


def _set_vring_kick(state: State, message: Message) -> None:
    ring, fd = _ring_and_eventfd(state, message)
    if ring.running:
        with port_refuses(Rule.BAD_FD, f"ring {ring.index}"):
            state.port.vring_set_kick(ring.index, fd)
    else:
        start(state, ring, fd)
    ring.kick.take(message)


def _set_vring_call(state: State, message: Message) -> None:
    ring, fd = _ring_and_eventfd(state, message)
    if ring.running:
        with port_refuses(Rule.BAD_FD, f"ring {ring.index}"):
            state.port.vring_set_call(ring.index, fd)
    ring.take_call(message)


def _set_vring_err(state: State, message: Message) -> None:
    # Besides, a broken ring is announced by closing the connection, which no front-end can overlook.
    ring, _ = _ring_and_eventfd(state, message)
    ring.err.take(message)


def _set_vring_enable(state: State, message: Message) -> None:
    vring = payload_of(message, VringState)
    # QEMU enables rings before it sends SET_FEATURES: only a negotiation that left the bit out forbids it.
    if state.always_enabled:
        raise RuleError(Rule.NOT_NEGOTIATED, "needs VHOST_USER_F_PROTOCOL_FEATURES")
    if vring.num > 1:
        raise RuleError(Rule.BAD_VALUE, f"enable {vring.num}")
    ring = state.rings[vring.index]
    ring.enabled = bool(vring.num)
    if ring.running:
        state.port.vring_enable(ring.index, ring.enabled)


def _base(state: State, ring: Ring) -> int:
    if ring.base is not None:
        return ring.base
    return _FIRST_LAP if state.packed else 0


def _ring_and_eventfd(state: State, message: Message) -> tuple[Ring, int]:
    """The ring that a VringFd names, and its descriptor (still the message's) or -1 for NOFD."""
    payload = payload_of(message, VringFd)
    ring = state.rings[payload.index]
    if payload.nofd:
        return ring, -1
    if not is_eventfd(message.fds[0]):
        raise RuleError(Rule.BAD_FD, f"ring {ring.index}: not an eventfd")
    return ring, message.fds[0]


def start(state: State, ring: Ring, kick_fd: int) -> None:
    """Start it as it was described, or raise RuleError(BAD_RING). kick_fd stays the caller's; -1: polled."""
    if ring.addr is None or ring.num == 0:
        raise RuleError(Rule.BAD_RING, f"ring {ring.index} has no {'size' if ring.addr else 'addresses'}")
    vring = Vring(
        num=ring.num,
        base=_base(state, ring),
        desc_uva=ring.addr.desc,
        avail_uva=ring.addr.avail,
        used_uva=ring.addr.used,
        kick_fd=kick_fd,
        call_fd=calls.descriptor(state, ring),
    )
    state.port.vring_enable(ring.index, ring.enabled or state.always_enabled)
    with port_refuses(Rule.BAD_RING, f"ring {ring.index}", or_by={errno.EILSEQ: Rule.BAD_INFLIGHT}):
        state.port.vring_start(ring.index, vring)
    ring.running = True
    state.pages.ring_started(ring.index)


GROUP = Group(
    {
        Request.SET_VRING_NUM: _set_vring_num,
        Request.SET_VRING_ADDR: _set_vring_addr,
        Request.SET_VRING_BASE: _set_vring_base,
        Request.GET_VRING_BASE: _get_vring_base,
        Request.SET_VRING_KICK: _set_vring_kick,
        Request.SET_VRING_CALL: _set_vring_call,
        Request.SET_VRING_ERR: _set_vring_err,
        Request.SET_VRING_ENABLE: _set_vring_enable,
    },
    offers=ProtocolFeature(0),
)
