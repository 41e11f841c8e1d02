# SPDX-License-Identifier: BSD-2-Clause
"""The guests' image: Debian's kernel as it is, and an initramfs made of busybox, a few modules and vpt_net.

Kept in the user's cache folder under a hash of everything that went into it, so it is built again exactly
when something changed: driver, tools, kernel, busybox, init script.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vpt import paths
from vpt.errors import GuestError, MissingError
from vpt.guest import _cpio
from vpt.guest._kernel import Kernel, find_kernel, module_bytes

__all__ = [
    "READY_MARK",
    "Image",
    "build_driver",
    "build_image",
    "cache_dir",
    "cache_folder",
    "driver_sources",
    "find_busybox",
    "locked",
    "need",
    "run_tool",
]

READY_MARK = b"vpt-guest-ready"
"""What the init script prints on the console when it is up."""

_MODULES = ["virtio_pci", "virtio_net", "virtio_console", "pktgen", "8021q"]
_TOOLS = ("vpt_flow", "vpt_nicstat", "vpt_ping")
_KEEP = 6
# Users do not have the system's programs on their PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_BUILD_S = 300


@dataclass(frozen=True)
class Image:
    """What a guest boots."""

    kernel: Kernel
    initrd: Path


def cache_dir() -> Path:
    """Folder for what can be made again: $XDG_CACHE_HOME/vpt, else ~/.cache/vpt."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vpt"


@dataclass(frozen=True)
class _Parts:
    """Everything that goes into an image, as files on this host."""

    kernel: Kernel
    busybox: Path
    init: Path
    modules: tuple[Path, ...]
    driver: tuple[Path, ...]
    tools: tuple[Path, ...]
    programs: tuple[Path, ...]
    """Of this host, put at the same place in the guest: dropbear and the libraries that it is linked with."""

    def key(self) -> str:
        h = hashlib.sha256(self.kernel.release.encode())
        for path in (self.busybox, self.init, *self.modules, *self.driver, *self.tools, *self.programs):
            data = path.read_bytes()
            h.update(f"\n{path.name} {len(data)}\n".encode())
            h.update(data)
        return h.hexdigest()[:24]


def need(command: str, package: str) -> str:
    """Where the command is. Raises MissingError with the package that has it."""
    path = shutil.which(command, path=_PATH)
    if path is None:
        raise MissingError(f"{command} is not installed", hint=f"apt-get install {package}")
    return path


def find_busybox() -> Path:
    """The static busybox that guests run. Raises MissingError with the package that has it."""
    path = Path(need("busybox", "busybox-static"))
    data = path.read_bytes()
    # A dynamic one names its loader; it would find none in the guest.
    if b"/ld-linux" in data[:4096]:
        raise MissingError(f"{path} is not the static one", hint="apt-get install busybox-static")
    return path


def driver_sources() -> tuple[Path, ...]:
    """All that vpt_net is built from."""
    driver = paths.guest_driver("linux")
    sources = (*sorted(driver.glob("vpt_net*.h")), *sorted(driver.glob("vpt_net_*.c")))
    return (*sources, driver / "Kbuild", paths.abi_header())


def _dropbear() -> tuple[Path, ...]:
    """The ssh server, and what the dynamic linker says that it needs."""
    binary = Path(need("dropbear", "dropbear-bin"))
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed, re.MULTILINE)
    if not libraries:
        raise GuestError(f"ldd does not say what {binary} needs: {listed.strip()[-200:]}")
    return (binary, *(Path(path) for path in libraries))


def _collect(modules: Sequence[str], *, ssh: bool) -> _Parts:
    kernel = find_kernel()
    tools = paths.guest_driver("tools")
    return _Parts(
        kernel=kernel,
        busybox=find_busybox(),
        init=Path(__file__).with_name("_init.sh"),
        modules=tuple(kernel.module_files([*_MODULES, *modules])),
        driver=driver_sources(),
        tools=tuple(tools / f"{name}.c" for name in _TOOLS),
        programs=_dropbear() if ssh else (),
    )


