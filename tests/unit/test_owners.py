# SPDX-License-Identifier: BSD-2-Clause
"""Whom a port was made for, as text and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vpt.daemon.owners import PATTERN, domain_of, of_domain, of_qmp


@pytest.mark.parametrize("libvirt", ["system", "session-1000", "embed-/srv/a:b"])
def test_what_is_written_of_a_domain_is_read_again(libvirt: str) -> None:
    owner = of_domain(libvirt, "00000000-0000-0000-0000-000000000001")
    assert re.match(PATTERN, owner)
    assert domain_of(owner) == (libvirt, "00000000-0000-0000-0000-000000000001")


@pytest.mark.parametrize("owner", [None, "", "qmp:/run/a:b", "libvirt:", "libvirt:1", "libvirts:system:1"])
def test_what_names_no_domain_is_none(owner: str | None) -> None:
    assert domain_of(owner) is None


def test_a_qemu_is_known_by_its_socket_whatever_path_leads_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert of_qmp(tmp_path / "link/vm.qmp") == f"qmp:{tmp_path.resolve()}/vm.qmp"


def test_a_path_may_be_as_long_as_the_system_lets_it_be() -> None:
    assert re.match(PATTERN, "qmp:/" + "x" * 4094)
