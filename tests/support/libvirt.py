# SPDX-License-Identifier: BSD-2-Clause
"""Domains for the tests of libvirt: a definition, and a tiny guest that libvirt has started."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from vpt.errors import VptError
from vpt.guest import Guest, Image
from vpt.qemu import find_qemu

DRIVER = "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"
NEEDS = ("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "py:libvirt", "py:lxml", DRIVER)

Vpt = Callable[..., tuple[int, str, str]]
"""vpt("attach", "vm", ...): exit code, output, errors."""

QEMU_CONF = """
user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
memory_backing_dir = "{root}/ram"
"""

_SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  {memory}
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 quiet {append}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    {controllers}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{folder}/console'/><target port='0'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{folder}/agent'/><target type='virtio' name='vpt.agent'/>
    </channel>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-global'/>
    <qemu:arg value='virtio-net-pci.vectors=0'/>
  </qemu:commandline>
</domain>
"""

_Q35 = "".join(
    f"<controller type='pci' index='{index}' model='{model}'/>"
    for index, model in enumerate(["pcie-root", *["pcie-root-port"] * 6, "pcie-to-pci-bridge"])
)


def need_user() -> None:
    """libvirt looks libvirt-qemu up even where it is told to run QEMU as somebody else."""
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        argv = ["useradd", "--system", "--no-create-home", "libvirt-qemu"]
        if os.geteuid() or subprocess.run(argv, check=False).returncode:
            pytest.skip(f"no user libvirt-qemu: {' '.join(argv)}")


class DomainGuest(Guest):
    """A tiny guest that libvirt has started: commands go over a socket that libvirt made."""

    def __init__(self, image: Image, domain: Any, folder: Path) -> None:
        super().__init__(image, find_qemu(), name=domain.name(), accel="tcg")
        self.domain = domain
        self._folder = folder

    def start(self) -> Self:
        """Start the domain and connect to its channel."""
        self.domain.create()
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(self._folder / "agent"))
        channel.setblocking(False)
        self._channel, self._received = channel, b""
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> Self:
        """As of any guest; what its console says is in the test's report."""
        try:
            return super().wait_ready(timeout_s)
        except VptError as error:
            pytest.fail(f"{error}\n{error.hint}", pytrace=False)

    def stop(self) -> None:
        """Pull the plug. The domain stays defined."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.domain.isActive():
            self.domain.destroy()


class Libvirt:
    """The embedded driver: one for all tests, because a process can have one."""

    def __init__(self, root: Path, connection: Any, image: Image) -> None:
        self.uri = f"qemu:///embed?root={root}"
        self.root = root
        self.connection = connection
        self.image = image

    def define(self, name: str, *, machine: str = "pc", shared: bool = True, append: str = "") -> DomainGuest:
        """A domain that does not run yet."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        xml = _DOMAIN.format(
            name=name,
            machine=machine,
            append=append,
            memory=_SHARED if shared else "",
            kernel=self.image.kernel.vmlinuz,
            initrd=self.image.initrd,
            emulator=find_qemu().path,
            folder=folder,
            controllers=_Q35 if machine == "q35" else "",
        )
        return DomainGuest(self.image, self.connection.defineXML(xml), folder)

    def remove(self, guest: DomainGuest) -> None:
        """Stop and undefine."""
        guest.stop()
        with contextlib.suppress(Exception):
            guest.domain.undefine()
