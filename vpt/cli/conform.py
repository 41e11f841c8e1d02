# SPDX-License-Identifier: BSD-2-Clause
"""vpt conform."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vpt.cli._common import FiniteFloat, emit_json, json_option, print_table, stoppable
from vpt.errors import EXIT_FAILED, EXIT_OK, NotFoundError, UsageError

if TYPE_CHECKING:
    from vpt.conform.case import Case
    from vpt.conform.run import Result

__all__ = ["conform"]

_COLOURS = {"passed": "green", "failed": "red", "crashed": "red", "skipped": "yellow"}


@click.command()
@click.option(
    "--socket", "path", metavar="PATH", type=click.Path(path_type=Path), help="The back-end's socket."
)
@click.option(
    "--peer",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Socket of a second port: what is sent into one must come out at the other.",
)
@click.option("--connect/--listen", default=True, show_default=True,
              help="Connect to the sockets, or listen there for a back-end that connects.")  # fmt: skip
@click.option("--case", "names", multiple=True, metavar="ID",
              help="Only these: an id, a line of the checklist (S21), a group (memory).")  # fmt: skip
@click.option("--list", "list_only", is_flag=True, help="Say which cases there are, and run none.")
@click.option("--pid", type=click.IntRange(1), metavar="PID",
              help="The back-end's process: count its descriptors and mappings, too.")  # fmt: skip
@click.option("--restart", metavar="COMMAND",
              help="Start the back-end with this command, and again when it died or hangs.")  # fmt: skip
@click.option("--timeout", "limit_s", type=FiniteFloat(0.05, 60), default=2.0, show_default=True,
              metavar="SECONDS", help="How long to wait for anything.")  # fmt: skip
@json_option
def conform(
    path: Path | None, peer: Path | None, connect: bool, names: tuple[str, ...], list_only: bool,
    pid: int | None, restart: str | None, limit_s: float, as_json: bool,
) -> int:  # fmt: skip
    """Test a vhost-user net back-end: any, by its socket.

    Plays the front-end, one that behaves and one that does not: what the specification promises (V), and
    what has killed back-ends (S: socket, M: memory, Q: queues, P: packets, L: life). After each case a fresh
    connection must work, memory that was not given must be as it was, and frames sent must be taken; with
    --peer they must come out there, and that port must never suffer.

    \b
    passed   it did what the rule says
    failed   it did not; the last column says what was seen
    crashed  its process is gone
    skipped  a feature that the case needs is not offered, or there is no --peer

    \b
    Examples:
      vpt conform --socket /run/vpt/ports/vm1.sock
      vpt conform --socket a.sock --peer b.sock --restart 'dpdk-testpmd ...'
      vpt conform --socket a.sock --case S21 --case memory
      vpt conform --list

    Exit code 0: none failed or crashed.
    """
    from vpt.conform.backend import Backend, Door
    from vpt.conform.run import Runner, as_objects, summary

    cases = _selected(names)
    if list_only:
        _list(cases, as_json)
        return EXIT_OK
    if path is None:
        raise UsageError(
            "which back-end?", hint="vpt conform --socket PATH; vpt show PORT says where a port's is"
        )
    if peer is not None and os.path.realpath(peer) == os.path.realpath(path):
        raise UsageError("--peer is --socket", hint="give the socket of another port of the same switch")
    if pid is not None and not os.path.exists(f"/proc/{pid}"):
        raise NotFoundError(f"there is no process {pid}", hint="--pid is the back-end's: ss -xlp")
    with stoppable(), contextlib.ExitStack() as stack:
        backend = Backend(
            Door(path, listen=not connect),
            Door(peer, listen=not connect) if peer else None,
            pid=pid,
            restart=restart,
            patience_s=max(30.0, limit_s),
        )
        stack.callback(backend.close)
        backend.start()
        runner = Runner(backend, limit_s=limit_s)
        stack.callback(runner.close)
        runner.prepare()
        with _progress(len(cases)) as tell:
            results = runner.run(cases, tell)
        counts = summary(results)
        if as_json:
            about = {"socket": str(path), "peer": str(peer) if peer else None, "backend": runner.describe()}
            emit_json("conform", {**about, "summary": counts, "cases": as_objects(results)})
        else:
            _print(results, counts)
    return EXIT_FAILED if counts["failed"] or counts["crashed"] else EXIT_OK


def _selected(names: tuple[str, ...]) -> list[Case]:
    from vpt.conform.case import select
    from vpt.conform.cases import all_cases

    try:
        return select(all_cases(), names)
    except ValueError as error:
        raise UsageError(f"no case is called {error}", hint="vpt conform --list") from None


def _list(cases: list[Case], as_json: bool) -> None:
    if as_json:
        emit_json("conform.list", {"cases": [case.describe() for case in cases]})
        return
    print_table(["CASE", "GROUP", "RULE", "SOURCE"], [(c.id, c.group, c.rule, c.source) for c in cases])


def _print(results: list[Result], counts: dict[str, int]) -> None:
    rows = [(r.id, _coloured(r.verdict), f"{r.rule} ({r.source})", r.why or "-") for r in results]
    print_table(["CASE", "VERDICT", "RULE", "WHY"], rows)
    click.echo("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _coloured(verdict: str) -> str:
    return click.style(verdict, fg=_COLOURS[verdict]) if sys.stdout.isatty() else verdict


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Result], None]]:
    """A bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda result: bar.update(task, advance=1, description=f"{result.id}: {result.verdict}")
