# SPDX-License-Identifier: BSD-2-Clause
"""Guests without a guest: archives, which kernel, which modules, what is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vpt.errors import GuestError, MissingError
from vpt.guest import Finished, cache_dir, find_kernel
from vpt.guest import _cpio as cpio
from vpt.guest._flows import percentile


def test_archive_is_what_cpio_reads(tmp_path, need):
    need("cpio")
    data = cpio.archive(
        [
            cpio.directory("a"),
            cpio.file("a/odd", b"12345", 0o755),
            cpio.file("a/empty", b""),
            cpio.device("console", 5, 1),
        ]
    )
    subprocess.run(["cpio", "-id", "--quiet", "a", "a/*"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "a/odd").read_bytes() == b"12345"
    assert (tmp_path / "a/odd").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/empty").read_bytes() == b""
    listing = subprocess.run(["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True).stdout
    assert b"5,   1" in listing


def test_same_content_gives_the_same_archive():
    entries = [cpio.directory("a"), cpio.file("a/b", b"x")]
    assert cpio.archive(entries) == cpio.archive(entries)


def add_kernel(root: Path, release: str, *, modules: str | None = "", headers: bool = True) -> None:
    for folder in ("boot", "lib/modules", "usr/src"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").touch()
    if modules is not None:
        where = root / "lib/modules" / release
        where.mkdir()
        (where / "modules.dep").write_text(modules)
        (where / "modules.builtin").write_text("kernel/drivers/virtio/virtio_ring.ko\n")
    if headers:
        where = root / "usr/src" / f"linux-headers-{release}"
        where.mkdir()
        (where / "Makefile").touch()


def test_the_newest_cloud_kernel_that_is_complete_is_taken(tmp_path):
    add_kernel(tmp_path, "6.1.0-9-cloud-amd64")
    add_kernel(tmp_path, "6.1.0-10-cloud-amd64")
    add_kernel(tmp_path, "6.1.0-11-cloud-amd64", headers=False)
    add_kernel(tmp_path, "6.12.3-amd64")
    assert find_kernel(tmp_path).release == "6.1.0-10-cloud-amd64"


@pytest.mark.parametrize(
    ("what", "words"),
    [({"headers": False}, "lacks its headers"), ({"modules": None}, "lacks its modules")],
)
def test_what_a_kernel_lacks_is_said_with_the_command_that_helps(tmp_path, what, words):
    add_kernel(tmp_path, "6.1.0-9-cloud-amd64", **what)
    with pytest.raises(MissingError, match=words) as raised:
        find_kernel(tmp_path)
    assert raised.value.exit_code == 3
    assert "apt-get install" in raised.value.hint


def test_modules_come_after_what_they_need_and_builtin_ones_not_at_all(tmp_path):
    deps = """\
kernel/net/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/failover.ko
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/failover.ko \
kernel/drivers/virtio/virtio.ko.xz
"""
    add_kernel(tmp_path, "6.1.0-9-cloud-amd64", modules=deps)
    kernel = find_kernel(tmp_path)
    names = [path.name for path in kernel.module_files(["virtio-net", "virtio_ring"])]
    assert names == ["virtio.ko.xz", "failover.ko", "net_failover.ko", "virtio_net.ko"]
    with pytest.raises(MissingError, match="no module nonesuch"):
        kernel.module_files(["nonesuch"])


def test_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/vpt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache_dir() == Path("/h/.cache/vpt")


@pytest.mark.parametrize("output", ["", "hello", "[1]", "{"])
def test_output_that_is_no_object_is_an_error_that_shows_it(output):
    with pytest.raises(GuestError):
        Finished(0, output).json()
    assert Finished(0, 'noise\n{"a": 1}\n').json() == {"a": 1}


def test_percentile_is_a_value_that_occurred():
    values = tuple(float(i) for i in range(1, 101))
    assert percentile(values, 99) == 99.0
    assert percentile((5.0,), 99) == 5.0
    assert percentile((), 99) is None
