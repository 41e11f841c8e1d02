# SPDX-License-Identifier: BSD-2-Clause
"""vpt capture: packets as pcapng, to a file or a pipe."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from vpt.cli._common import FiniteFloat, connect, emit_json, json_option, print_table, typed
from vpt.cli._system_errors import writing
from vpt.errors import UsageError

if TYPE_CHECKING:
    from vpt.capture import Observer

__all__ = ["capture"]

_PROGRESS_S = 0.5


@click.command()
@click.argument("target", metavar="PORT|SWITCH", required=False)
@click.option("-w", "--write", "path", metavar="FILE", help="Where to; - or nothing: standard output.")
@click.option(
    "-f", "--filter", "expression", metavar="EXPRESSION", default="", help="Only these: man pcap-filter."
)
@click.option(
    "--direction",
    type=click.Choice(["in", "out", "both"]),
    default="both",
    help="in: from a port's peer into the switch, out: to the peer.  [default: both]",
)
@click.option(
    "-s", "--snaplen", type=click.IntRange(14, 1 << 18), default=1 << 18, help="Bytes kept of a packet."
)
@click.option("-c", "--count", type=click.IntRange(1, 10**14), help="How many packets.")
@click.option("--seconds", type=FiniteFloat(0, 1e9, min_open=True), help="How long.")
@click.option(
    "--buffer",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    help="MiB for packets not yet written, for each worker of vptd; rounded up to a power of two.",
)
@click.option("--list", "list_", is_flag=True, help="Say what is being captured, and by whom.")
@json_option
def capture(
    target: str | None,
    path: str | None,
    expression: str,
    direction: Literal["in", "out", "both"],
    snaplen: int,
    count: int | None,
    seconds: float | None,
    buffer: int,
    list_: bool,
    as_json: bool,
) -> None:
    """Write the packets of a port, or of a switch's ports, as pcapng.

    Each packet has its direction, and one that was dropped a comment that says why (the name of the counter).
    A packet that crosses a switch of which all ports are captured shows where it came in and where it
    left. Checksums and segmentation that are still to be done are in the comment, too.

    The data plane waits for nobody: what finds no room in the buffer is missing, counted, and said at the
    end and in the file. Ports that are not captured do not notice. Ends with Ctrl-C.

    \b
    Examples:
      vpt capture vm1 | tshark -r -
      vpt capture sw0 -w all.pcapng --seconds 10
      vpt capture vm1 -f 'tcp port 80' --direction in -c 100 -w web.pcapng
    """
    if list_:
        _print_list(as_json=as_json)
        return
    if target is None:
        raise click.UsageError(f"which port or switch? {typed('ls')} shows them")
    to_stdout = path in (None, "-")
    if to_stdout and sys.stdout.isatty():
        raise UsageError(
            "packets are not for terminals", hint=f"{typed('capture', target)} | tshark -r -; or -w FILE"
        )
    if to_stdout and as_json:
        raise UsageError(
            "--json and packets can't both go to standard output", hint="write them to a file: -w FILE"
        )
    from vpt.capture import Observer, compile_filter

    program = compile_filter(expression)
    with ExitStack() as stack:
        vptd = stack.enter_context(connect())
        observer = stack.enter_context(
            Observer(
                vptd,
                target,
                direction=direction,
                filter_=program,
                expression=expression,
                snaplen=snaplen,
                buffer=1 << (buffer * (1 << 20) - 1).bit_length(),
            )
        )
        if not to_stdout:
            stack.enter_context(writing(str(path)))
        out = stack.enter_context(_standard_output() if to_stdout else _create(str(path)))
        _copy(observer, out, count, seconds, progress=not to_stdout and sys.stderr.isatty())
    if as_json:
        emit_json(
            "capture", {"packets": observer.packets, "lost": observer.lost, "ended_by_vptd": observer.ended}
        )
    else:
        end = "; vptd ended it" if observer.ended else ""
        click.echo(f"{observer.packets} packets, {observer.lost} lost for want of room{end}", err=True)


def _standard_output() -> BinaryIO:
    """Not sys.stdout.buffer: with PYTHONUNBUFFERED that is the bare file, which may write less than all."""
    return open(sys.stdout.fileno(), "wb", closefd=False)


def _create(path: str) -> BinaryIO:
    try:
        return open(path, "wb")
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}", hint="give another path with -w") from None


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether one came that says stop. The second Ctrl-C does not wait for what is in the buffer."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        came.append(number)

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in stops}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy(
    observer: Observer, out: BinaryIO, count: int | None, seconds: float | None, *, progress: bool
) -> None:
    """Until Ctrl-C, the limit, the end of vptd, or of whoever reads: none of these is an error."""
    end, shown = time.monotonic() + (seconds or math.inf), 0.0
    with _signals() as came:
        try:
            for block in observer.blocks(stopped=lambda: came() or time.monotonic() >= end, most=count):
                out.write(block)
                if not block:
                    out.flush()
                if progress and time.monotonic() > shown + _PROGRESS_S:
                    shown = time.monotonic()
                    click.echo(f"\r{observer.packets} packets, {observer.lost} lost ", nl=False, err=True)
            out.flush()
        except BrokenPipeError:
            # `| head`: what could not be written must not be tried again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    if progress:
        click.echo("\r", nl=False, err=True)


def _print_list(*, as_json: bool) -> None:
    with connect() as vptd:
        found = vptd.call("capture.list")["captures"]
    if as_json:
        emit_json("captures", {"captures": found})
        return
    rows = [(str(c["id"]), c["target"], ", ".join(c["ports"]), str(c["pid"] or "-")) for c in found]
    print_table([">ID", "OF", "PORTS", ">PID"], rows)
