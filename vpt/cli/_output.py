# SPDX-License-Identifier: BSD-2-Clause
"""Files that a command writes at its end: whether it can is known at its beginning."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vpt.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["output_option"]


def output_option(*names: str, default: str | None = None, help: str) -> Callable[[F], F]:  # noqa: A002 - as click has it
    """A file to be written. What keeps it from that is found before hours are spent on its content."""
    return click.option(
        *names,
        type=click.Path(path_type=Path),
        default=default,
        show_default=default is not None,
        metavar="FILE",
        callback=_checked,
        help=help,
    )


def _checked(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:  # noqa: ARG001
    if path is not None and (wrong := _what_is_wrong(path)):
        message, hint = wrong
        raise UsageError(f"can't write {path}: {message}", hint=hint)
    return path


def _what_is_wrong(path: Path) -> tuple[str, str] | None:
    folder = path.parent
    if path.is_dir():
        return "it is a folder", f"name a file in it: {path / 'FILE'}"
    if not folder.is_dir():
        if folder.exists():
            return f"{folder} is not a folder", f"see what there is: ls -ld {shlex.quote(str(folder))}"
        return f"there is no folder {folder}", f"mkdir -p {shlex.quote(str(folder))}"
    # A regular file may be replaced by one that is made beside it.
    beside = folder if path.is_file() or not path.exists() else path
    if not os.access(beside, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return "no permission", f"see who may: ls -ld {shlex.quote(str(folder))} {shlex.quote(str(path))}"
    return None
