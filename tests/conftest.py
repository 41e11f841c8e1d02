# SPDX-License-Identifier: BSD-2-Clause
"""What all tests share: naming what is missing, and counting what must not leak."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.leaks import open_fds, shared_mappings
from support.waiting import until

#: Not more patience: what a test that failed holds, in its traceback, is not closed however long one waits.
_LEAK_S = 5.0
_LIGHT = ("unit", "proto", "hostile")  # as in ci/test
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _is_there(thing: str) -> bool:
    if thing.startswith("py:"):
        spec = importlib.util.find_spec(thing.removeprefix("py:"))
        # A folder of tests may have a module's name, and is none.
        return spec is not None and spec.origin is not None
    if "*" in thing:
        return any(Path("/").glob(thing.lstrip("/")))
    if "/" in thing:
        return os.access(thing, os.R_OK)
    return shutil.which(thing, path=_PATH) is not None


def _need(*things: str) -> None:
    absent = [thing for thing in things if not _is_there(thing)]
    if not absent:
        return
    message = f"missing: {', '.join(absent)} (ci/test --setup-only installs what the tests need)"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture
def need() -> Callable[..., None]:
    """need("qemu-system-x86_64", "/dev/net/tun", "/boot/vmlinuz-*-cloud-amd64", "py:scapy").

    Skips the test and names what is missing; with CI=true it fails instead, because CI installs ci/packages
    and pyproject.toml's extras, and a test that never runs guards nothing. For what no package
    provides (KVM, a capability), call pytest.skip() yourself.
    """
    return _need


def pytest_addoption(parser: pytest.Parser) -> None:
    """--slow: also what takes minutes, and packages from Debian's mirrors."""
    parser.addoption("--slow", action="store_true", help="also tests marked slow")


def _runs_alone(item: pytest.Item) -> bool:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return folder not in _LIGHT or any(item.get_closest_marker(mark) for mark in ("vm", "native"))


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what must not run beside others. Leave out what is slow; pytest says how many those were."""
    for item in filter(_runs_alone, items):
        item.add_marker("alone")
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same as a mark: @pytest.mark.needs("cpio")."""
    for mark in item.iter_markers("needs"):
        _need(*mark.args)


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves file descriptors or shared mappings behind. Ask for it first."""
    gc.collect()
    fds, maps = open_fds(), shared_mappings()

    def leaked() -> list[object]:
        return [*(open_fds().items() - fds.items()), *(shared_mappings() - maps)]

    yield
    gc.collect()
    until(lambda: not leaked(), lambda: f"what is left open to be closed: {leaked()}", _LEAK_S)


@pytest.fixture(scope="session")
def embedded_libvirt() -> Iterator[tuple[Path, Any]]:
    """libvirt's embedded driver: its root folder, a connection. A process can never have another one."""
    _need("py:libvirt", "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so")
    from support import libvirt as libvirt_support
    from vpt.bench.scenarios._libvirtd import QEMU_CONF
    from vpt.libvirt_plugin._connection import open_libvirt

    if os.geteuid() != 0:
        pytest.skip("needs root: the embedded driver's QEMU must open our files")
    libvirt_support.need_user()
    # Not below pytest's own folder: sockets in it must fit an address.
    root = Path(tempfile.mkdtemp(prefix="vpt-lv-"))
    (root / "etc").mkdir()
    (root / "etc" / "qemu.conf").write_text(QEMU_CONF.format(root=root))
    libvirt_support.share_capabilities(root / "cache/qemu/capabilities")
    with open_libvirt(f"qemu:///embed?root={root}") as connection:
        yield root, connection
    shutil.rmtree(root, ignore_errors=True)
