# SPDX-License-Identifier: BSD-2-Clause
"""The payload's ELF file: an installed package brings it along, a checkout builds it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vpt import paths
from vpt.errors import GuestError, MissingError

__all__ = ["payload"]


def _sources_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    names = sorted(
        p for p in folder.iterdir() if p.suffix in {".c", ".h", ".S", ".lds"} or p.name == "Makefile"
    )
    for path in (*names, paths.abi_header()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpt"


def payload(cache: Path | None = None) -> Path:
    """The micro guest's ELF file: the installed one, else built, once for each version of its sources.

    cache: folder to build in, None: the user's cache. Raises MissingError without gcc and make.
    """
    folder = paths.guest_driver("micro")
    shipped = folder / "micro.elf"
    if shipped.exists():
        return shipped
    out = (cache or _cache_root()) / f"micro-{_sources_digest(folder)}"
    elf = out / "micro.elf"
    if elf.exists():
        return elf
    missing = [tool for tool in ("gcc", "make") if not shutil.which(tool)]
    if missing:
        raise MissingError(
            f"the micro guest is built with {' and '.join(missing)}, not found here",
            hint="apt-get install gcc make binutils",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and moved: two builders do not see each other's halves.
    with tempfile.TemporaryDirectory(prefix="micro-", dir=out.parent) as work:
        command = ["make", "-s", "-C", str(folder), f"O={work}", f"ABI={paths.include_dir()}", "CC=gcc"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise GuestError(
                f"the micro guest does not build:\n{done.stderr.strip()}", hint=" ".join(command)
            )
        out.mkdir(exist_ok=True)
        os.replace(Path(work) / "micro.elf", elf)
    return elf
