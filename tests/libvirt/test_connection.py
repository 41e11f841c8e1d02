# SPDX-License-Identifier: BSD-2-Clause
"""What libvirt refuses, in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest

from support.libvirt import NEEDS
from support.libvirtd import Libvirtd
from vpt.errors import ConflictError, GuestError, MissingError
from vpt.guest import Image
from vpt.libvirt_plugin._connection import binding, translate

URI = "qemu+unix:///system?socket=/s"

REFUSED = {
    "no such domain": (
        "VIR_ERR_NO_DOMAIN", "Domain not found", ConflictError, f"virsh -c '{URI}' list --all",
    ),
    "not allowed": ("VIR_ERR_ACCESS_DENIED", "access denied", MissingError, "run as root"),
    "no permission for the socket": (
        "VIR_ERR_INTERNAL_ERROR", "Failed to connect to '/p': Permission denied", MissingError,
        "start vptd with --group GROUP",
    ),
    "no log daemon": (
        "VIR_ERR_SYSTEM_ERROR",
        "Failed to connect socket to '/run/libvirt/virtlogd-sock': No such file or directory",
        MissingError, "systemctl start virtlogd",
    ),
    "no slot": ("VIR_ERR_INTERNAL_ERROR", "No more available PCI slots", ConflictError, "--config"),
    "anything": (
        "VIR_ERR_OPERATION_FAILED", "it burns", GuestError, f"virsh -c '{URI}' domstate --reason web1",
    ),
}  # fmt: skip


def refused(code: str, text: str) -> Any:
    """As the binding raises it."""
    lib = binding()
    error = lib.libvirtError(text)
    # It would say what this process was refused last.
    error.args = (text,)
    error.err = (getattr(lib, code), 0, text, 0, "", "", "", 0, 0)
    return error


@pytest.mark.needs("py:libvirt")
@pytest.mark.parametrize(("code", "text", "kind", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_libvirt_refuses_comes_with_what_helps(code: str, text: str, kind: type, hint: str) -> None:
    error = translate(refused(code, text), "web1", "start it", URI)
    assert type(error) is kind
    assert hint in str(error.hint)
    assert "web1" in error.message or text in error.message


@pytest.mark.vm
@pytest.mark.timeout(240)
@pytest.mark.needs(*NEEDS, "libvirtd", "unshare")
def test_a_domain_whose_log_daemon_is_not_there_says_how_to_start_it(image: Image) -> None:
    """libvirt's default; what it says then is what the hint is known by."""
    daemon = Libvirtd(image)
    lib = binding()
    conf = daemon.root / "etc/libvirt/qemu.conf"
    text = conf.read_text()
    conf.write_text(text.replace('stdio_handler = "file"', 'stdio_handler = "logd"'))
    assert conf.read_text() != text
    try:
        daemon.start()
        guest = daemon.libvirt.define("logged")
        with pytest.raises(lib.libvirtError) as caught:
            guest.domain.create()
        error = translate(caught.value, "logged", "start it", daemon.uri)
        assert isinstance(error, MissingError), error
        assert "systemctl start virtlogd" in str(error.hint)
    finally:
        daemon.close()
