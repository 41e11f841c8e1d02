# SPDX-License-Identifier: BSD-2-Clause
"""A cloud image as others publish them: a disk with a boot loader, Debian's own kernel, and cloud-init.

There is none to download in a test, so it is made: packages by mmdebstrap, GRUB put into the gap before the
first partition. GRUB's images know by themselves that they lie one behind the other from the first sector on.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PACKAGES = (
    "systemd-sysv", "udev", "dbus", "cloud-init", "openssh-server", "iproute2", "linux-image-cloud-amd64",
)  # fmt: skip

_SECTOR = 512
_FIRST = 2048
_GRUB = Path("/usr/lib/grub/i386-pc")
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile")
_CONFIG = """set timeout=0
menuentry Debian {
    linux /vmlinuz root=/dev/vda1 ro console=ttyS0
    initrd /initrd.img
}
"""


def build(target: Path, scratch: Path) -> Path:
    """Make the raw image `target`; a minute or two, as root."""
    tree, part, core = scratch / "tree", scratch / "part.img", scratch / "core.img"
    hooks = [
        'chroot "$1" systemctl enable systemd-networkd ssh',
        'echo "/dev/vda1 / ext4 defaults 0 1" >"$1/etc/fstab"',
        'mkdir -p "$1/boot/grub"',
        f'cp {scratch}/grub.cfg "$1/boot/grub/"',
        'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id; touch "$1/etc/machine-id"',
    ]
    (scratch / "grub.cfg").write_text(_CONFIG)
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    subprocess.run(
        [*argv, *(f"--customize-hook={hook}" for hook in hooks), "bookworm", str(tree)],
        check=True,
        timeout=580,
    )
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, part, "2G"], check=True)
    prefix = "(hd0,msdos1)/boot/grub"
    subprocess.run(["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", str(core), *_MODULES], check=True)
    boot, loader = (_GRUB / "boot.img").read_bytes(), core.read_bytes()
    assert len(loader) < (_FIRST - 1) * _SECTOR
    size = part.stat().st_size
    with target.open("wb") as disk:
        # Code up to the partition table, which sfdisk writes behind it.
        disk.write(boot[:440])
        disk.truncate(_FIRST * _SECTOR + size)
    table = f"label: dos\nstart={_FIRST}, type=83, bootable\n"
    subprocess.run(["sfdisk", "-q", target], input=table, text=True, check=True)
    with target.open("r+b") as disk:
        disk.seek(_SECTOR)
        disk.write(loader)
    argv = ["dd", f"if={part}", f"of={target}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]
    subprocess.run(argv, check=True)
    os.sync()
    return target
