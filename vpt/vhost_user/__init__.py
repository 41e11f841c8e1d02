# SPDX-License-Identifier: BSD-2-Clause
"""The vhost-user wire format: messages as a table of data, incremental decoder, encoder.

Knows nothing of rings, switches or sockets' lives: the back-end session
(``vpt.daemon.transports.vhost_user``) and the test front-end both stand on it.
"""

from vpt.vhost_user.codec import Decoder, Message, close_fds, encode, receive, send_message, send_some
from vpt.vhost_user.features import DeviceStatus, ProtocolFeature, VirtioFeature, feature_names
from vpt.vhost_user.messages import (
    MAX_FDS,
    MAX_PAYLOAD,
    MAX_REGIONS,
    SPECS,
    U64,
    Empty,
    Flag,
    Inflight,
    Log,
    LogTaken,
    MemReg,
    MemTable,
    MessageSpec,
    Opaque,
    Payload,
    Region,
    Request,
    Rings,
    Rule,
    RuleError,
    VringAddr,
    VringFd,
    VringState,
)

__all__ = [
    "MAX_FDS",
    "MAX_PAYLOAD",
    "MAX_REGIONS",
    "SPECS",
    "U64",
    "Decoder",
    "DeviceStatus",
    "Empty",
    "Flag",
    "Inflight",
    "Log",
    "LogTaken",
    "MemReg",
    "MemTable",
    "Message",
    "MessageSpec",
    "Opaque",
    "Payload",
    "ProtocolFeature",
    "Region",
    "Request",
    "Rings",
    "Rule",
    "RuleError",
    "VirtioFeature",
    "VringAddr",
    "VringFd",
    "VringState",
    "close_fds",
    "encode",
    "feature_names",
    "receive",
    "send_message",
    "send_some",
]
