# SPDX-License-Identifier: BSD-2-Clause
"""Domains for the tests of libvirt: a definition, and a tiny guest that libvirt has started."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from support.waiting import until
from vpt.errors import VptError
from vpt.guest import Guest, Image
from vpt.libvirt_plugin.rules import alias_in
from vpt.libvirt_plugin.xml import alias_of
from vpt.qemu import find_qemu

DRIVER = "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"
NEEDS = ("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "py:libvirt", "py:lxml", DRIVER)

Vpt = Callable[..., tuple[int, str, str]]
"""vpt("attach", "vm", ...): exit code, output, errors."""

_SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d.*: (warning|info) :")

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


# Where each libvirt of this run keeps what it found out about QEMU.
_capabilities: list[Path] = []


def share_capabilities(folder: Path) -> None:
    """Give a new libvirt what those before it found out about QEMU: asking QEMU takes seconds.

    folder: where it keeps that. It asks all the same if it does not believe what is there.
    """
    folder.mkdir(parents=True)
    for known in filter(Path.exists, _capabilities):
        shutil.copytree(known, folder, dirs_exist_ok=True)
    _capabilities.append(folder)


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
        self.folder = folder

    def start(self) -> Self:
        """Start the domain and connect to its channel."""
        self.domain.create()
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(self.folder / "agent"))
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


def ok(result: tuple[int, str, str]) -> str:
    """What a command printed that must have done what it was told; a warning is no error."""
    code, out, err = result
    assert code == 0, out + err
    # libvirt's own log is there too, where libvirt is in this process.
    said = [line for line in err.splitlines() if not _LOGGED.match(line)]
    assert all(line.startswith("warning: this libvirt") for line in said), err
    return out


def live_xml(guest: DomainGuest) -> str:
    """Without metadata: libvirt leaves an empty element, and we a mark where a passthrough port has been."""
    return re.sub("  <metadata/>\n|  <metadata>.*</metadata>\n", "", guest.domain.XMLDesc(), flags=re.DOTALL)


def may_reset(guest: DomainGuest, connection: Any) -> DomainGuest:
    """A reset is not its end."""
    xml = guest.domain.XMLDesc(2)
    guest.domain = connection.defineXML(
        xml.replace("<on_reboot>destroy</on_reboot>", "<on_reboot>restart</on_reboot>")
    )
    return guest


def lose_device(guest: DomainGuest, port: str, *, live: bool = True) -> None:
    """Take a port's device, and nothing else, out of the running domain, or else of its configuration."""
    guest.domain.detachDeviceAlias(alias_of(port), 1 if live else 2)
    until(lambda: not alias_in(guest.domain.XMLDesc(0 if live else 2), port), "the device to go")


def qmp(guest: DomainGuest, command: str, **arguments: Any) -> Any:
    """What the domain's QEMU answers."""
    import libvirt_qemu

    line = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(guest.domain, line, 0))
    assert "return" in answer, answer
    return answer["return"]


def qemu_pid(guest: DomainGuest) -> int:
    """Process of the domain's QEMU: its command line has the domain's name, and folders of this libvirt."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if f"guest={guest.name}," in line and str(guest.folder.parent) in line:
                found.append(int(entry.name))
    assert len(found) == 1, found
    return found[0]


def assert_traffic_between_its_interfaces(guest: Guest, first: str = "eth0", second: str = "eth1") -> None:
    """Both on one switch: ARP requests go out of one and come in at the other, answers the other way.

    The kernel must be told that it may hear from itself.
    """
    guest.run(
        f"ip addr replace 10.6.0.1/24 dev {first}; ip addr replace 10.6.1.1/24 dev {second};"
        f"ip link set {first} up; ip link set {second} up;"
        f"for dev in all {first} {second}; do cd /proc/sys/net/ipv4/conf/$dev;"
        "echo 1 > accept_local; echo 0 > rp_filter; done"
    )
    guest.wait_until(f"arping -c 3 -w 3 -I {first} 10.6.1.1", 40, "an answer to ARP through both ports")


class Libvirt:
    """Domains of a libvirt: the embedded driver (one for all tests, a process can have one), or a libvirtd.

    user: that QEMU runs as and must be able to write files as, None: root
    """

    def __init__(self, root: Path, connection: Any, image: Image, user: int | None = None) -> None:
        self.uri = f"qemu:///embed?root={root}"
        self.root = root
        self.connection = connection
        self.image = image
        self._user = user

    def define(self, name: str, *, machine: str = "pc", shared: bool = True, append: str = "") -> DomainGuest:
        """A domain that does not run yet."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user, self._user)
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
        """Stop and undefine, as the connection knows it now: libvirtd may have been another one before."""
        with contextlib.suppress(Exception):
            guest.domain = self.connection.lookupByName(guest.name)
        with contextlib.suppress(Exception):
            guest.stop()
        with contextlib.suppress(Exception):
            guest.domain.undefine()
