# SPDX-License-Identifier: BSD-2-Clause
"""vpt exits: count a VM's exits, honestly."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import FiniteFloat, stoppable
from vpt.cli._output import output_option

if TYPE_CHECKING:
    from vpt.exits.meter import Measure
    from vpt.exits.model import Identity
    from vpt.exits.session import Session

__all__ = ["exits"]

# As vpt.exits.sources.NAMES has them; not imported, for `--help` must be quick.
_SOURCES = ("auto", "stats-fd", "qmp", "libvirt", "debugfs", "tracepoints", "qemu-trace", "vpt")
_FORMATS = ("json", "csv", "prometheus")
_BARE = ("csv", "prometheus")  # have no place for notes, which go to stderr


def _vm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.argument("vm"),
        click.option(
            "--source", type=click.Choice(_SOURCES), default="auto", help="Where to count.", show_default=True
        ),
        click.option("--connect", metavar="URI", help="libvirt's URI, for a VM given by libvirt name."),
        click.option(
            "--stats",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="vptd's counters file.  [default: that of the running vptd]",
        ),
        click.option(
            "--port",
            "ports",
            multiple=True,
            help="vpt port whose packets to divide by (repeatable).  [default: with --source vpt the VM's]",
        ),
    ):
        command = decorate(command)
    return command


def _format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One of the flags at most, passed on as fmt; None: a table."""

    @functools.wraps(command)
    def in_format(**given: Any) -> None:
        asked = [name for name in _FORMATS if given.pop(f"as_{name}")]
        if len(asked) > 1:
            raise click.UsageError(f"{' and '.join(f'--{name}' for name in asked)} exclude each other")
        command(fmt=asked[0] if asked else None, **given)

    decorated: Callable[..., Any] = in_format
    for name in _FORMATS:
        flag = click.option(
            f"--{name}",
            f"as_{name}",
            is_flag=True,
            help=f"Print {name.upper() if name != 'prometheus' else 'Prometheus text'}.",
        )
        decorated = flag(decorated)
    return decorated


def _stats_file(given: Path | None) -> Path:
    from vpt.cli._common import paths

    return given or paths().stats


@click.group()
def exits() -> None:
    """Count VM exits: per second, and per packet.

    VM is a libvirt name, the path of a QMP socket, or a pid; libvirt:, qmp: or pid: in front decides.
    Each number carries its tier (kvm, kvm-pvm, tcg) and source. docs/exits.md says how to read them.
    """


