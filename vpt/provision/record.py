# SPDX-License-Identifier: BSD-2-Clause
"""What vpt remembers of a guest, and the folder that has all that belongs to it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vpt.errors import NotFoundError, VptError
from vpt.hints import vpt
from vpt.provision.config import VmConfig
from vpt.provision.images import BootImage

__all__ = ["Folder", "Record", "Store"]


class Record(BaseModel):
    """config: as it was asked for; the rest is what was chosen or made for it.

    runtime_dir: of the vptd whose ports it has
    boot:        the image, so that the guest starts again whatever has become of the cache; none: a domain
    made_ports:  ports that go when it goes
    host_key:    public, "ssh-ed25519 AAAA..."
    macs:        of its interfaces, by port
    """

    model_config = ConfigDict(extra="forbid")

    config: VmConfig
    runtime_dir: str
    created: float
    boot: BootImage | None = None
    accel: str = "tcg"
    made_ports: list[str] = []
    ssh_port: int = 0
    ssh_key: str = ""
    host_key: str = ""
    macs: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.config.name

    def typed(self, verb: str, *more: str) -> str:
        """For a hint: what to type to have `vpt guest VERB` done to it. more: what follows its name."""
        return vpt("guest", verb, self.name, *more, runtime=self.runtime_dir)

    @property
    def image(self) -> str:
        """Name of the image."""
        return self.boot.name if self.boot is not None else ""


class Folder:
    """Of one guest. Passable by others (QEMU may be another user), its keys readable by us alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def record(self) -> Path:
        return self.path / "guest.json"

    @property
    def console(self) -> Path:
        return self.path / "console"

    @property
    def qmp(self) -> Path:
        return self.path / "qmp"

    @property
    def pidfile(self) -> Path:
        return self.path / "pid"

    @property
    def errors(self) -> Path:
        """What QEMU said before it went to the background."""
        return self.path / "errors"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"

    @property
    def root_disk(self) -> Path:
        return self.path / "root.qcow2"

    @property
    def seed(self) -> Path:
        return self.path / "seed.iso"

    @property
    def login_key(self) -> Path:
        return self.path / "id_ed25519"

    def disk(self, number: int) -> Path:
        return self.path / f"disk{number}.qcow2"

    def write_private(self, path: Path, data: bytes) -> None:
        """For us alone from its first byte on."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)


class Store:
    """All guests of one vptd's state folder. Nothing needs to run for it."""

    def __init__(self, state: Path) -> None:
        self.path = state / "guests"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One at a time adds or removes guests."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def folder(self, name: str) -> Folder:
        return Folder(self.path / name)

    def names(self) -> list[str]:
        """In alphabetical order, numbers by their value."""
        try:
            found = [path.name for path in self.path.iterdir() if (path / "guest.json").exists()]
        except FileNotFoundError:
            return []
        return sorted(found, key=_natural)

    def exists(self, name: str) -> bool:
        return self.folder(name).record.exists()

    def load(self, name: str) -> Record:
        """NotFoundError: there is none of that name."""
        try:
            return Record.model_validate_json(self.folder(name).record.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"there is no guest {name!r}", hint=f"those there are: {', '.join(self.names()) or 'none'}"
            ) from None
        except ValidationError as error:
            raise VptError(
                f"the record of guest {name} is damaged: {error.errors()[0]['msg']}",
                hint=f"look at {self.folder(name).record}",
            ) from None

    def save(self, record: Record) -> None:
        """Write it as a whole or not at all."""
        folder = self.folder(record.name)
        folder.path.mkdir(mode=0o711, exist_ok=True)
        fresh = folder.record.with_suffix(".new")
        fresh.write_text(json.dumps(record.model_dump(mode="json", exclude_defaults=True), indent=2))
        fresh.replace(folder.record)

    def remove(self, name: str) -> None:
        """All its files. The record goes first, so that what an error leaves behind is no guest."""
        folder = self.folder(name)
        folder.record.unlink(missing_ok=True)
        shutil.rmtree(folder.path, ignore_errors=True)


def _natural(name: str) -> list[tuple[int, str]]:
    """vm2 before vm10."""
    parts, digits = [], ""
    for char in [*name, ""]:
        if char.isdecimal() and char.isascii():
            digits += char
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, char))
    return parts
