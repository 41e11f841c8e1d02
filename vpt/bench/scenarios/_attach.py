# SPDX-License-Identifier: BSD-2-Clause
"""Attaching a port to a running VM, for the scenario control-plane: to a QEMU by itself, and to a domain.

libvirt's own time is what it takes to attach an equal interface to the same domain when it is asked at once,
over a connection that is open: measured beside each `vpt attach`, now before and now after it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from vpt.bench.scenario import Measured, Runnable
from vpt.bench.scenarios._libvirtd import libvirtd, running_domain
from vpt.daemon.client import Client
from vpt.errors import TimeoutExpired
from vpt.libvirt_plugin.metadata import Plug
from vpt.libvirt_plugin.xml import alias_of, device_xml
from vpt.qemu import find_qemu
from vpt.qemu.qmp import listener_pid

__all__ = ["Command", "attach_to_domain", "attach_to_qemu"]

Command = Callable[..., Measured]
"""command("attach", ...): run vpt with these arguments; how long it took."""

_WAIT_S = 30.0
_DOMAIN = "bench"


def attach_to_qemu(command: Command, vptd: Client, switch: str, folder: Path) -> Measured:
    """All of it, QEMU's share included; there is no libvirt in between."""
    with _qemu(folder) as qmp:
        measured = command("attach", str(qmp), "--switch", switch, "--port", "x")
    vptd.call("port.del", name="x")
    return measured


@contextmanager
def _qemu(folder: Path) -> Iterator[Path]:
    """Somebody to attach to: a QEMU with a spare slot, whose firmware finds nothing to boot."""
    qmp, size = folder / "attach.qmp", "64M"
    line = [
        str(find_qemu().path), "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35,accel=tcg,memory-backend=mem", "-smp", "1,maxcpus=2",
        "-m", size, "-object", f"memory-backend-memfd,id=mem,size={size},share=on",
        "-device", "pcie-root-port,id=spare,chassis=1,slot=1",
        "-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "-mon", "qmp,mode=control",
    ]  # fmt: skip
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as qemu:
        try:
            _await(lambda: qmp.exists() and listener_pid(qmp) == qemu.pid, "QEMU's QMP socket")
            yield qmp
        finally:
            qemu.kill()
    qmp.unlink(missing_ok=True)


@contextmanager
def attach_to_domain(command: Command, vptd: Client, switch: str) -> Iterator[Runnable]:
    """A runnable that measures both ways. MissingError: there is no libvirt for it."""
    with libvirtd() as (uri, connection), running_domain(connection, _DOMAIN) as domain:
        vptd.call("port.add", switch=switch, name="bare", kind="vhost-user")
        turns = count()

        def with_vpt() -> float:
            took = command("attach", "--connect", uri, _DOMAIN, "--switch", switch, "--port", "x")
            command("detach", "--connect", uri, _DOMAIN)
            return took.values["ms"]

        def run() -> Measured:
            ways: dict[str, Callable[[], float]] = {"ms": with_vpt, "libvirt": lambda: _bare(domain, vptd)}
            order = list(ways) if next(turns) % 2 else list(reversed(ways))
            values = {name: ways[name]() for name in order}
            return Measured(values | {"beyond": values["ms"] - values["libvirt"]})

        yield run
        vptd.call("port.del", name="bare")


def _bare(domain: Any, vptd: Client) -> float:
    """libvirt alone, for a port that is there."""
    socket = vptd.call("port.show", name="bare")["socket"]
    plug = Plug("bare", "", "vhost-user", socket, "", {"mac": "52:54:00:00:02:01"})
    began = time.perf_counter()
    domain.attachDeviceFlags(device_xml(plug), 1)  # VIR_DOMAIN_AFFECT_LIVE
    took = 1e3 * (time.perf_counter() - began)
    alias = alias_of(plug.name)
    domain.detachDeviceAlias(alias, 1)
    _await(lambda: alias not in domain.XMLDesc(), f"{_DOMAIN} to let go of {alias}")
    return took


def _await(done: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + _WAIT_S
    while not done():
        if time.monotonic() > limit:
            raise TimeoutExpired(f"waited {_WAIT_S:g} s for {what}")
        time.sleep(0.01)