def run_tool(argv: list[str], what: str, timeout_s: float = _BUILD_S) -> None:
    """Run a program of this host; GuestError has the end of what it said, if it fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GuestError(f"{what} took more than {timeout_s:.0f} s") from None
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise GuestError(f"{what} failed:\n{tail}", hint=f"the command was: {' '.join(argv)}")


def build_driver(kernel: Kernel, where: Path) -> Path:
    """vpt_net.ko for that kernel, built in the folder `where`, whose path must not have spaces."""
    # The sources may lie in a read-only place, and kbuild writes beside them.
    for path in driver_sources():
        if path != paths.abi_header():
            shutil.copy(path, where)
    need("gcc", "gcc")
    argv = [need("make", "make"), "-s", "-C", str(kernel.build), f"M={where}"]
    # Type information would need pahole, which is not installed everywhere.
    options = [f"VPT_INCLUDE={paths.include_dir()}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    run_tool([*argv, *options, "modules"], "building vpt_net")
    return where / "vpt_net.ko"


def _build_tool(source: Path, where: Path) -> Path:
    binary = where / source.stem
    run_tool(
        [need("gcc", "gcc"), "-O2", "-static", "-o", str(binary), str(source)], f"building {source.name}"
    )
    return binary


def _build(parts: _Parts, where: Path) -> None:
    driver = build_driver(parts.kernel, where)
    folders = {str(parent) for path in parts.programs for parent in path.parents} - {"/"}
    names = {"bin", "dev", "lib", "lib/modules", *(name.lstrip("/") for name in folders)}
    entries = [_cpio.directory(name) for name in sorted(names)]
    entries += [_cpio.file(str(path).lstrip("/"), path.read_bytes(), 0o755) for path in parts.programs]
    # Before devtmpfs is mounted, the kernel wants a console for the first process.
    entries.append(_cpio.device("dev/console", 5, 1))
    entries.append(_cpio.file("init", parts.init.read_bytes(), 0o755))
    entries.append(_cpio.file("bin/busybox", parts.busybox.read_bytes(), 0o755))
    order = []
    for path in (*parts.modules, driver):
        name = path.name.partition(".ko")[0] + ".ko"
        entries.append(_cpio.file(f"lib/modules/{name}", module_bytes(path)))
        order.append(name)
    entries.append(_cpio.file("lib/modules/order", "".join(f"{name}\n" for name in order).encode()))
    for source in parts.tools:
        entries.append(_cpio.file(f"bin/{source.stem}", _build_tool(source, where).read_bytes(), 0o755))
    (where / "initrd.gz").write_bytes(gzip.compress(_cpio.archive(entries), compresslevel=6, mtime=0))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One builder at a time per cache folder; the others wait and find its work done."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prune(folder: Path) -> None:
    images = sorted(folder.glob("*.initrd.gz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in images[_KEEP:]:
        old.unlink()


def cache_folder(name: str) -> Path:
    """A folder in the cache, made if it is not there. MissingError: it can't be written."""
    folder = cache_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise MissingError(
            f"the cache folder {folder} can't be written: {error.strerror}",
            hint="export XDG_CACHE_HOME=/tmp/cache, or any folder that you may write to",
        ) from None
    return folder


def build_image(
    progress: Callable[[str], None] = lambda _: None,
    *,
    modules: Sequence[str] = (),
    ssh: bool = False,
    fresh: bool = False,
) -> Image:
    """The guests' image, from the cache or built now (seconds).

    modules: of the kernel, loaded beside those that every guest has
    ssh: with an ssh server, which starts in a guest that has been given an identity (see vpt.provision);
    fresh: build it, even if the cache has it.

    Raises MissingError, with the command that helps, if kernel, headers, busybox or compiler are missing;
    GuestError if something does not compile.
    """
    parts = _collect(modules, ssh=ssh)
    folder = cache_folder("guest")
    initrd = folder / f"{parts.key()}.initrd.gz"
    with locked(folder):
        if fresh or not initrd.exists():
            progress(f"building vpt_net and a guest image for Linux {parts.kernel.release}")
            # Not in the cache: kbuild can't build in a path with a space.
            with tempfile.TemporaryDirectory(prefix="vpt-build-") as scratch:
                _build(parts, Path(scratch))
                complete = initrd.with_suffix(".new")
                shutil.copyfile(Path(scratch) / "initrd.gz", complete)
                complete.replace(initrd)
        os.utime(initrd)
        _prune(folder)
    return Image(parts.kernel, initrd)
