# SPDX-License-Identifier: BSD-2-Clause
"""QEMU command lines for guests on vpt ports. Pure: a description in, a list of arguments out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpt.qemu._binary import Qemu

__all__ = ["Ivshmem", "Machine", "Nic", "VhostUser", "command_line", "option_value"]

# From here on seconds give way to milliseconds.
_RECONNECT_MS = (9, 2, 0)


@dataclass(frozen=True)
class VhostUser:
    """A virtio-net device on a vhost-user socket that must exist before QEMU starts (QEMU is the client)."""

    socket: Path
    mac: str
    queues: int = 1


@dataclass(frozen=True)
class Ivshmem:
    """A passthrough port: an ivshmem-doorbell device on a server's socket.

    `vectors` is what abi.h calls VPT_VEC_COUNT(pairs).
    """

    socket: Path
    vectors: int


Nic = VhostUser | Ivshmem


@dataclass(frozen=True)
class Machine:
    """A guest: what it boots, what it is plugged into, and where its console and its command channel go."""

    kernel: Path
    initrd: Path
    accel: Literal["kvm", "tcg"]
    nics: tuple[Nic, ...] = ()
    append: str = ""
    memory_mib: int = 256
    name: str = "vpt"
    console: str = "stdio"
    """Chardev of ttyS0 (kernel messages): a backend with its options, for example "file,path=console.log"."""
    agent_fd: int | None = None
    """Connected stream socket for commands (a virtio-serial port), inherited by QEMU."""
    qmp: Path | None = None
    extra: tuple[str, ...] = ()


def option_value(text: object) -> str:
    """A value inside an option string: QEMU wants commas doubled."""
    return str(text).replace(",", ",,")


def _vhost_user(nic: VhostUser, i: int, machine: Machine, qemu: Qemu) -> list[str]:
    reconnect = "reconnect-ms=1000" if qemu.version >= _RECONNECT_MS else "reconnect=1"
    # Rings of 1024, as passthrough has: QEMU's default of 256 overflows while a guest is off its CPU.
    rings = "rx_queue_size=1024,tx_queue_size=1024"
    device = f"virtio-net-pci,netdev=net{i},mac={nic.mac},romfile=,{rings}"
    if machine.accel == "tcg" and not qemu.tcg_vhost_msix:
        device += ",vectors=0"
    elif nic.queues > 1:
        device += f",vectors={2 * nic.queues + 2}"
    if nic.queues > 1:
        device += ",mq=on"
    return [
        "-chardev", f"socket,id=chr{i},path={option_value(nic.socket)},{reconnect}",
        "-netdev", f"vhost-user,id=net{i},chardev=chr{i},queues={nic.queues}",
        "-device", device,
    ]  # fmt: skip


def _ivshmem(nic: Ivshmem, i: int) -> list[str]:
    # Never `reconnect` here: it hangs or aborts QEMU. The server's side keeps the socket alive instead.
    return [
        "-chardev", f"socket,id=chr{i},path={option_value(nic.socket)}",
        "-device", f"ivshmem-doorbell,id=ivs{i},vectors={nic.vectors},chardev=chr{i}",
    ]  # fmt: skip


def command_line(machine: Machine, qemu: Qemu) -> list[str]:
    """The command that starts `machine`, argv[0] included."""
    size = f"{machine.memory_mib}M"
    argv = [
        str(qemu.path), "-name", f"{option_value(machine.name)},process=vpt-{option_value(machine.name)}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", f"q35,accel={machine.accel},memory-backend=mem,graphics=off,vmport=off",
        "-cpu", "max",
        # With a single possible CPU, QEMU drops the guest's memory barriers under TCG, and wake-ups get lost.
        "-smp", "1,maxcpus=2",
        # Shared, or a vhost-user back-end could not map it.
        "-m", size, "-object", f"memory-backend-memfd,id=mem,size={size},share=on",
        "-kernel", str(machine.kernel), "-initrd", str(machine.initrd),
        "-append", f"console=ttyS0 quiet {machine.append}".strip(),
        "-chardev", f"{machine.console},id=console" if machine.console != "stdio"
        else "stdio,id=console,signal=off",
        "-device", "isa-serial,chardev=console",
    ]  # fmt: skip
    if machine.agent_fd is not None:
        argv += ["-device", "virtio-serial-pci,id=serial"]
        argv += ["-chardev", f"socket,id=agent,fd={machine.agent_fd}"]
        argv += ["-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=vpt.agent"]
    if machine.qmp is not None:
        argv += ["-chardev", f"socket,id=qmp,path={option_value(machine.qmp)},server=on,wait=off"]
        argv += ["-mon", "qmp,mode=control"]
    for i, nic in enumerate(machine.nics):
        argv += _vhost_user(nic, i, machine, qemu) if isinstance(nic, VhostUser) else _ivshmem(nic, i)
    return [*argv, *machine.extra]
