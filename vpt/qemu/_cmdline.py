# SPDX-License-Identifier: BSD-2-Clause
"""QEMU command lines for guests on vpt ports. Pure: a description in, a list of arguments out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpt.qemu._binary import Qemu

__all__ = [
    "RECONNECT_MS",
    "Drive",
    "Ivshmem",
    "Machine",
    "Nic",
    "UserNet",
    "VhostUser",
    "command_line",
    "kernel_arguments",
    "option_value",
    "user_net",
]

RECONNECT_MS = (9, 2, 0)
"""Version from which a chardev's `reconnect` (seconds) gives way to `reconnect-ms`."""


@dataclass(frozen=True)
class VhostUser:
    """A virtio-net device on a vhost-user socket that must exist before QEMU starts (QEMU is the client).

    doorbell_pages: each queue's doorbell has a page of its own, in whose place the back-end's may be mapped
    properties: more of the device's, as in "packed=on,guest_announce=off"
    """

    socket: Path
    mac: str
    queues: int = 1
    doorbell_pages: bool = False
    properties: str = ""


@dataclass(frozen=True)
class Ivshmem:
    """A passthrough port: an ivshmem-doorbell device on a server's socket.

    `vectors` is what abi.h calls VPT_VEC_COUNT(pairs).
    """

    socket: Path
    vectors: int


Nic = VhostUser | Ivshmem


@dataclass(frozen=True)
class Drive:
    """A virtio disk backed by a file; the guest finds the first one as /dev/vda."""

    path: Path
    format: Literal["qcow2", "raw"]
    readonly: bool = False


@dataclass(frozen=True)
class UserNet:
    """QEMU's own network, by which this host alone reaches the guest: TCP port `ssh_port` here is 22 there.

    A link-local network (RFC 3927), so that it is in nobody's way. internet: let the guest out by it.
    """

    ssh_port: int
    internet: bool = False
    mac: str = "02:76:70:74:00:01"
    address: str = "169.254.118.15"
    gateway: str = "169.254.118.2"
    dns: str = "169.254.118.3"


@dataclass(frozen=True)
class Machine:
    """A guest: what it boots, what it is plugged into, and where its console and its command channel go.

    Without kernel, its firmware boots the first drive.
    """

    kernel: Path | None
    initrd: Path | None
    accel: Literal["kvm", "tcg"]
    nics: tuple[Nic, ...] = ()
    append: str = ""
    memory_mib: int = 256
    cpus: int = 1
    drives: tuple[Drive, ...] = ()
    management: UserNet | None = None
    name: str = "vpt"
    console: str = "stdio"
    """Chardev of ttyS0 (kernel messages): a backend with its options, for example "file,path=console.log"."""
    agent_fd: int | None = None
    """Connected stream socket for commands (a virtio-serial port), inherited by QEMU."""
    qmp: Path | None = None
    pidfile: Path | None = None
    """Given, QEMU goes to the background when it is set up, and its process id is there."""
    spare_slots: int = 0
    """Devices that it can be given while it runs."""
    extra: tuple[str, ...] = ()


def option_value(text: object) -> str:
    """A value inside an option string: QEMU wants commas doubled."""
    return str(text).replace(",", ",,")


def _vhost_user(nic: VhostUser, i: int, machine: Machine, qemu: Qemu) -> list[str]:
    reconnect = "reconnect-ms=1000" if qemu.version >= RECONNECT_MS else "reconnect=1"
    # Rings of 1024, as passthrough has: QEMU's default of 256 overflows while a guest is off its CPU.
    rings = "rx_queue_size=1024,tx_queue_size=1024"
    device = f"virtio-net-pci,netdev=net{i},mac={nic.mac},romfile=,{rings}"
    if machine.accel == "tcg" and not qemu.tcg_vhost_msix:
        device += ",vectors=0"
    elif nic.queues > 1:
        device += f",vectors={2 * nic.queues + 2}"
    if nic.queues > 1:
        device += ",mq=on"
    if nic.doorbell_pages:
        device += ",page-per-vq=on"
    if nic.properties:
        device += f",{nic.properties}"
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


def user_net(net: UserNet, accel: Literal["kvm", "tcg"]) -> tuple[str, str]:
    """Values of QEMU's options -netdev and -device for the management network; its netdev is "mgmt"."""
    subnet = f"net=169.254.118.0/24,host={net.gateway},dns={net.dns},dhcpstart={net.address}"
    forward = f"hostfwd=tcp:127.0.0.1:{net.ssh_port}-{net.address}:22"
    restrict = "off" if net.internet else "on"
    # No MSI-X under TCG, as for the other NICs: an interrupt less of each kind to emulate.
    vectors = ",vectors=0" if accel == "tcg" else ""
    return (
        f"user,id=mgmt,ipv6=off,{subnet},restrict={restrict},{forward}",
        f"virtio-net-pci,netdev=mgmt,id=mgmt-nic,mac={net.mac},romfile={vectors}",
    )


def _boot(machine: Machine) -> list[str]:
    if machine.kernel is None:
        return []
    argv = ["-kernel", str(machine.kernel)]
    if machine.initrd is not None:
        argv += ["-initrd", str(machine.initrd)]
    return [*argv, "-append", kernel_arguments(machine)]


def kernel_arguments(machine: Machine) -> str:
    """The command line of a machine's kernel.

    Linux counts its timer's ticks when it boots, and panics over an emulated machine that was kept from its
    CPU meanwhile ("IO-APIC + timer doesn't work!", seen with ten of them booting on two CPUs).
    """
    patience = "no_timer_check " if machine.accel == "tcg" else ""
    return f"console=ttyS0 quiet {patience}{machine.append}".strip()


def _drive(drive: Drive, i: int) -> list[str]:
    readonly = "on" if drive.readonly else "off"
    file = f"file={option_value(drive.path)},format={drive.format},readonly={readonly}"
    return ["-drive", f"if=none,id=disk{i},{file}", "-device", f"virtio-blk-pci,drive=disk{i}"]


def command_line(machine: Machine, qemu: Qemu) -> list[str]:
    """The command that starts `machine`, argv[0] included."""
    size = f"{machine.memory_mib}M"
    argv = [
        str(qemu.path), "-name", f"{option_value(machine.name)},process=vpt-{option_value(machine.name)}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", f"q35,accel={machine.accel},memory-backend=mem,graphics=off,vmport=off",
        "-cpu", "max",
        # With a single possible CPU, QEMU drops the guest's memory barriers under TCG, and wake-ups get lost.
        "-smp", f"{machine.cpus},maxcpus={max(2, machine.cpus)}",
        # Shared, or a vhost-user back-end could not map it.
        "-m", size, "-object", f"memory-backend-memfd,id=mem,size={size},share=on",
        *_boot(machine),
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
    if machine.management is not None:
        netdev, device = user_net(machine.management, machine.accel)
        argv += ["-netdev", netdev, "-device", device]
    for i, drive in enumerate(machine.drives):
        argv += _drive(drive, i)
    for i in range(1, machine.spare_slots + 1):
        argv += ["-device", f"pcie-root-port,id=spare{i},chassis={i},slot={i}"]
    if machine.pidfile is not None:
        argv += ["-daemonize", "-pidfile", str(machine.pidfile)]
    return [*argv, *machine.extra]
