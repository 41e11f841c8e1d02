# SPDX-License-Identifier: BSD-2-Clause
"""What commands share: the --json option, output, the connection to vptd."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from vpt.daemon.client import Client
    from vpt.daemon.runtime import RuntimePaths
    from vpt.provision.guests import Guests

__all__ = [
    "FiniteFloat",
    "connect",
    "console",
    "emit_json",
    "guests_of",
    "json_option",
    "paths",
    "print_table",
    "progress",
    "state_style",
    "stoppable",
    "wait_options",
]

F = TypeVar("F", bound=Callable[..., Any])


class FiniteFloat(click.FloatRange):
    """A number within bounds, where nan, which no comparison finds outside of any, is none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def json_option(function: F) -> F:
    """--json, passed on as as_json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def wait_options(function: F) -> F:
    """--no-wait and --timeout, of what starts machines."""
    timeout = click.option(
        "--timeout",
        type=FiniteFloat(0, 86400),
        metavar="SECONDS",
        help="For each machine to be up within.  [default: 90 tiny, 300 debian, 600 cloud]",
    )
    no_wait = click.option(
        "--no-wait", is_flag=True, help="Return when machines are started, not when they are up."
    )
    return no_wait(timeout(function))


def paths(state_dir: str | None = None) -> RuntimePaths:
    """Of the vptd that the user means."""
    from vpt.daemon.runtime import locate

    return locate(click.get_current_context().find_root().obj, state_dir)


def connect() -> Client:
    """To that vptd; a context manager."""
    from vpt.daemon.client import Client

    return Client(paths().control)


def typed(*words: str) -> str:
    """For a hint: what to type to have `vpt WORDS` ask that vptd."""
    from vpt.hints import vpt

    return vpt(*words, runtime=paths().runtime)


def guests_of(where: RuntimePaths) -> Guests:
    """The machines that belong to that vptd, whether it runs or not."""
    from vpt.daemon.client import Client
    from vpt.provision.guests import Guests

    return Guests(where, lambda: Client(where.control))


def progress() -> Callable[[str], None]:
    """A line per step on a terminal; silence in a pipe."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda text: click.echo(click.style("* ", fg="cyan") + text, err=True)


def emit_json(what: str, data: dict[str, Any]) -> None:
    """An object with "schema": "vpt.WHAT/v1" in front."""
    click.echo(json.dumps({"schema": f"vpt.{what}/v1", **data}, indent=2))


def console() -> Console:
    """For what moves: as wide as it wants to be in a pipe, where nobody looks at line ends."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns with a heading; one whose name begins with > is aligned to the right.

    By hand, because loading rich takes longer than all the rest of `vpt ls`.
    """
    heading = [click.style(column.removeprefix(">"), bold=True) for column in columns]
    table = [heading, *rows]
    widths = [max(len(click.unstyle(row[i])) for row in table) for i in range(len(columns))]
    for row in table:
        cells = (_pad(cell, width, column) for cell, width, column in zip(row, widths, columns, strict=True))
        click.echo("  ".join(cells).rstrip())


def _pad(cell: str, width: int, column: str) -> str:
    space = " " * (width - len(click.unstyle(cell)))
    return space + cell if column.startswith(">") else cell + space


def state_style(state: str) -> str:
    """The state of a port, coloured where the terminal does colours."""
    colour = {"up": "green", "broken": "red", "failed": "red"}.get(state)
    return click.style(state, fg=colour) if colour and sys.stdout.isatty() else state


@contextlib.contextmanager
def stoppable(*, once: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, for commands that have something to undo.

    once: for those that have something to keep. What comes after the first, Ctrl-C too, is ignored;
    timeout(1) sends two.
    """
    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        if once and stopped:
            return
        stopped = True
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if once else [])]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
