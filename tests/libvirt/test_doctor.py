# SPDX-License-Identifier: BSD-2-Clause
"""`vpt doctor` and a real libvirtd: its version, this user's rights, what the domains there would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.libvirt import NEEDS
from support.libvirtd import Libvirtd
from vpt.daemon.runtime import locate
from vpt.doctor import _libvirt

pytestmark = [pytest.mark.vm, pytest.mark.needs(*NEEDS, "libvirtd", "unshare")]


def test_domains_that_run_are_asked_what_they_would_take(libvirtd: Libvirtd, tmp_path: Path) -> None:
    guests = [
        libvirtd.libvirt.define(name, shared=name == "shared") for name in ("shared", "private", "stopped")
    ]
    try:
        for guest in guests[:2]:
            guest.domain.create()
        first, *rest = _libvirt.looked_at(locate(tmp_path), "libvirt system", libvirtd.uri)
    finally:
        for guest in guests:
            libvirtd.libvirt.remove(guest)
    assert "with QEMU" in first.what
    assert "2 of 3 domains run" in first.what
    found = {check.name: check for check in rest}
    assert set(found) == {"domain shared", "domain private"}
    assert found["domain shared"].verdict == "ok"
    assert found["domain private"].verdict == "note"
    assert "no vhost-user port: the running domain's memory is not shared" in found["domain private"].what
    assert "attach with --config and restart the domain" in found["domain private"].fix


def test_a_libvirt_that_is_not_there_is_a_note(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/nobody"
    (found,) = _libvirt.looked_at(locate(tmp_path), "libvirt system", uri)
    assert (found.verdict, "nobody answers" in found.what) == ("note", True)
    assert "systemctl start libvirtd" in found.fix