@exits.command()
@_vm_options
@click.option(
    "--interval",
    type=FiniteFloat(0.05, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each reading takes.",
)
@click.option(
    "--count", type=click.IntRange(1), help="Stop after so many intervals.  [default: 1 unless on a terminal]"
)
@_format_options
def top(
    vm: str,
    source: str,
    connect: str | None,
    stats: Path | None,
    ports: tuple[str, ...],
    interval: float,
    count: int | None,
    fmt: str | None,
) -> None:
    """Show a VM's exits as they happen.

    \b
    Examples:
      vpt exits top vm1
      vpt exits top qmp:/run/vm1.qmp --interval 5 --count 3
    """
    from vpt.exits import render
    from vpt.exits.session import open_session

    live = fmt is None and sys.stdout.isatty()
    if count is None and not live:
        count = 1
    with stoppable(), open_session(vm, source, connect, _stats_file(stats), ports) as session:
        _say(session.notes)
        measures = _measures(session, interval, count)
        if fmt is None:
            refused = _show(session.identity, measures, live)
        else:
            listed = list(measures)
            refused = listed[-1].refused
            if fmt in _BARE:
                _say(list(dict.fromkeys(note for m in listed for note in m.notes)))
            if fmt != "prometheus":
                _print(session.identity, listed, fmt)
            elif not refused:
                click.echo(render.prometheus_text(session.identity, session.sample()), nl=False)
    _fail_if(refused, fmt, shown=fmt is None)


@exits.command()
@_vm_options
@click.option(
    "--interval",
    type=FiniteFloat(0.05, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="How long each reading takes.",
)
@output_option("-o", "--output", default="exits.json", help="File that the recording goes to.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(
    vm: str,
    source: str,
    connect: str | None,
    stats: Path | None,
    ports: tuple[str, ...],
    interval: float,
    output: Path,
    command: tuple[str, ...],
) -> None:
    """Count a VM's exits while COMMAND runs, into a file.

    The command runs on the host and comes after --. Ctrl-C ends both, and keeps what was counted.

    \b
    Example:
      vpt exits record vm1 -o idle.json -- sleep 10
    """
    from vpt.errors import GuestError
    from vpt.exits import meter, render
    from vpt.exits.session import open_session, save
    from vpt.exits.session import record as run

    with stoppable(once=True), open_session(vm, source, connect, _stats_file(stats), ports) as session:
        _say(session.notes)
        recording = run(session, command, interval)
        save(recording, output)
        if not recording.complete:
            count = len(recording.samples)
            message = (
                f"{recording.ended}, before the command ended; {output} holds {count} "
                f"sample{'s'[: count > 1]} and is marked incomplete"
            )
            hint = (
                f"what there is: vpt exits report {output}"
                if count > 1
                else "a shorter --interval leaves more than one sample, which is no measurement"
            )
            if session.ended:
                raise GuestError(message, hint=f"{session.ended.hint}; {hint}")
            click.echo(f"{message}\nhint: {hint}", err=True)
            raise click.Abort
        session.require_running()
    whole = meter.measure(recording.identity, meter.span(recording.identity, recording.samples))
    if recording.command_rc or not whole.refused:  # else that is the error
        click.echo(f"{output}: {render.headline(recording.identity, whole)}", err=True)
    _say(whole.notes)
    if recording.command_rc:
        raise GuestError(
            f"the command ended with {recording.command_rc}: {' '.join(command)}",
            hint=f"vpt exits report {output}",
        )
    _fail_if(whole.refused, see=f"vpt exits report {output} shows the counters; ")


@exits.command()
@click.argument("file", type=click.Path(path_type=Path))
@_format_options
def report(file: Path, fmt: str | None) -> None:
    """Print a recording.

    \b
    Example:
      vpt exits report idle.json
    """
    from vpt.exits import meter, render
    from vpt.exits.session import load

    recording = load(file)
    identity, samples = recording.identity, recording.samples
    whole = meter.measure(identity, meter.span(identity, samples))
    unfinished = render.unfinished(recording)
    if fmt in _BARE:
        _say((*unfinished, *recording.notes, *whole.notes))
    if fmt == "prometheus":
        # What says nothing is absent.
        if not whole.refused:
            click.echo(render.prometheus_text(identity, samples[-1], unfinished), nl=False)
    elif fmt == "json":
        click.echo(render.json_text(render.measures_json(identity, [whole], recording)))
    elif fmt == "csv":
        parts = [meter.measure(identity, d) for d in meter.intervals(identity, samples)]
        click.echo(render.csv_text(identity, parts), nl=False)
    else:
        m = recording.machine
        click.echo(
            f"{recording.started}  {m.cpu}, {m.cores} CPUs, Linux {m.kernel}, "
            f"QEMU {identity.qemu or 'n/a'}, vpt {m.vpt}"
        )
        click.echo(f"command: {' '.join(recording.command)} (ended with {recording.command_rc})")
        click.echo(f"tier: {identity.tier.value} ({identity.tier_evidence})")
        for line in (*unfinished, *(f"note: {note}" for note in recording.notes)):
            click.echo(line)
        _console().print(render.table(identity, whole))
    _fail_if(whole.refused, fmt, shown=fmt is None)


@exits.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two recordings of one tier, and say whether they differ.

    \b
    Example:
      vpt exits diff before.json after.json
    """
    from vpt.exits import meter, render
    from vpt.exits.session import load

    first, second = load(a), load(b)
    comparison = meter.compare((first.identity, first.samples), (second.identity, second.samples))
    if as_json:
        click.echo(render.json_text(render.comparison_json(first, second, comparison)))
        return
    for side, path, recording, rate in (("A", a, first, comparison.a), ("B", b, second, comparison.b)):
        click.echo(
            f"{side}  {path}  {rate.whole:.4g} {rate.unit} (intervals {rate.low:.4g} .. {rate.high:.4g})"
        )
        stopped = [meter.STOPPED] if any(sample.stopped for sample in recording.samples) else []
        for note in (*render.unfinished(recording), *recording.notes, *stopped):
            click.echo(f"   {note}")
    click.echo(f"{first.identity.tier.value}: {comparison.verdict}")


def _measures(session: Session, interval: float, count: int | None) -> Iterator[Measure]:
    from vpt.exits import meter

    before = session.sample()
    for _ in itertools.count() if count is None else range(count):
        time.sleep(interval)
        session.require_running()
        after = session.sample()
        yield meter.measure(session.identity, meter.delta(session.identity, before, after))
        before = after


def _show(identity: Identity, measures: Iterator[Measure], live: bool) -> str | None:
    """Print intervals as they come, in place on a terminal; returns why the last has no verdict."""
    from rich.live import Live

    from vpt.exits import render

    console = _console()
    refused = None
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Live(console=console, auto_refresh=False)) if live else None
        for m in measures:
            refused = m.refused
            if display:
                display.update(render.table(identity, m), refresh=True)
            else:
                console.print(render.table(identity, m))
    return refused


def _print(identity: Identity, measures: list[Measure], fmt: str) -> None:
    from vpt.exits import render

    if fmt == "json":
        click.echo(render.json_text(render.measures_json(identity, measures)))
    else:
        click.echo(render.csv_text(identity, measures), nl=False)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _fail_if(refused: str | None, fmt: str | None = None, *, shown: bool = False, see: str = "") -> None:
    """A number without a verdict is a failure. shown: the reason stands with the numbers already."""
    if not refused:
        return
    from vpt.errors import EXIT_FAILED, GuestError

    message = "no verdict" if shown else f"no verdict: {refused}"
    if shown:
        see = "the reason stands with the numbers; "
    hint = f"{see}docs/exits.md says what each refusal means"
    if fmt != "json":
        raise GuestError(message, hint=hint)
    # The document says so, too, and stays the only thing on stdout.
    click.echo(f"{message}\nhint: {hint}", err=True)
    raise click.exceptions.Exit(EXIT_FAILED)


def _console() -> Any:
    from rich.console import Console

    # In a pipe there is no width to fold a table into.
    return Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False, highlight=False)
