# SPDX-License-Identifier: BSD-2-Clause
"""From a guest's record to the machine that runs it: ports looked up, disks and identity made."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from vpt.daemon.client import Client
from vpt.dataplane import vec_count
from vpt.errors import ConflictError, NotFoundError, UsageError, VptError
from vpt.guest import READY_MARK, Image, build_image, cache_dir
from vpt.guest._image import need, run_tool
from vpt.provision import seed
from vpt.provision.config import VmConfig, disk_of
from vpt.provision.debian import Debian, build_debian
from vpt.provision.identity import (
    Identity,
    Interface,
    KeyPair,
    debian_archive,
    new_key,
    read_key,
    tiny_archive,
)
from vpt.provision.images import BootImage, Cloud, Progress, build_cloud, build_tiny, find, hold
from vpt.provision.record import Folder, Record
from vpt.qemu import Drive, Ivshmem, Machine, Nic, UserNet, VhostUser, find_qemu, probe_accel

__all__ = ["Port", "choose_accel", "image_for", "look_up", "machine_for", "prepare"]

_DISK_S = 120.0
# For vpt attach while it runs: a PCI Express machine takes a device into a root port of its own only.
_SPARE_SLOTS = 4


@dataclass(frozen=True)
class Port:
    """A port of vptd that a guest is plugged into."""

    name: str
    switch: str
    kind: Literal["vhost-user", "passthrough"]
    socket: str
    pairs: int
    mac: str

    def nic(self) -> Nic:
        if self.kind == "passthrough":
            return Ivshmem(Path(self.socket), vec_count(self.pairs))
        return VhostUser(Path(self.socket), self.mac, self.pairs)


def look_up(vptd: Client, config: VmConfig) -> list[Port]:
    """The ports that the machine has, in its order. NotFoundError, ConflictError: it can't have them."""
    found = {port["name"]: port for port in vptd.call("port.list")["ports"]} if config.ports else {}
    return [_port(vptd, found, name, config) for name in config.port_names]


def _port(vptd: Client, found: dict[str, dict[str, Any]], name: str, config: VmConfig) -> Port:
    port = found.get(name)
    if port is None:
        raise NotFoundError(
            f"{config.name} is to have the port {name!r}, which is not there",
            hint=vptd.typed("port", "add", "SWITCH", name, "--kind", "vhost-user"),
        )
    if port["kind"] not in ("vhost-user", "passthrough"):
        raise ConflictError(
            f"port {name!r} is of kind {port['kind']}, and no machine can be plugged into that",
            hint="vhost-user or passthrough",
        )
    if port["state"] == "up":
        raise ConflictError(f"somebody is plugged into port {name} already", hint=vptd.typed("show", name))
    if port["state"] in ("failed", "broken"):
        raise ConflictError(
            f"port {name} is {port['state']}: {port['reason']}", hint=vptd.typed("show", name)
        )
    mac = port["mac"]
    if mac is None and port["kind"] == "passthrough":
        raise UsageError(
            f"the passthrough port {name} has no MAC address to know its interface by in the guest",
            hint="give it one: mac, or vpt port add --mac",
        )
    return Port(
        name, port["switch"], port["kind"], port["socket"], port["pairs"], mac or _mac_for(config.name, name)
    )


