# SPDX-License-Identifier: BSD-2-Clause
"""The back-end's side of one vhost-user connection: messages in, replies out. No sockets.

``session`` admits and dispatches; ``state`` is what is known of the connection; each other module is a Group:
messages that belong together, their handlers by request, the protocol features that they make good.
"""

from vpt.daemon.transports.vhost.remembered import Memory, Negotiated, process_of
from vpt.daemon.transports.vhost.session import OFFERED_PROTOCOL, Session
from vpt.daemon.transports.vhost.state import Reply

__all__ = ["OFFERED_PROTOCOL", "Memory", "Negotiated", "Reply", "Session", "process_of"]
