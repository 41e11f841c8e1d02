# SPDX-License-Identifier: BSD-2-Clause
"""What a port's back-end takes along in a migration: the addresses that were learnt there.

A guest that bridges for others is heard under all their addresses; where it arrives they are known before the
first of them has spoken. The form is JSON with a version. It travels in a file of ours, not in the
front-end's pipe, which could be made to block.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vpt.daemon.transports.vhost.state import Group, Reply, State, payload_of
from vpt.vhost_user import U64, DeviceStateFd, Message, Payload, ProtocolFeature, Request

MAX_MACS = 2048
MAX_STATE = 64 * MAX_MACS  # bytes; an address takes 40
_FAILED = 1
_Mac = Annotated[str, Field(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Heard(_Strict):
    """An address, and the VLAN that it was heard in; 0: without tag."""

    mac: _Mac
    vlan: Annotated[int, Field(ge=0, le=4094)] = 0


class PortState(_Strict):
    """The whole of it."""

    schema_: Literal["vpt.port-state/v1"] = Field(alias="schema")
    macs: list[Heard] = Field(max_length=MAX_MACS)


class Transfer:
    """A state on its way, in one direction. To load, owns the file that the front-end writes to."""

    def __init__(self, direction: int, fd: int = -1) -> None:
        self.direction = direction
        self._fd = fd

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def content(self) -> bytes:
        """What has been written, a copy: the front-end may hold the file still."""
        return os.pread(self._fd, MAX_STATE, 0).rstrip(b"\0")


def _file() -> int:
    return os.memfd_create("port-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _set_device_state_fd(state: State, message: Message) -> Payload | Reply:
    """The rings are stopped, or what is saved would be old before it has arrived."""
    asked = payload_of(message, DeviceStateFd)
    if asked.direction not in _BY_DIRECTION or asked.phase or state.any_running:
        return U64(_FAILED | DeviceStateFd.NOFD)
    state.drop_transfer()
    return Reply(U64(0), [_BY_DIRECTION[asked.direction](state)])


def _begin_save(state: State) -> int:
    state.transfer = Transfer(DeviceStateFd.SAVE)
    fd = _file()
    os.write(fd, _save(state))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _begin_load(state: State) -> int:
    """A file that cannot grow: a front-end that writes without end runs into its own error."""
    fd = _file()
    os.ftruncate(fd, MAX_STATE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    state.transfer = Transfer(DeviceStateFd.LOAD, fd)
    return os.dup(fd)


_BY_DIRECTION = {DeviceStateFd.SAVE: _begin_save, DeviceStateFd.LOAD: _begin_load}


def _check_device_state(state: State, _message: Message) -> Payload:
    transfer = state.transfer
    if transfer is None:
        return U64(_FAILED)
    try:
        done = transfer.direction == DeviceStateFd.SAVE or _load(state, transfer.content())
    finally:
        state.drop_transfer()
    return U64(0 if done else _FAILED)


def _save(state: State) -> bytes:
    """A PortState, written without one: there may be many addresses, and nobody is to wait."""
    macs = [{"mac": mac, "vlan": vlan} for mac, vlan in state.port.macs(MAX_MACS)]
    return json.dumps({"schema": "vpt.port-state/v1", "macs": macs}, separators=(",", ":")).encode()


def _load(state: State, data: bytes) -> bool:
    """Learn what was known where the guest came from; what this switch has no room for is left out."""
    try:
        loaded = PortState.model_validate_json(data)
    except ValidationError:
        return False
    state.port.learn([(heard.mac, heard.vlan) for heard in loaded.macs])
    return True


GROUP = Group(
    {
        Request.SET_DEVICE_STATE_FD: _set_device_state_fd,
        Request.CHECK_DEVICE_STATE: _check_device_state,
    },
    offers=ProtocolFeature.DEVICE_STATE,
)
