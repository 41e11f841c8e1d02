# SPDX-License-Identifier: BSD-2-Clause
"""The record of what is in flight: memory that the front-end keeps, so that the next back-end can go on.

The front-end asks for it once and hands it in with each connection. What is in it is read and written in C
(backend_c/src/inflight.h), which believes none of it.
"""

from __future__ import annotations

import fcntl
import os

from vpt.daemon.transports.vhost.rings import MAX_RING
from vpt.daemon.transports.vhost.state import Group, Reply, State, payload_of, port_refuses
from vpt.dataplane import InflightRecord, vhost_inflight_size
from vpt.vhost_user import Inflight, Message, ProtocolFeature, Request, Rule, RuleError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _check(state: State, record: Inflight) -> None:
    if not 1 <= record.queues <= len(state.rings):
        raise RuleError(Rule.BAD_INFLIGHT, f"{record.queues} queues, there are {len(state.rings)}")
    if not 1 <= record.queue_size <= MAX_RING:
        raise RuleError(Rule.BAD_INFLIGHT, f"queues of {record.queue_size}")


def _get_inflight_fd(state: State, message: Message) -> Reply:
    asked = payload_of(message, Inflight)
    _check(state, asked)
    # Without features the layout is not known; packed rings have the larger states.
    packed = state.features is None or state.packed
    size = vhost_inflight_size(packed=packed, queues=asked.queues, queue_size=asked.queue_size)
    fd = os.memfd_create("vpt-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    reply = Reply(Inflight(size, 0, asked.queues, asked.queue_size, asked.padding), [fd])
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        reply.close()
        raise
    return reply


def _set_inflight_fd(state: State, message: Message) -> None:
    given = payload_of(message, Inflight)
    _check(state, given)
    if state.any_running:
        raise RuleError(Rule.RING_RUNNING, "another record while rings are running")
    with port_refuses(Rule.BAD_INFLIGHT, f"{given.mmap_size} bytes for {given.queues} queues"):
        state.port.vhost_inflight_set(
            InflightRecord(
                mmap_size=given.mmap_size,
                mmap_offset=given.mmap_offset,
                queues=given.queues,
                queue_size=given.queue_size,
                fd=message.fds[0],
            )
        )
    state.record.take(message)


GROUP = Group(
    {Request.GET_INFLIGHT_FD: _get_inflight_fd, Request.SET_INFLIGHT_FD: _set_inflight_fd},
    offers=ProtocolFeature.INFLIGHT_SHMFD,
)
