# SPDX-License-Identifier: BSD-2-Clause
"""The dirty log of live migration: where it is, and who is told. When it is in use, VHOST_F_LOG_ALL says."""

from __future__ import annotations

from vpt.daemon.descriptors import is_eventfd
from vpt.daemon.transports.vhost.state import Group, State, payload_of, port_refuses
from vpt.vhost_user import Log, LogTaken, Message, Payload, ProtocolFeature, Request, Rule, RuleError


def _set_log_base(state: State, message: Message) -> Payload:
    """Answered when no worker writes to the log before this one any more."""
    log = payload_of(message, Log)
    with port_refuses(Rule.BAD_MEMORY, f"log of {log.size:#x} bytes at {log.offset:#x}"):
        state.port.vhost_log_set(message.fds[0], log.offset, log.size)
    state.log.take(message)
    return LogTaken()


def _set_log_fd(state: State, message: Message) -> None:
    if not is_eventfd(message.fds[0]):
        raise RuleError(Rule.BAD_FD, "not an eventfd")
    with port_refuses(Rule.BAD_FD, "log event"):
        state.port.vhost_log_event(message.fds[0])
    state.log_event.take(message)


GROUP = Group(
    {
        Request.SET_LOG_BASE: _set_log_base,
        Request.SET_LOG_FD: _set_log_fd,
    },
    offers=ProtocolFeature.LOG_SHMFD,
)
