# SPDX-License-Identifier: BSD-2-Clause
"""Who a guest is: host key, the key that opens it, its name, the names and addresses of its interfaces.

Made on this host before the guest first runs, so that its host key is known and never learned over the
network. It reaches the guest as a second initramfs archive behind the first one (tiny, debian), or as a
NoCloud seed (cloud images, see seed.py).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vpt.errors import GuestError, MissingError, UsageError
from vpt.guest import _cpio
from vpt.guest._image import need
from vpt.qemu import UserNet

__all__ = ["Identity", "Interface", "KeyPair", "debian_archive", "new_key", "read_key", "tiny_archive"]

MANAGEMENT = "mgmt"
"""Name of the interface by which this host logs in."""


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key as ssh writes it: the private one a file, the public one a line without comment."""

    private: bytes
    public: str


@dataclass(frozen=True)
class Interface:
    """What the guest calls the interface with this address, and what it gives it."""

    mac: str
    name: str
    addresses: tuple[str, ...] = ()
    gateway: str | None = None


@dataclass(frozen=True)
class Identity:
    """login: lines for authorized_keys."""

    name: str
    host_key: KeyPair
    login: tuple[str, ...]
    interfaces: tuple[Interface, ...]
    management: UserNet

    def all_interfaces(self) -> Iterator[Interface]:
        """Those on vpt ports, then the management one."""
        yield from self.interfaces
        net = self.management
        yield Interface(net.mac, MANAGEMENT, (f"{net.address}/24",), net.gateway if net.internet else None)


def crypto() -> Any:
    """The library `cryptography`, which comes with paramiko."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingError("paramiko is not installed", hint="pip install 'vpt[guest]'") from None
    return serialization, ed25519


def new_key() -> KeyPair:
    """A new ed25519 key."""
    serialization, ed25519 = crypto()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private, public.decode())


def read_key(path: Path) -> str:
    """The public line that belongs to the private key in `path`, which may be given as its .pub too."""
    public = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    try:
        line = public.read_text(errors="replace").strip()
    except OSError as error:
        there = path.exists()
        raise UsageError(
            f"no public key in {public}: {error.strerror}",
            hint=f"ssh-keygen -y -f {path} > {public}" if there else "leave the key out, and one is made",
        ) from None
    if len(line.split()) < 2 or "\n" in line:
        raise UsageError(f"{public} is no public ssh key", hint="it is one line: ssh-ed25519 AAAA... comment")
    return line


def _dropbear_key(key: KeyPair) -> bytes:
    """The host key in the form that dropbear reads."""
    convert = need("dropbearconvert", "dropbear-bin")
    with tempfile.TemporaryDirectory(prefix="vpt-key-") as folder:
        source, target = Path(folder) / "openssh", Path(folder) / "dropbear"
        source.write_bytes(key.private)
        source.chmod(0o600)
        argv = [convert, "openssh", "dropbear", str(source), str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
        if done.returncode:
            raise GuestError(f"dropbearconvert failed: {done.stderr.strip()[-300:]}")
        return target.read_bytes()


# ---- as initramfs archives ----


@dataclass(frozen=True)
class _File:
    path: str
    data: str | bytes
    mode: int = 0o644


def _archive(files: Iterable[_File], private: Iterable[str] = ()) -> bytes:
    """The files with the folders that they need; `private` ones are for root alone."""
    files = list(files)
    folders = {str(parent) for file in files for parent in PurePosixPath(file.path).parents} - {"."}
    closed = set(private)
    entries = [_cpio.directory(name, 0o700 if name in closed else 0o755) for name in sorted(folders)]
    for file in files:
        data = file.data.encode() if isinstance(file.data, str) else file.data
        entries.append(_cpio.file(file.path, data, file.mode))
    # Behind a compressed archive, whose length may be any, the next one begins at a multiple of 4.
    return _cpio.archive(entries)


def _keys(identity: Identity) -> str:
    return "".join(f"{line}\n" for line in identity.login)


def tiny_archive(identity: Identity) -> bytes:
    """What _init.sh looks for."""
    net = "".join(
        f"{nic.mac} {nic.name} {nic.gateway or '-'} {' '.join(nic.addresses)}".rstrip() + "\n"
        for nic in identity.all_interfaces()
    )
    files = [
        _File("etc/dropbear/host_key", _dropbear_key(identity.host_key), 0o600),
        _File("etc/group", "root:x:0:\n"),
        _File("etc/hostname", f"{identity.name}\n"),
        _File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        _File("etc/shells", "/bin/sh\n"),
        _File("etc/vpt/net", net),
        _File("root/.ssh/authorized_keys", _keys(identity), 0o600),
    ]
    return _archive(files, private=["root", "root/.ssh"])


def debian_archive(identity: Identity) -> bytes:
    """What the debian image's initramfs puts over its root: everything below overlay/."""
    files = [
        _File("etc/hostname", f"{identity.name}\n"),
        _File("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {identity.name}\n"),
        _File("etc/ssh/ssh_host_ed25519_key", identity.host_key.private, 0o600),
        _File("etc/ssh/ssh_host_ed25519_key.pub", f"{identity.host_key.public}\n"),
        _File("root/.ssh/authorized_keys", _keys(identity), 0o600),
    ]
    if identity.management.internet:
        files.append(_File("etc/resolv.conf", f"nameserver {identity.management.dns}\n"))
    for number, nic in enumerate(identity.all_interfaces()):
        base = f"etc/systemd/network/10-vpt-{number}"
        match = f"[Match]\nMACAddress={nic.mac}\n\n"
        files.append(_File(f"{base}.link", f"{match}[Link]\nName={nic.name}\n"))
        files.append(_File(f"{base}.network", match + _networkd(nic)))
    overlay = [_File(f"overlay/{file.path}", file.data, file.mode) for file in files]
    return _archive(overlay, private=["overlay/root", "overlay/root/.ssh"])


def _networkd(nic: Interface) -> str:
    lines = ["[Network]", "IPv6AcceptRA=no", *(f"Address={address}" for address in nic.addresses)]
    if not nic.addresses:
        lines.append("LinkLocalAddressing=ipv6")
    if nic.gateway:
        lines.append(f"Gateway={nic.gateway}")
    return "\n".join(lines) + "\n"
