# SPDX-License-Identifier: BSD-2-Clause
"""Where the sources live that vpt builds a guest's driver from.

In a checkout (also an editable install) they are what you edit; in an installed package they are a copy under
`vpt/_data`. Callers must not write below these folders: an installed package may be read-only.
"""

from __future__ import annotations

from pathlib import Path

from vpt.errors import MissingError

__all__ = ["abi_header", "guest_driver", "include_dir"]

_PACKAGE = Path(__file__).resolve().parent


def _find(in_checkout: str, in_package: str) -> Path:
    """First of the two places that exists; the checkout's wins, for it is never older."""
    for path in (_PACKAGE.parent / in_checkout, _PACKAGE / "_data" / in_package):
        if path.exists():
            return path
    raise MissingError(
        f"vpt's own files are incomplete: no {in_package}",
        hint="install vpt again: pip install --force-reinstall .",
    )


def guest_driver(name: str) -> Path:
    """Folder with the sources of a guest driver: "linux", "micro"."""
    return _find(f"guest-driver/{name}", f"guest-driver/{name}")


def include_dir() -> Path:
    """Folder to give to a compiler's -I so that it finds vpt/abi.h."""
    return abi_header().parent.parent


def abi_header() -> Path:
    """abi.h, the single owner of the region's layout."""
    return _find("backend_c/include/vpt/abi.h", "include/vpt/abi.h")
