# SPDX-License-Identifier: BSD-2-Clause
"""A Debian root disk: packages by mmdebstrap, modules of the kernel that guests boot, vpt_net among them.

The kernel is not on the disk: QEMU is given the one that vpt's guests boot, and an initramfs that mounts the
disk. So the disk needs no boot loader, and vpt_net always fits the kernel that runs.
"""

from __future__ import annotations

import difflib
import gzip
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vpt.errors import UsageError
from vpt.guest import READY_MARK, _cpio
from vpt.guest._image import build_driver, driver_sources, find_busybox, need, run_tool
from vpt.guest._kernel import Kernel, find_kernel, module_bytes
from vpt.provision.images import BootImage, Progress, cached, keep

__all__ = ["Debian", "build_debian"]

_INIT = Path(__file__).with_name("_switch_root.sh")
_PACKAGES = ("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "iputils-ping", "openssh-server")
_BOOT_MODULES = ["virtio_pci", "virtio_blk", "ext4"]
_BOOTSTRAP_S = 1800
_SUITES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
_DISTRO_INFO = Path("/usr/share/distro-info/debian.csv")
_UNIT = f"""[Unit]
Description=Say on the console that ssh answers
Requires=ssh.service
After=ssh.service systemd-networkd.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo {READY_MARK.decode()} >/dev/ttyS0'
[Install]
WantedBy=multi-user.target
"""
# On a busy host an emulated processor takes longer for udev's first round, or for sshd, than the usual 90 s.
_PATIENCE = """[Manager]
DefaultTimeoutStartSec=15min
DefaultDeviceTimeoutSec=15min
"""


@dataclass(frozen=True)
class Debian:
    """suite: such as bookworm. packages: beside what a guest needs. gib: size of the disk (it is sparse)."""

    suite: str = "bookworm"
    packages: tuple[str, ...] = ()
    gib: int = 4
    mirror: str | None = None


def build_debian(debian: Debian, progress: Progress = lambda _: None, *, fresh: bool = False) -> BootImage:
    """A minute or two, and network; at once if the cache has it.

    As root, or as a user with fakeroot and user namespaces (mmdebstrap's mode unshare).
    UsageError: Debian's mirrors have no such release.
    """
    if debian.mirror is None:
        _check_suite(debian.suite)
    kernel = find_kernel()
    parts = [find_busybox(), _INIT, *driver_sources(), *kernel.module_files(_BOOT_MODULES)]
    words = [
        debian.suite,
        *sorted(debian.packages),
        str(debian.gib),
        debian.mirror or "",
        kernel.release,
        _UNIT,
        _PATIENCE,
    ]
    inputs = [word.encode() for word in words] + [path.read_bytes() for path in parts]
    name, found = cached("debian", inputs)
    if found is not None and not fresh:
        return found
    builder = _Builder(name, debian, kernel, progress)
    return keep(name, builder.build, fresh=fresh)


def _check_suite(suite: str) -> None:
    """Before mmdebstrap fails with no more than that apt-get did. What another mirror has, nobody knows."""
    names = [*_SUITES, *_released()]
    if suite not in names:
        close = difflib.get_close_matches(suite, names, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"Debian has no release {suite!r}",
            hint=f"{guess}those known: {', '.join(_SUITES)}; of another mirror: --mirror URL",
        )


def _released() -> list[str]:
    """What the package distro-info-data knows beside: newer ones, and old ones."""
    try:
        lines = _DISTRO_INFO.read_text().splitlines()
    except OSError:
        return []
    column = lines[0].split(",").index("series")
    return [line.split(",")[column] for line in reversed(lines[1:])]


class _Builder:
    def __init__(self, name: str, debian: Debian, kernel: Kernel, progress: Progress) -> None:
        self._name = name
        self._debian = debian
        self._kernel = kernel
        self._progress = progress

    def build(self, folder: Path) -> BootImage:
        # Not in the cache: kbuild can't build in a path with a space.
        with tempfile.TemporaryDirectory(prefix="vpt-debian-") as text:
            scratch = Path(text)
            tree = self._bootstrap(scratch)
            self._progress("making the root disk")
            disk = self._disk(scratch, tree, folder)
        (folder / "initrd.gz").write_bytes(_initrd(self._kernel))
        words = [f"Debian {self._debian.suite}", f"Linux {self._kernel.release}", *self._debian.packages]
        return BootImage(
            self._name,
            "debian",
            ", ".join(words),
            disk=disk,
            kernel=self._kernel.vmlinuz,
            initrd=folder / "initrd.gz",
        )

    def _bootstrap(self, scratch: Path) -> Path:
        """The root file system as a tar archive, which keeps owners whoever builds."""
        mmdebstrap = need("mmdebstrap", "mmdebstrap")
        self._progress("building vpt_net")
        extra = self._extra(scratch)
        packages = ",".join([*_PACKAGES, *self._debian.packages])
        tar = scratch / "root.tar"
        argv = [mmdebstrap, "--variant=minbase", f"--include={packages}", "--quiet"]
        argv += [
            f'--customize-hook=tar -C {shlex.quote(str(extra))} -c . | tar -C "$1" -x --no-same-owner',
            f'--customize-hook=chroot "$1" depmod {shlex.quote(self._kernel.release)}',
            # Each guest has a host key of its own, and no other.
            '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id',
            '--customize-hook=chroot "$1" systemctl enable systemd-networkd ssh vpt-ready',
            # Waiting for ports whose other end may not be there yet; looking for logical volumes.
            '--customize-hook=chroot "$1" systemctl mask systemd-networkd-wait-online e2scrub_reap',
            self._debian.suite,
            str(tar),
        ]
        if self._debian.mirror:
            argv.append(self._debian.mirror)
        self._progress(f"installing Debian {self._debian.suite} with {packages}")
        run_tool(argv, "mmdebstrap", _BOOTSTRAP_S)
        return tar

    def _extra(self, scratch: Path) -> Path:
        """What is put over the packages' files. Readable by the user that mmdebstrap may become."""
        scratch.chmod(0o755)
        extra, build = scratch / "extra", scratch / "build"
        build.mkdir()
        modules = extra / "usr/lib/modules" / self._kernel.release
        links = shutil.ignore_patterns("build", "source")
        shutil.copytree(self._kernel.modules, modules, ignore=links)
        (modules / "updates").mkdir(exist_ok=True)
        shutil.copy(build_driver(self._kernel, build), modules / "updates")
        units = extra / "etc/systemd/system"
        units.mkdir(parents=True)
        (units / "vpt-ready.service").write_text(_UNIT)
        manager = extra / "etc/systemd/system.conf.d"
        manager.mkdir()
        (manager / "patience.conf").write_text(_PATIENCE)
        (extra / "etc/fstab").write_text("/dev/vda / ext4 defaults,discard 0 1\n")
        return extra

    def _disk(self, scratch: Path, tar: Path, folder: Path) -> Path:
        """An ext4 file system of that tree, as qcow2."""
        raw, tree, disk = scratch / "root.img", scratch / "tree", folder / "root.qcow2"
        mke2fs = need("mke2fs", "e2fsprogs")
        make = (
            "mkdir {tree} && tar -C {tree} -xf {tar} && {mke2fs} -q -F -t ext4 -L root -d {tree} {raw} {gib}G"
        )
        words = {"tree": tree, "tar": tar, "mke2fs": mke2fs, "raw": raw}
        script = make.format(gib=self._debian.gib, **{key: shlex.quote(str(v)) for key, v in words.items()})
        # Files keep their owners: as root they are, otherwise under fakeroot they seem to.
        as_root = [] if os.geteuid() == 0 else [need("fakeroot", "fakeroot")]
        run_tool([*as_root, "sh", "-c", script], "making the file system", _BOOTSTRAP_S)
        argv = [need("qemu-img", "qemu-utils"), "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
        run_tool(argv, "qemu-img", _BOOTSTRAP_S)
        return disk


def _initrd(kernel: Kernel) -> bytes:
    entries = [_cpio.directory(name) for name in ("bin", "dev", "lib", "lib/modules")]
    entries.append(_cpio.device("dev/console", 5, 1))
    entries.append(_cpio.file("init", _INIT.read_bytes(), 0o755))
    entries.append(_cpio.file("bin/busybox", find_busybox().read_bytes(), 0o755))
    order = []
    for path in kernel.module_files(_BOOT_MODULES):
        name = path.name.partition(".ko")[0] + ".ko"
        entries.append(_cpio.file(f"lib/modules/{name}", module_bytes(path)))
        order.append(name)
    entries.append(_cpio.file("lib/modules/order", "".join(f"{name}\n" for name in order).encode()))
    return gzip.compress(_cpio.archive(entries), compresslevel=6, mtime=0)
