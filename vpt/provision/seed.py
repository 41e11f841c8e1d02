# SPDX-License-Identifier: BSD-2-Clause
"""A NoCloud seed for cloud-init: who the guest is, as a CD with the label that cloud-init looks for.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html: a file system labelled CIDATA
with the files user-data, meta-data and network-config. The user's own user-data comes first and wins; ours is
a second part that is merged into it: the host key, the key that opens the guest, and the sign that it is up.
"""

from __future__ import annotations

import io
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import yaml

from vpt.errors import MissingError, UsageError
from vpt.guest import READY_MARK
from vpt.provision.identity import Identity

__all__ = ["meta_data", "network_config", "seed_iso", "user_data"]

# What a user's part must begin with, and the type that cloud-init knows it by.
_TYPES = {
    "#cloud-config": "cloud-config",
    "#!": "x-shellscript",
    "#cloud-boothook": "cloud-boothook",
    "#include": "x-include-url",
    "## template: jinja": "jinja2",
}
# Lists are joined; what the user has set stays.
_MERGE = "list(append)+dict(no_replace,recurse_list)+str()"


def meta_data(identity: Identity, instance: str) -> str:
    """instance: changes exactly when cloud-init is to do again what it does once per machine."""
    return _yaml({"instance-id": instance, "local-hostname": identity.name})


def network_config(identity: Identity) -> str:
    """Version 2: each interface is found by its address, and named."""
    ethernets: dict[str, Any] = {}
    for nic in identity.all_interfaces():
        entry: dict[str, Any] = {"match": {"macaddress": nic.mac}, "set-name": nic.name, "dhcp4": False}
        if nic.addresses:
            entry["addresses"] = list(nic.addresses)
        if nic.gateway:
            entry["routes"] = [{"to": "::/0" if ":" in nic.gateway else "0.0.0.0/0", "via": nic.gateway}]
        if nic.name == "mgmt" and identity.management.internet:
            entry["nameservers"] = {"addresses": [identity.management.dns]}
        ethernets[nic.name] = entry
    return _yaml({"version": 2, "ethernets": ethernets})


def user_data(identity: Identity, users: bytes | None) -> bytes:
    """Both parts as one MIME message. UsageError: the user's is of no kind that cloud-init knows."""
    ours = {
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": identity.host_key.private.decode(),
            "ed25519_public": identity.host_key.public,
        },
        "disable_root": False,
        "ssh_authorized_keys": list(identity.login),
        # After everything else of the first boot; later boots are announced by a unit of their own.
        "write_files": [
            {"path": "/etc/systemd/system/vpt-ready.service", "content": _READY_UNIT},
        ],
        "runcmd": [["systemctl", "daemon-reload"], ["systemctl", "enable", "vpt-ready.service"], _SAY_READY],
    }
    message = MIMEMultipart()
    if users is not None:
        message.attach(_part(users))
    part = MIMEText("#cloud-config\n" + _yaml(ours), "cloud-config", "utf-8")
    part.add_header("Merge-Type", _MERGE)
    message.attach(part)
    return message.as_bytes()


_SAY_READY = ["sh", "-c", f"echo {READY_MARK.decode()} >/dev/ttyS0"]
_READY_UNIT = f"""[Unit]
After=ssh.service sshd.service network.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo {READY_MARK.decode()} >/dev/ttyS0'
[Install]
WantedBy=multi-user.target
"""


def _part(users: bytes) -> MIMEText:
    try:
        text = users.decode()
    except UnicodeDecodeError:
        raise UsageError(
            "the user-data is no UTF-8 text", hint="it begins with #cloud-config, or #!"
        ) from None
    kind = next((kind for start, kind in _TYPES.items() if text.startswith(start)), None)
    if kind is None:
        first = text.splitlines()[0][:60] if text.strip() else "nothing"
        raise UsageError(
            f"cloud-init would not know what the user-data is: it begins with {first!r}",
            hint=f"its first line begins with one of: {', '.join(_TYPES)}",
        )
    return MIMEText(text, kind, "utf-8")


def _yaml(data: object) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=False, width=1000)
    return text


def seed_iso(files: dict[str, bytes]) -> bytes:
    """A CD labelled cidata with these files at its top, their names by Rock Ridge and Joliet."""
    try:
        import pycdlib
    except ImportError:
        raise MissingError("pycdlib is not installed", hint="pip install 'vpt[guest]'") from None
    iso = pycdlib.PyCdlib()
    iso.new(joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, data) in enumerate(files.items()):
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
