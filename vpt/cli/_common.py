# SPDX-License-Identifier: BSD-2-Clause
"""What commands share: the --json option, output, the connection to vptd."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from vpt.daemon.client import Client
    from vpt.daemon.runtime import RuntimePaths

__all__ = ["connect", "console", "emit_json", "json_option", "paths", "print_table", "state_style"]

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """--json, passed on as as_json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def paths(state_dir: str | None = None) -> RuntimePaths:
    """Of the vptd that the user means."""
    from vpt.daemon.runtime import locate

    return locate(click.get_current_context().find_root().obj, state_dir)


def connect() -> Client:
    """To that vptd; a context manager."""
    from vpt.daemon.client import Client

    return Client(paths().control)


def emit_json(what: str, data: dict[str, Any]) -> None:
    """An object with "schema": "vpt.WHAT/v1" in front."""
    click.echo(json.dumps({"schema": f"vpt.{what}/v1", **data}, indent=2))


def console() -> Console:
    """For tables: as wide as they want to be in a pipe, where nobody looks at line ends."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns with a heading; one whose name begins with > is aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True
        )
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    console().print(table)


def state_style(state: str) -> str:
    """The state of a port, coloured where the terminal does colours."""
    colour = {"up": "green", "broken": "red", "failed": "red"}.get(state)
    return click.style(state, fg=colour) if colour and sys.stdout.isatty() else state
