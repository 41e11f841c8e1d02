# SPDX-License-Identifier: BSD-2-Clause
"""Images that guests boot, and the cache that keeps them under a hash of all that went into them.

tiny     an initramfs of busybox, dropbear, a few modules and vpt_net; runs from memory
debian   a root disk made by mmdebstrap, with sshd, this host's kernel's modules and vpt_net
cloud    somebody else's disk, copied into the cache, for cloud-init
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vpt.errors import ConflictError, GuestError, NotFoundError, UsageError, VptError
from vpt.guest import build_image
from vpt.guest._image import cache_folder, locked, need, run_tool

__all__ = ["BootImage", "Progress", "build_cloud", "build_tiny", "cached", "find", "keep", "listed", "remove"]

Progress = Callable[[str], None]
Kind = Literal["tiny", "debian", "cloud"]

_CHUNK = 1 << 20
_SECTOR = 512
_CONVERT_S = 1800
_KEEP_TINY = 6


@dataclass(frozen=True)
class BootImage:
    """What a guest boots.

    name:   of the cache entry: the kind and a part of the hash
    disk:   qcow2, the backing file of each guest's own; none: it runs from memory
    kernel: none: the disk's boot loader brings it
    """

    name: str
    kind: Kind
    source: str
    disk: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    user_data: Path | None = None
    created: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Bytes that it takes in the cache."""
        files = [path for path in (_folder() / self.name).glob("*") if path.is_file()]
        return sum(path.stat().st_blocks * 512 for path in files)


def _folder() -> Path:
    return cache_folder("images")


# ---- the cache ----


def cached(kind: Kind, inputs: Iterable[bytes]) -> tuple[str, BootImage | None]:
    """The name that an image made of `inputs` has, and the image if the cache has it."""
    digest = hashlib.sha256()
    for data in inputs:
        digest.update(f"{len(data)}\n".encode() + data)
    name = f"{kind}-{digest.hexdigest()[:12]}"
    return name, _load(_folder() / name)


def keep(name: str, make: Callable[[Path], BootImage], *, fresh: bool) -> BootImage:
    """The image `name`, made in a folder by `make` unless it is there. One builder at a time; all or nothing.

    fresh: make it even if it is there. ConflictError: a guest's root disk is a layer over the one that is.
    """
    folder = _folder()
    final = folder / name
    with locked(folder):
        found = _load(final)
        if found is not None and not fresh:
            return found
        scratch = folder / f".{name}.{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            image = make(scratch)
            (scratch / "image.json").write_text(_dump(image, scratch))
            if final.exists():
                _require_unused(name)
                shutil.rmtree(final)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        made = _load(final)
        assert made is not None
        return made


def _dump(image: BootImage, folder: Path) -> str:
    """Paths in its own folder are kept relative: the folder is moved when it is complete."""
    data = {key: _relative(value, folder) for key, value in asdict(image).items()}
    return json.dumps(data, indent=2)


def _relative(value: Any, folder: Path) -> Any:
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(folder)) if value.is_relative_to(folder) else str(value)


def _load(folder: Path) -> BootImage | None:
    try:
        data = json.loads((folder / "image.json").read_text())
        for key in ("disk", "kernel", "initrd", "user_data"):
            data[key] = folder / data[key] if data[key] is not None else None
        image = BootImage(**data)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    needed = (image.disk, image.kernel, image.initrd, image.user_data)
    return image if all(path is None or path.exists() for path in needed) else None


def listed() -> list[BootImage]:
    """What the cache has, newest first."""
    found = [image for path in _folder().iterdir() if (image := _load(path)) is not None]
    return sorted(found, key=lambda image: image.created, reverse=True)