def _mac_for(guest: str, port: str) -> str:
    """An address that stays the same, for a port without one."""
    digest = sha256(f"{guest}\0{port}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


# ---- image, accelerator ----


def image_for(config: VmConfig, progress: Progress = lambda _: None) -> BootImage:
    """From the cache, or built now."""
    if config.image == "tiny":
        return build_tiny(progress)
    if config.image == "debian":
        return build_debian(Debian(), progress)
    if "/" not in config.image:
        image = find(config.image)
        if image.kind != "cloud" and config.user_data:
            raise UsageError(f"user-data is for cloud images, and {image.name} has no cloud-init")
        return image
    kernel, initrd = (Path(path) if path else None for path in (config.kernel, config.initrd))
    return build_cloud(Cloud(Path(config.image), kernel, initrd), progress)


def choose_accel(config: VmConfig, progress: Progress = lambda _: None) -> Literal["kvm", "tcg"]:
    """What the machine asks for; "auto" is found out by booting a guest, once per host boot."""
    if config.accel != "auto":
        return config.accel
    progress("probing the accelerator by booting a guest")
    probe: Image = build_image(progress)
    return probe_accel(
        probe.kernel.vmlinuz, probe.initrd, find_qemu(), marker=READY_MARK, cache=cache_dir()
    ).name


# ---- what it is made of ----


def free_tcp_port() -> int:
    """One of this host's that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _identity(record: Record, host_key: KeyPair) -> Identity:
    login = [read_key(Path(record.ssh_key))]
    interfaces = tuple(
        Interface(record.macs[port.port], f"vpt{number}", tuple(port.address), port.gateway)
        for number, port in enumerate(record.config.ports)
    )
    return Identity(record.name, host_key, tuple(login), interfaces, management(record))


def management(record: Record) -> UserNet:
    """How this host logs in."""
    return UserNet(record.ssh_port, record.config.internet)


def prepare(record: Record, image: BootImage, folder: Folder) -> Record:
    """Make the guest's files: keys, disks, and who it is. Returns the record with what was made."""
    host_key = new_key()
    if record.config.ssh_key:
        login = Path(record.config.ssh_key)
        login = login.with_suffix("") if login.suffix == ".pub" else login
        read_key(login)
    else:
        login, made = folder.login_key, new_key()
        folder.write_private(login, made.private)
        login.with_name(f"{login.name}.pub").write_text(f"{made.public} vpt\n")
    record = record.model_copy(
        update={
            "ssh_key": str(login),
            "host_key": host_key.public,
            "ssh_port": free_tcp_port(),
            "boot": image,
        }
    )
    identity = _identity(record, host_key)
    if image.disk is not None:
        hold(image, folder.path)
        size = [] if record.config.root_gib is None else [f"{record.config.root_gib}G"]
        _qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(folder.root_disk), *size)
    if image.kind == "cloud":
        _write_seed(record, identity, image, folder)
    else:
        assert image.initrd is not None
        archive = tiny_archive(identity) if image.kind == "tiny" else debian_archive(identity)
        _write_initrd(folder, image.initrd, archive)
    for number, text in enumerate(record.config.disks):
        disk = disk_of(text)
        if disk.size is not None:
            _qemu_img("create", "-f", "qcow2", str(folder.disk(number)), str(disk.size))
        elif disk.path is not None and not disk.path.is_file():
            raise UsageError(f"there is no disk {disk.path}", hint="a new empty one has a size: 4G")
    return record


def _qemu_img(*argv: str) -> None:
    run_tool([need("qemu-img", "qemu-utils"), *argv], "qemu-img", _DISK_S)


def _write_initrd(folder: Folder, base: Path, archive: bytes) -> None:
    """The image's archive and the guest's own behind it, at a multiple of 4 as the kernel wants it."""
    data = base.read_bytes()
    folder.write_private(folder.initrd, data + bytes(-len(data) % 4) + archive)


def _write_seed(record: Record, identity: Identity, image: BootImage, folder: Folder) -> None:
    path = Path(record.config.user_data) if record.config.user_data else image.user_data
    try:
        users = path.read_bytes() if path is not None else None
    except OSError as error:
        raise UsageError(f"can't read the user-data: {error}", hint="give the path of a file") from None
    files = {
        "user-data": seed.user_data(identity, users),
        "meta-data": seed.meta_data(identity, f"vpt-{record.name}-{int(record.created)}").encode(),
        "network-config": seed.network_config(identity).encode(),
    }
    folder.write_private(folder.seed, seed.seed_iso(files))


# ---- the machine ----


def machine_for(record: Record, image: BootImage, ports: list[Port], folder: Folder) -> Machine:
    """What QEMU is told. Console and control socket are in the guest's folder."""
    drives = []
    if image.disk is not None:
        drives.append(Drive(folder.root_disk, "qcow2"))
    if image.kind == "cloud":
        drives.append(Drive(folder.seed, "raw", readonly=True))
    for number, text in enumerate(record.config.disks):
        path = disk_of(text).path
        drives.append(Drive(path, disk_format(path)) if path else Drive(folder.disk(number), "qcow2"))
    # The identity is in the initramfs, except where cloud-init has it from a seed.
    initrd = image.initrd if image.kind == "cloud" else folder.initrd
    return Machine(
        kernel=image.kernel,
        initrd=initrd,
        accel="kvm" if record.accel == "kvm" else "tcg",
        nics=tuple(replace(port, mac=record.macs[port.name]).nic() for port in ports),
        append=f"{image.append} {record.config.append}".strip(),
        memory_mib=record.config.memory_mib,
        cpus=record.config.cpus,
        drives=tuple(drives),
        management=management(record),
        name=record.name,
        console=f"file,path={folder.console}",
        qmp=folder.qmp,
        pidfile=folder.pidfile,
        spare_slots=_SPARE_SLOTS,
    )


def disk_format(path: Path) -> Literal["qcow2", "raw"]:
    """By its first bytes: QEMU would guess as well, and a guest that can write them could mislead it."""
    try:
        with path.open("rb") as file:
            return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
    except OSError as error:
        raise VptError(f"can't read the disk {path}: {error.strerror}", hint=f"ls -l {path}") from None
