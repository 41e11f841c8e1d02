# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's command line around the payload. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpt.errors import UsageError
from vpt.qemu import Ivshmem, Nic, Qemu, VhostUser, option_value

__all__ = ["RAM_SIZE", "Machine", "qemu_command"]

RAM_SIZE = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The virtual machine around the payload, with one network device at most.

    board:       microvm starts in 0.1 s; q35 is what guests usually have, and takes 3 s on a software KVM
    nic:         a passthrough port, or a virtio-net in front of a vhost-user back-end
    virtio_mmio: the virtio-net is not on PCI; microvm only, and the guest can't sleep
    queue_size:  of the virtio-net's rings
    cpu:         host CPU of the vCPU, None: any. QEMU's other threads go where they like
    qmp:         where QEMU shall listen for QMP, None: nowhere
    """

    accel: Literal["kvm", "tcg"] = "tcg"
    board: Literal["microvm", "q35"] = "microvm"
    nic: Nic | None = None
    virtio_mmio: bool = False
    queue_size: int = 1024
    cpu: int | None = None
    qmp: Path | None = None

    def __post_init__(self) -> None:
        if self.virtio_mmio and self.board != "microvm":
            raise UsageError(f"virtio-mmio is a microvm's, not a {self.board}'s")


def _ivshmem(nic: Ivshmem) -> list[str]:
    return [
        "-chardev", f"socket,id=peer,path={option_value(nic.socket)}",
        "-device", f"ivshmem-doorbell,id=nic,chardev=peer,vectors={nic.vectors}",
    ]  # fmt: skip


def _virtio_net(nic: VhostUser, machine: Machine, qemu: Qemu) -> list[str]:
    size = machine.queue_size
    common = f"id=nic,netdev=net,mac={nic.mac},rx_queue_size={size},tx_queue_size={size}"
    if machine.virtio_mmio:
        device = ["-global", "virtio-mmio.force-legacy=off", "-device", f"virtio-net-device,{common}"]
    else:
        vectors = 3 if machine.accel == "kvm" or qemu.tcg_vhost_msix else 0
        device = ["-device", f"virtio-net-pci,{common},disable-legacy=on,romfile=,vectors={vectors}"]
        if nic.doorbell_pages:
            device[-1] += ",page-per-vq=on"
    return [
        "-chardev", f"socket,id=peer,path={option_value(nic.socket)}",
        "-netdev", "vhost-user,id=net,chardev=peer",
        *device,
    ]  # fmt: skip


def _board(machine: Machine) -> str:
    options = f"{machine.board},accel={machine.accel},memory-backend=ram"
    if machine.board == "microvm":
        has_pci = machine.nic is not None and not machine.virtio_mmio
        options += f",pcie={'on' if has_pci else 'off'}"
    return options


def qemu_command(machine: Machine, qemu: Qemu, *, elf: Path, ram: Path, console: Path) -> list[str]:
    """The command that starts `machine`, argv[0] included. `ram` is a file of RAM_SIZE bytes."""
    size = f"{RAM_SIZE >> 20}M"
    argv = [
        str(qemu.path), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        # So that the vCPU's thread can be told from the others.
        "-name", "vpt-micro,debug-threads=on",
        "-machine", _board(machine),
        # A software KVM refuses arch-capabilities; nothing here needs it.
        "-cpu", "host,-arch-capabilities" if machine.accel == "kvm" else "max",
        # With a single possible CPU, QEMU drops the guest's memory barriers under TCG.
        "-smp", "1,maxcpus=2",
        "-object", f"memory-backend-file,id=ram,size={size},mem-path={option_value(ram)},share=on",
        "-m", size,
        "-chardev", f"file,id=console,path={option_value(console)}", "-serial", "chardev:console",
        "-device", "isa-debug-exit,iobase=0xf4",  # where the guest ends it: not QEMU's own default
        "-kernel", str(elf),
    ]  # fmt: skip
    if machine.qmp is not None:
        argv += ["-qmp", f"unix:{option_value(machine.qmp)},server=on,wait=off"]
    if isinstance(machine.nic, Ivshmem):
        argv += _ivshmem(machine.nic)
    elif machine.nic is not None:
        argv += _virtio_net(machine.nic, machine, qemu)
    return argv