def find(name: str) -> BootImage:
    """By its name, or the beginning of it that only one has."""
    found = [image for image in listed() if image.name.startswith(name)]
    exact = [image for image in found if image.name == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise UsageError(
            f"{len(found)} images begin with {name!r}", hint=f"such as {found[0].name}; vpt guest ls --images"
        )
    raise NotFoundError(
        f"there is no image {name!r}",
        hint="tiny, debian, a path with a / in it, or one of: vpt guest ls --images",
    )


def remove(name: str) -> BootImage:
    """Take an image out of the cache. ConflictError: a guest's root disk needs it."""
    with locked(_folder()):
        image = find(name)
        _require_unused(image.name)
        shutil.rmtree(_folder() / image.name)
    return image


# A guest's root disk is a layer over the image's: who has one says so in the image's folder.


def hold(image: BootImage, guest: Path) -> None:
    """Note that the guest in that folder needs the image."""
    users = _folder() / image.name / "users"
    users.mkdir(exist_ok=True)
    (users / hashlib.sha256(str(guest).encode()).hexdigest()[:16]).write_text(str(guest))


def _require_unused(name: str) -> None:
    users = _folder() / name / "users"
    for note in users.glob("*") if users.exists() else ():
        guest = Path(note.read_text())
        if (guest / "root.qcow2").exists():
            raise ConflictError(
                f"the root disk of guest {guest.name} is a layer over the image {name}",
                hint=f"vpt guest rm {guest.name}",
            )
        note.unlink()


# ---- tiny ----


def build_tiny(progress: Progress = lambda _: None, *, fresh: bool = False) -> BootImage:
    """Seconds; at once if the cache has it."""
    image = build_image(progress, ssh=True, fresh=fresh)
    name, found = cached("tiny", [image.initrd.name.encode()])
    if found is not None and not fresh:
        return found
    source = f"Linux {image.kernel.release}"

    def make(folder: Path) -> BootImage:
        initrd = Path(shutil.copyfile(image.initrd, folder / "initrd.gz"))
        return BootImage(name, "tiny", source, kernel=image.kernel.vmlinuz, initrd=initrd)

    made = keep(name, make, fresh=fresh)
    # Each guest has a copy of its own: what a change of the driver has made obsolete is of no use.
    for old in [other for other in listed() if other.kind == "tiny"][_KEEP_TINY:]:
        remove(old.name)
    return made


# ---- cloud ----


@dataclass(frozen=True)
class Cloud:
    """A disk by other hands. kernel, initrd: boot these and not what its boot loader would."""

    path: Path
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    user_data: Path | None = None


def build_cloud(cloud: Cloud, progress: Progress = lambda _: None, *, fresh: bool = False) -> BootImage:
    """Copy the disk, and what else it boots with, into the cache: guests' root disks are layers over that."""
    parts = [path for path in (cloud.kernel, cloud.initrd, cloud.user_data) if path is not None]
    for path in (cloud.path, *parts):
        if not path.is_file():
            raise UsageError(f"there is no file {path}", hint="give the path of a qcow2 or raw image")
    _require_bootable(cloud)
    inputs = [_digest(path).encode() for path in (cloud.path, *parts)]
    roles = [bool(cloud.kernel), bool(cloud.initrd), bool(cloud.user_data)]
    name, found = cached("cloud", [*inputs, repr(roles).encode(), cloud.append.encode()])
    if found is not None and not fresh:
        return found
    progress(f"copying {cloud.path} into the cache")
    return keep(name, lambda folder: _import(name, cloud, folder), fresh=fresh)


def _require_bootable(cloud: Cloud) -> None:
    """qemu-img takes any file for a raw image; firmware boots one that has a boot sector."""
    with cloud.path.open("rb") as file:
        start = file.read(_SECTOR)
    qcow2, boots = start.startswith(b"QFI\xfb"), start.endswith(b"\x55\xaa") and len(start) == _SECTOR
    if not (qcow2 or boots or cloud.kernel):
        raise UsageError(
            f"{cloud.path} is no disk image: neither qcow2, nor raw with a boot sector",
            hint="give the path of your distribution's cloud image; for a disk without boot loader, --kernel",
        )


def _import(name: str, cloud: Cloud, folder: Path) -> BootImage:
    disk = folder / "root.qcow2"
    argv = [need("qemu-img", "qemu-utils"), "convert", "-O", "qcow2", str(cloud.path), str(disk)]
    try:
        run_tool(argv, f"reading {cloud.path}", _CONVERT_S)
    except VptError as error:
        raise GuestError(f"{cloud.path} is no disk image that QEMU reads: {error}", hint=error.hint) from None

    def copied(path: Path | None, as_name: str) -> Path | None:
        return None if path is None else Path(shutil.copyfile(path, folder / as_name))

    return BootImage(
        name,
        "cloud",
        str(cloud.path),
        disk=disk,
        kernel=copied(cloud.kernel, "vmlinuz"),
        initrd=copied(cloud.initrd, "initrd"),
        append=cloud.append,
        user_data=copied(cloud.user_data, "user-data"),
    )


def _digest(path: Path) -> str:
    """SHA-256 of the file. Of one that has not changed since the last time, as it was then."""
    found = path.stat()
    identity = f"{path.resolve()} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    note = cache_folder("digests") / hashlib.sha256(identity.encode()).hexdigest()[:24]
    try:
        return note.read_text()
    except FileNotFoundError:
        pass
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    note.write_text(digest.hexdigest())
    return digest.hexdigest()
