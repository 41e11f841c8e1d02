# SPDX-License-Identifier: BSD-2-Clause
"""A libvirtd of a benchmark's own, and a domain in it that runs and has nothing to boot.

libvirtd has fixed folders, and looks up a user for QEMU even where it is told another one. Both are ours in
its own view of the file system; the system's libvirtd, if there is one, is not met with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from vpt.errors import MissingError, TimeoutExpired, VptError
from vpt.libvirt_plugin._connection import binding, open_libvirt
from vpt.qemu import find_qemu

__all__ = ["QEMU_CONF", "libvirtd", "running_domain"]

_NAMESPACE = ("unshare", "--mount", "--propagation", "private")
_PATIENCE_S = 60.0
_LOOK_S = 0.02
_USER = "libvirt-qemu"

_START = f"""
set -e
root=$1
passwd={_USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin
group={_USER}:x:64055:
for dir in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do
    mkdir -p $dir "$root$dir"
    mount --bind "$root$dir" $dir
done
for list in passwd group; do
    getent $list {_USER} >/dev/null && continue
    {{ cat /etc/$list; eval "echo \\$$list"; }} >"$root/$list"
    mount --bind "$root/$list" /etc/$list
done
exec setpriv --pdeathsig TERM libvirtd --config "$root/libvirtd.conf" --pid-file "$root/libvirtd.pid"
"""

QEMU_CONF = """
user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
memory_backing_dir = "{root}/ram"
"""

_CONF = """
unix_sock_dir = "{root}"
auth_unix_rw = "none"
log_outputs = "3:file:{root}/log"
"""

# Firmware leaves the power of an empty slot off, and QEMU then takes a device out of it without asking a
# guest. By ACPI, it would have to be asked.
_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu current='1'>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-global'/>
    <qemu:arg value='virtio-net-pci.vectors=0'/>
    <qemu:arg value='-global'/>
    <qemu:arg value='ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'/>
  </qemu:commandline>
</domain>
"""


@contextmanager
def libvirtd() -> Iterator[tuple[str, Any]]:
    """Its URI, and a connection. MissingError: it is not installed, or may not have folders of its own."""
    _require()
    # A short name: sockets below it must fit an address.
    root = Path(mkdtemp(prefix="vpt-ld-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        conf = root / "etc/libvirt/qemu.conf"
        conf.parent.mkdir(parents=True)
        conf.write_text(QEMU_CONF.format(root=root))
        (root / "libvirtd.conf").write_text(_CONF.format(root=root))
        process = subprocess.Popen(
            [*_NAMESPACE, "sh", "-c", _START, "sh", str(root)], stdin=subprocess.DEVNULL
        )
        stack.callback(_end, process)
        uri = f"qemu+unix:///system?socket={root}/libvirt-sock"
        _await((root / "libvirt-sock").is_socket, process, "libvirtd's socket")
        yield uri, stack.enter_context(open_libvirt(uri))


def _require() -> None:
    if shutil.which("libvirtd") is None:
        raise MissingError(
            "libvirtd is not installed", hint="apt-get install libvirt-daemon libvirt-daemon-driver-qemu"
        )
    if os.geteuid() or subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        raise MissingError("a libvirtd of its own needs root and mount namespaces", hint="run it as root")
    binding()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await(done: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not done():
        if process.poll() is not None:
            raise VptError(f"libvirtd ended while {what} was awaited", hint="libvirtd --verbose")
        if time.monotonic() > end:
            raise TimeoutExpired(f"waited {_PATIENCE_S:g} s for {what}")
        time.sleep(_LOOK_S)


@contextmanager
def running_domain(connection: Any, name: str) -> Iterator[Any]:
    """Somebody to attach to, with a spare slot; it is not defined, so it is gone when it ends."""
    domain = connection.createXML(_DOMAIN.format(name=name, emulator=find_qemu().path))
    try:
        yield domain
    finally:
        domain.destroy()
