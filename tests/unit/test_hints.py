# SPDX-License-Identifier: BSD-2-Clause
"""Commands in hints do what they say where they are typed."""

from __future__ import annotations

import pytest

from vpt import hints

SYSTEM, SESSION = "qemu:///system", "qemu:///session"


@pytest.mark.parametrize(
    ("uri", "uid", "default", "says"),
    [
        (None, 0, None, "virsh start web1"),
        (SYSTEM, 0, None, "virsh start web1"),
        (SYSTEM, 1000, None, f"virsh -c {SYSTEM} start web1"),
        (SESSION, 1000, None, "virsh start web1"),
        (SESSION, 1000, SYSTEM, f"virsh -c {SESSION} start web1"),
        (SYSTEM, 1000, SYSTEM, "virsh start web1"),
        ("qemu+unix:///system?socket=/s", 0, None, "virsh -c 'qemu+unix:///system?socket=/s' start web1"),
    ],
)
def test_virsh_is_told_which_libvirt_where_it_would_ask_another(
    monkeypatch: pytest.MonkeyPatch, uri: str | None, uid: int, default: str | None, says: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    if default is not None:
        monkeypatch.setenv("LIBVIRT_DEFAULT_URI", default)
    assert hints.virsh(uri, "start", "web1") == says


@pytest.mark.parametrize(
    ("runtime", "uri", "says"),
    [
        (None, None, "vpt detach web1"),
        ("/run/vpt", SYSTEM, "vpt detach web1"),
        ("/run/b", None, "vpt --runtime-dir /run/b detach web1"),
        ("/my b", SESSION, f"vpt --runtime-dir '/my b' detach web1 --connect {SESSION}"),
        (None, "qemu+unix:///system?socket=/s", "vpt detach web1 --connect 'qemu+unix:///system?socket=/s'"),
    ],
)
def test_vpt_is_told_which_vptd_and_libvirt_where_it_would_ask_others(
    monkeypatch: pytest.MonkeyPatch, runtime: str | None, uri: str | None, says: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    assert hints.vpt("detach", "web1", runtime=runtime, uri=uri) == says


def test_a_name_with_a_space_is_one_word() -> None:
    assert hints.virsh(None, "start", "my vm") == "virsh start 'my vm'"
