# SPDX-License-Identifier: BSD-2-Clause
"""The kernel that guests boot: one of this host's installed ones, with its modules and headers."""

from __future__ import annotations

import lzma
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vpt.errors import GuestError, MissingError

__all__ = ["Kernel", "find_kernel"]

_INSTALL = "apt-get install linux-image-cloud-amd64 linux-headers-cloud-amd64"


@dataclass(frozen=True)
class Kernel:
    """An installed kernel. `build` is what an out-of-tree module is built against."""

    release: str
    vmlinuz: Path
    modules: Path
    build: Path

    def module_files(self, wanted: list[str]) -> list[Path]:
        """Files of the modules named and of all that they need, in the order in which to load them.

        What is built into the kernel is left out. Raises MissingError for a module that this kernel lacks.
        """
        known = {_module_name(path): (path, needs) for path, needs in self._dependencies()}
        builtin = {_module_name(line) for line in _lines(self.modules / "modules.builtin")}
        order: list[str] = []

        def add(name: str) -> None:
            if name in builtin:
                return
            if name not in known:
                raise MissingError(f"kernel {self.release} has no module {name}", hint=_INSTALL)
            path, needs = known[name]
            # modules.dep lists what is needed first last.
            for needed in reversed(needs):
                add(_module_name(needed))
            if path not in order:
                order.append(path)

        for name in wanted:
            add(_module_name(name))
        return [self.modules / path for path in order]

    def _dependencies(self) -> list[tuple[str, list[str]]]:
        split = (line.partition(":") for line in _lines(self.modules / "modules.dep"))
        return [(path, needs.split()) for path, _, needs in split]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise MissingError(f"kernel modules are incomplete: {error}", hint=_INSTALL) from error


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """A module as insmod takes it: newer Debian releases compress them."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        try:
            return subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
        except FileNotFoundError:
            raise MissingError(f"{path.name} is compressed with zstd", hint="apt-get install zstd") from None
        except subprocess.CalledProcessError as error:
            raise GuestError(f"{path} can't be unpacked: {error.stderr.decode(errors='replace')}") from error
    return path.read_bytes()


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def find_kernel(root: Path = Path("/")) -> Kernel:
    """The newest installed kernel that has modules and headers; a cloud one (it boots faster) before others.

    Raises MissingError that says what is missing and how to get it.
    """
    found: list[Kernel] = []
    lacking: list[str] = []
    for vmlinuz in (root / "boot").glob("vmlinuz-*"):
        release = vmlinuz.name.removeprefix("vmlinuz-")
        modules = root / "lib/modules" / release
        candidates = (root / "usr/src" / f"linux-headers-{release}", modules / "build")
        build = next((path for path in candidates if (path / "Makefile").exists()), None)
        if not (modules / "modules.dep").exists():
            lacking.append(f"{release} lacks its modules")
        elif build is None:
            lacking.append(f"{release} lacks its headers")
        else:
            found.append(Kernel(release, vmlinuz, modules, build))
    if not found:
        what = "; ".join(sorted(lacking)) or "none in /boot"
        raise MissingError(f"no kernel to boot guests with: {what}", hint=_INSTALL)
    best = max(found, key=lambda kernel: ("cloud" in kernel.release, _version_key(kernel.release)))
    try:
        best.vmlinuz.open("rb").close()
    except PermissionError:
        raise MissingError(f"{best.vmlinuz} is not readable", hint=f"chmod a+r {best.vmlinuz}") from None
    return best
