# SPDX-License-Identifier: BSD-2-Clause
"""Where the back-end's own requests go; what they are is up to ``calls``, ``config`` and ``pages``."""

from __future__ import annotations

from vpt.daemon.transports.vhost.channel import Channel
from vpt.daemon.transports.vhost.pages import OFFERS as PAGES
from vpt.daemon.transports.vhost.state import Group, State
from vpt.vhost_user import Message, ProtocolFeature, Request


def _set_backend_req_fd(state: State, message: Message) -> None:
    fd = message.take_fd()
    assert fd is not None
    channel = Channel(fd, acknowledge=state.has(ProtocolFeature.REPLY_ACK), closer=state.closer)
    old, state.channel = state.channel, channel
    if old is not None:
        old.close(channel)
    state.pages.channel_set()


GROUP = Group({Request.SET_BACKEND_REQ_FD: _set_backend_req_fd}, offers=ProtocolFeature.BACKEND_REQ | PAGES)
