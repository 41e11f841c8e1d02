# SPDX-License-Identifier: BSD-2-Clause
"""A libvirt of the tests' own (its embedded driver: no daemon), and a vptd."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.libvirt import Libvirt, Vpt, live_xml
from support.libvirtd import Libvirtd
from vpt.cli import main
from vpt.daemon.client import Client
from vpt.daemon.daemon import Settings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.runtime import locate
from vpt.guest import Image, build_image
from vpt.libvirt_plugin.metadata import NAMESPACE, plugs_in
from vpt.libvirt_plugin.xml import alias_of

#: What ends with the tests of this folder, not with the run: an idle guest takes a tenth of a core,
#: one of QEMU 7.2 without KVM a whole one once an ivshmem device was unplugged.
_while_here = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
        _while_here.close()


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image()


@pytest.fixture(scope="session")
def libvirt(image: Image, embedded_libvirt: tuple[Path, Any]) -> Iterator[Libvirt]:
    """The embedded driver with our domains."""
    root, connection = embedded_libvirt
    yield Libvirt(root, connection, image)
    for domain in connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()


@pytest.fixture(scope="session")
def guests(libvirt: Libvirt) -> SimpleNamespace:
    """Two running domains: "left" as QEMU's old machine, "right" as a PCI Express one."""
    left, right = libvirt.define("left"), libvirt.define("right", machine="q35")
    for guest in (left, right):
        guest.start()
        _while_here.callback(libvirt.remove, guest)
    return SimpleNamespace(left=left.wait_ready(), right=right.wait_ready())


@pytest.fixture
def untouched(guests: SimpleNamespace, vptd: Client) -> Iterator[None]:
    """A test that ends with what it began with: no port, no device, the XML of before."""
    before = [live_xml(guest) for guest in (guests.left, guests.right)]
    yield
    ports = [port["name"] for port in vptd.call("port.list")["ports"]]
    after = [live_xml(guest) for guest in (guests.left, guests.right)]
    # One test that fails should not fail all the others.
    for guest in (guests.left, guests.right):
        for plug in plugs_in(guest.domain.XMLDesc()) if guest.domain.isActive() else ():
            guest.domain.detachDeviceAlias(alias_of(plug.name), 1)
            guest.domain.setMetadata(2, None, "vpt", NAMESPACE, 1)
            guest.wait_until("[ ! -e /sys/class/net/eth0 ]", 5, "the interface to go")
    for port in ports:
        vptd.call("port.del", name=port)
    assert ports == []
    assert after == before


@pytest.fixture(scope="session")
def libvirtd(image: Image) -> Iterator[Libvirtd]:
    """The system's libvirtd, with our hook."""
    daemon = Libvirtd(image)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """A vptd with the switch sw0; the folder of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="vpt-"))
    paths = locate(folder)
    with EmbeddedDaemon(Settings(paths, keeper=False)):
        with Client(paths.control) as vptd:
            vptd.call("switch.add", name="sw0")
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def vptd(runtime: Path) -> Iterator[Client]:
    with Client(locate(runtime).control) as client:
        yield client


class _Kept:
    """The connection that all tests share. A process can open the embedded driver a few times only."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> None:
        """It stays open for the next command."""


@pytest.fixture
def vpt(
    request: pytest.FixtureRequest,
    runtime: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Vpt:
    """The command line. It means our libvirt and our vptd, unless told otherwise."""

    def run(
        command: str, vm: str, *args: str, uri: str | None = None, runtime_dir: Path = runtime
    ) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            if "/" not in vm and uri is None:
                libvirt: Libvirt = request.getfixturevalue("libvirt")
                patch.setattr("libvirt.open", lambda _uri: _Kept(libvirt.connection))
                uri = libvirt.uri
            capfd.readouterr()
            where = ["--connect", uri] if uri else []
            code = main(["--runtime-dir", str(runtime_dir), command, *where, vm, *args])
            out, err = capfd.readouterr()
        return code, out, err

    return run
