# SPDX-License-Identifier: BSD-2-Clause
"""The memory table, whole or by region.

A region may be added more than once, and is there until it has been taken away as often: QEMU 7.2 adds each
one for every queue pair.
"""

from __future__ import annotations

import os

from vpt.daemon.descriptors import is_memory
from vpt.daemon.transports.vhost.held import Held
from vpt.daemon.transports.vhost.state import Group, State, Told, payload_of, port_refuses
from vpt.dataplane import MemRegion, vhost_max_mem_regions
from vpt.vhost_user import U64, MemReg, MemTable, Message, Payload, ProtocolFeature, Region, Request, Rule


def _mem_region(region: Region, fd: int) -> MemRegion:
    return MemRegion(gpa=region.gpa, size=region.size, uva=region.uva, mmap_offset=region.mmap_offset, fd=fd)


def _key(region: Region) -> tuple[int, int, int]:
    """What names a region. REM_MEM_REG need not say where in its file it lies, and QEMU does not."""
    return region.gpa, region.size, region.uva


def _where(region: Region, fd: int) -> tuple[int, int, int]:
    """fd: of memory, or fstat() might ask a server."""
    file = os.fstat(fd)
    return file.st_dev, file.st_ino, region.mmap_offset


def _tell(state: State, region: Region, message: Message) -> None:
    """The data plane has it now; its descriptor is the message's first."""
    told = Told(_where(region, message.fds[0]), Held(state.closer))
    told.file.take(message)
    state.told[_key(region)] = told


def _set_mem_table(state: State, message: Message) -> None:
    table = payload_of(message, MemTable)
    regions = [_mem_region(r, fd) for r, fd in zip(table.regions, message.fds, strict=True)]
    with port_refuses(Rule.BAD_MEMORY, f"{len(regions)} regions"):
        state.port.vhost_mem_set(regions)
    before, state.told = state.told, {}
    for region in table.regions:
        _tell(state, region, message)
    for told in before.values():
        told.file.drop()


def _get_max_mem_slots(_state: State, _message: Message) -> Payload:
    return U64(vhost_max_mem_regions())


def _add_mem_reg(state: State, message: Message) -> None:
    region, fd = payload_of(message, MemReg).region, message.fds[0]
    before = state.told.get(_key(region))
    if before is not None and is_memory(fd) and before.where == _where(region, fd):
        before.times += 1
        return
    with port_refuses(Rule.BAD_MEMORY, f"region {region.gpa:#x}+{region.size:#x}"):
        state.port.vhost_mem_add(_mem_region(region, fd))
    _tell(state, region, message)


def _rem_mem_reg(state: State, message: Message) -> None:
    region = payload_of(message, MemReg).region
    before = state.told.get(_key(region))
    if before is not None and before.times > 1:
        before.times -= 1
        return
    with port_refuses(Rule.BAD_MEMORY, f"region {region.gpa:#x}+{region.size:#x}"):
        state.port.vhost_mem_del(_mem_region(region, -1))
    state.told.pop(_key(region)).file.drop()


GROUP = Group(
    {
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        Request.ADD_MEM_REG: _add_mem_reg,
        Request.REM_MEM_REG: _rem_mem_reg,
    },
    offers=ProtocolFeature.CONFIGURE_MEM_SLOTS,
)
