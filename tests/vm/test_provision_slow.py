# SPDX-License-Identifier: BSD-2-Clause
"""Debian and a cloud image, built and booted for real: minutes under TCG, and packages from Debian's mirrors.

Not run by default: ci/test --slow, or pytest --slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cloud_image import build
from support.vptd import Vptd, vpt_json
from vpt.provision.record import Store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.needs(
        "qemu-system-x86_64",
        "qemu-img",
        "/boot/vmlinuz-*",
        "gcc",
        "make",
        "mmdebstrap",
        "mke2fs",
        "py:paramiko",
    ),
]

PATIENCE_S = 1200.0
# The image is small, and has no locales to set one.
USER_DATA = """#cloud-config
locale: false
write_files:
  - path: /root/from-user-data
    content: hello from the user
runcmd:
  - [sh, -c, "echo ran >/root/runcmd"]
"""

Vpt = Callable[..., str]


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="lab")
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def vpt(lab: Vptd) -> Iterator[Vpt]:
    def run(*arguments: str) -> str:
        argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.paths.runtime), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    for name in Store(lab.paths.runtime / "state").names():
        run("guest", "rm", name)


def test_debian_has_vpt_net_its_addresses_and_comes_back_after_a_shutdown(lab: Vptd, vpt: Vpt) -> None:
    vpt(
        "guest", "boot", "deb", "--image", "debian", "--memory", "512", "--timeout", str(PATIENCE_S),
        "--switch", "lab", "--kind", "passthrough", "--address", "10.0.9.1/24", "--disk", "1G",
    )  # fmt: skip
    script = (
        "ip -br addr show vpt0; readlink /sys/class/net/vpt0/device/driver; cat /sys/block/vdb/size; uname -n"
    )
    address, driver, sectors, name = vpt("guest", "run", "deb", "--", "sh", "-c", script).splitlines()
    assert "10.0.9.1/24" in address
    assert driver.endswith("vpt_net")
    assert (int(sectors), name) == (2 << 20, "deb")
    vpt("guest", "run", "deb", "--", "sh", "-c", "echo kept >/root/file && sync")
    vpt("guest", "stop", "deb", "--timeout", "300")
    assert "reboot: Power down" in vpt("guest", "console", "deb")
    vpt("guest", "boot", "deb", "--timeout", str(PATIENCE_S))
    assert vpt("guest", "run", "deb", "--", "cat", "/root/file") == "kept\n"
    # Its root disk is a layer over the image's.
    image = next(guest["image"] for guest in vpt_json(lab.paths.runtime, "guest", "ls")["guests"])
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.paths.runtime)]
    refused = subprocess.run(
        [*argv, "guest", "rm", image, "--image"], capture_output=True, text=True, check=False
    )
    assert "is a layer over the image" in refused.stderr


@pytest.mark.needs("/usr/lib/grub/i386-pc/boot.img", "grub-mkimage", "sfdisk")
def test_a_cloud_image_boots_from_its_disk_and_cloud_init_takes_the_seed(
    lab: Vptd, vpt: Vpt, tmp_path: Path
) -> None:
    """The user's own part and vpt's are both done; the host key is the one that was pinned."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the image's files have owners")
    disk, user_data = tmp_path / "disk.raw", tmp_path / "user-data"
    (tmp_path / "scratch").mkdir()
    build(disk, tmp_path / "scratch")
    user_data.write_text(USER_DATA)
    vpt(
        "guest", "boot", "cloud", "--image", str(disk), "--memory", "768", "--timeout", str(PATIENCE_S),
        "--user-data", str(user_data), "--switch", "lab", "--address", "10.0.9.2/24",
    )  # fmt: skip
    script = "cat /root/from-user-data; echo; cat /root/runcmd; cloud-init status --wait; cloud-id; uname -n"
    said = vpt("guest", "run", "cloud", "--", "sh", "-c", script)
    assert said.split("\n")[:2] == ["hello from the user", "ran"]
    assert "status: done" in said
    assert said.endswith("nocloud\ncloud\n")
    assert "10.0.9.2/24" in vpt("guest", "run", "cloud", "--", "ip", "addr", "show", "vpt0")
