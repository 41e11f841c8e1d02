# SPDX-License-Identifier: BSD-2-Clause
"""The device's configuration space, for front-ends that have none of their own (virtio 1.2, 5.1.4).

QEMU's virtio-net keeps its own and does not negotiate this; generic vhost-user devices, crosvm and Cloud
Hypervisor ask for it.
"""

from __future__ import annotations

from struct import pack

from vpt.daemon.transports.vhost.state import Group, State, payload_of
from vpt.vhost_user import (
    BackendRequest,
    DeviceConfig,
    Message,
    Payload,
    ProtocolFeature,
    Request,
    Rule,
    RuleError,
)

SPACE = DeviceConfig.MAX_SIZE  # bytes that may be read; zero behind the fields that there are
LINK_UP = 1


def net_config(state: State) -> bytes:
    """struct virtio_net_config up to the MTU; speed and the rest are not offered."""
    settings = state.settings
    fields = pack("<6sHHH", state.mac or bytes(6), LINK_UP * settings.link_up, state.max_pairs, settings.mtu)
    return fields.ljust(SPACE, b"\0")


def tell_changed(state: State) -> bool:
    """The configuration is another one: let the front-end fetch it again. Returns whether it is told."""
    if state.channel is None or not state.has(ProtocolFeature.CONFIG):
        return False
    state.channel.request(BackendRequest.CONFIG_CHANGE_MSG)
    return True


def _get_config(state: State, message: Message) -> Payload:
    asked = payload_of(message, DeviceConfig)
    end = asked.offset + len(asked.data)
    # A reply without content is how the protocol says no here.
    content = net_config(state)[asked.offset : end] if end <= SPACE else b""
    return DeviceConfig(asked.offset, asked.flags, content)


def _set_config(state: State, message: Message) -> None:
    """No field of a virtio 1 net device is writable. A migration repeats what the port knows itself."""
    asked = payload_of(message, DeviceConfig)
    end = asked.offset + len(asked.data)
    if asked.flags not in (DeviceConfig.BY_DRIVER, DeviceConfig.BY_MIGRATION):
        raise RuleError(Rule.BAD_VALUE, f"flags {asked.flags:#x}")
    if not asked.data or end > SPACE:
        raise RuleError(Rule.BAD_VALUE, f"bytes {asked.offset} to {end} of {SPACE}")
    same = net_config(state)[asked.offset : end] == asked.data
    if asked.flags == DeviceConfig.BY_DRIVER and not same:
        raise RuleError(Rule.BAD_VALUE, "nothing in it can be written")


GROUP = Group(
    {Request.GET_CONFIG: _get_config, Request.SET_CONFIG: _set_config},
    offers=ProtocolFeature.CONFIG,
)
