# SPDX-License-Identifier: BSD-2-Clause
"""vpt gen: send, recv, pair."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vpt.cli._common import FiniteFloat, connect, emit_json, json_option, paths, typed
from vpt.errors import ConflictError, DaemonError, UsageError

if TYPE_CHECKING:
    from vpt.daemon.client import Client
    from vpt.daemon.transports.unix import AppLink
    from vpt.gen import Limits, Peer, Report, Traffic

__all__ = ["gen"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def gen() -> None:
    """Generate and receive packets on a switch.

    A generator is an app port, made for as long as it runs (or an existing one: --port). Frames are
    IPv4/UDP, carry a sequence number and the time of sending, so a receiver on the same host counts losses
    and measures latency. Of a micro guest's stamped packets it counts losses only: their clock is another.
    All else that comes is `other`.

    \b
    Examples:
      vpt gen pair --switch sw0 --seconds 5                 both ends, as fast as it goes
      vpt gen pair --switch sw0 --rate 100k --seconds 5     latency at a rate
      vpt gen recv --switch sw0 &
      vpt gen send --switch sw0 --size 60,1514 --flows 16
    """


def _rate(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    factor = {"k": 1_000, "m": 1_000_000}.get(value[-1:].lower(), 1)
    try:
        rate = float(value[:-1] if factor > 1 else value) * factor
    except ValueError:
        raise click.BadParameter("packets per second: 5000, 100k or 2.5M; 0: as fast as it goes") from None
    if not 0 <= rate <= 1e9:
        raise click.BadParameter("0 to 1000M packets per second")
    if 0 < rate < 0.001:
        raise click.BadParameter("0.001 packets per second is the slowest; 0: as fast as it goes")
    return rate


def _sizes(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in value.split(","))
    except ValueError:
        raise click.BadParameter("bytes per frame without FCS: 60, or several: 60,590,1514") from None
    if not all(60 <= size <= 1514 for size in sizes) or len(sizes) > 16:
        raise click.BadParameter("up to 16 sizes of 60 to 1514 bytes")
    return sizes


def _where(function: F) -> F:
    for option in (
        click.option("--switch", metavar="NAME", help="Make a port on this switch and delete it at the end."),
        click.option("--port", metavar="NAME", help="Use this app port."),
    ):
        function = option(function)
    return function


def _until(function: F) -> F:
    for option in (
        click.option("--seconds", type=FiniteFloat(0, 86400), default=0.0, help="How long; 0: no limit."),
        click.option(
            "--count", type=click.IntRange(0, 10**14), default=0, help="How many packets; 0: no limit."
        ),
    ):
        function = option(function)
    return function


def _what(function: F) -> F:
    for option in (
        click.option("--rate", default="0", callback=_rate, show_default=True, metavar="PPS",
                     help="Packets per second, as 0.5, 5000, 2.5M; 0: as fast as there is room."),
        click.option("--size", "sizes", default="60", callback=_sizes, show_default=True, metavar="BYTES",
                     help="Frame length without FCS, or several, sent in turn."),
        click.option("--flows", type=click.IntRange(1, 50_000), default=1, show_default=True,
                     help="Distinct UDP source ports."),
        click.option("--burst", type=click.IntRange(1, 256),
                     show_default="32, with a rate those due in 10 us", help="Packets published together."),
    ):  # fmt: skip
        function = option(function)
    return function


@gen.command()
@_where
@_until
@_what
@click.option("--dst", metavar="MAC", help="Whom to send to. Default: vpt gen recv.")
@json_option
def send(
    switch: str | None, port: str | None, seconds: float, count: int, rate: float, sizes: tuple[int, ...],
    flows: int, burst: int | None, dst: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send packets until a limit is met, or Ctrl-C.

    \b
    Example:
      vpt gen send --switch sw0 --rate 1M --size 60,590,1514 --seconds 10
    """
    from vpt import gen as core

    _one_of(switch, port)
    traffic = core.Traffic(dst or core.RECEIVER_MAC, core.random_mac(), sizes, flows, burst or 0, rate)
    with connect() as vptd, core.plug(vptd, "send", switch=switch, port=port, mac=traffic.src) as link:
        sender = core.sender_of(link.app, traffic, count)
        _show({"sender": core.send(sender, _limits(count, seconds, vptd, link), _live("sent"))}, as_json)
        _fail_if_ended(vptd, link)


@gen.command()
@_where
@_until
@click.option("--poll", is_flag=True, help="Spin instead of sleeping while nothing comes.")
@json_option
def recv(switch: str | None, port: str | None, seconds: float, count: int, poll: bool, as_json: bool) -> None:
    """Receive packets until a limit is met, or Ctrl-C.

    \b
    Example:
      vpt gen recv --switch sw0 --count 1000000 --json
    """
    from vpt import gen as core
    from vpt.dataplane import Receiver

    _one_of(switch, port)
    with connect() as vptd, core.plug(vptd, "recv", switch=switch, port=port, mac=core.RECEIVER_MAC) as link:
        receiver = Receiver(link.app)
        result = core.receive(receiver, _limits(count, seconds, vptd, link), _live("received"), poll=poll)
        _show({"receiver": result}, as_json)
        _fail_if_ended(vptd, link)


@gen.command()
@click.option("--switch", metavar="NAME", required=True, help="Make two ports on this switch.")
@_until
@_what
@click.option("--poll", is_flag=True, help="The receiver spins instead of sleeping while nothing comes.")
@json_option
def pair(
    switch: str, seconds: float, count: int, rate: float, sizes: tuple[int, ...], flows: int,
    burst: int | None, poll: bool, as_json: bool,
) -> None:  # fmt: skip
    """Send from one port and receive on another: loss and latency of a switch.

    \b
    Example:
      vpt gen pair --switch sw0 --rate 100k --seconds 5
    """
    from vpt import gen as core

    if not count and not seconds:
        raise UsageError("pair needs an end", hint="add --seconds 5, or --count 1000000")
    traffic = core.Traffic(core.random_mac(), core.random_mac(), sizes, flows, burst or 0, rate)
    with (
        connect() as vptd,
        core.plug(vptd, "recv", switch=switch, port=None, mac=traffic.dst) as sink,
        core.plug(vptd, "send", switch=switch, port=None, mac=traffic.src) as source,
    ):
        limits = _limits(count, seconds, vptd, source, sink)
        _show(_both(source.app, sink.app, traffic, limits, poll), as_json)
        _fail_if_ended(vptd, source, sink)


def _both(source: Any, sink: Any, traffic: Traffic, limits: Limits, poll: bool) -> dict[str, Any]:
    """The receiver in a thread of its own; it ends a moment after the sender, when the rest is in."""
    from vpt import gen as core
    from vpt.dataplane import Receiver

    result: dict[str, Any] = {}
    over = core.Limits(packets=limits.packets)
    sender = core.sender_of(source, traffic, limits.packets)
    receiver = Receiver(sink, only=sender.run_id)

    def work() -> None:
        result.update(core.receive(receiver, over, _live("received"), poll=poll))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sent = core.send(sender, limits)
        if limits.packets:
            thread.join(1.0)
        over.stop.wait(0.5 if thread.is_alive() else 0)
    finally:
        over.stop.set()
        thread.join()
    # What is missing at the end leaves no gap between two numbers.
    result["lost"] = max(0, sent["sent"] - (result["received"] - result["duplicate"]))
    return {"sender": sent, "receiver": result}


def _one_of(switch: str | None, port: str | None) -> None:
    if (switch is None) == (port is None):
        raise UsageError(
            "give either --switch or --port", hint=f"see the switches: {typed('switch', 'list')}"
        )


def _fail_if_ended(vptd: Client, *links: AppLink) -> None:
    if not vptd.hung_up() and not any(link.hung_up() for link in links):
        return
    until_then = "while packets were on their way: what is printed is what there was until then"
    log = paths().runtime / "vptd.log"
    try:
        # A vptd that ends hangs up on its ports first.
        vptd.call("daemon.status")
    except DaemonError:
        raise DaemonError(
            f"vptd ended {until_then}",
            hint=f"see the end of {log}, and start it again: {typed('daemon', 'start')}",
        ) from None
    raise ConflictError(
        f"the port went away {until_then}",
        hint=f"somebody deleted it, or made it anew: see {typed('port', 'list')}, and the end of {log}",
    )


def _limits(count: int, seconds: float, *peers: Peer) -> Limits:
    """With Ctrl-C and SIGTERM as one more: both end a run, and its result is printed."""
    from vpt.gen import Limits

    limits = Limits(count, seconds, peers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: limits.stop.set())
    return limits


def _live(what: str) -> Report | None:
    """A line per second on a terminal."""
    if not sys.stderr.isatty():
        return None
    before = 0

    def show(seconds: float, packets: int, beside: dict[str, int]) -> None:
        nonlocal before
        rate = (packets - before) / seconds
        before = packets
        counted = "".join(f"  {name} {number:,}" for name, number in beside.items())
        click.echo(f"{what} {packets:,}  {_speed(rate)}{counted}", err=True)

    return show


def _speed(pps: float | None) -> str:
    """A rate in the unit that suits it. None: fewer than two packets have none."""
    if pps is None:
        return "rate n/a"
    for unit, name in ((1e6, "Mpps"), (1e3, "kpps")):
        if pps >= unit:
            return f"{pps / unit:.3f} {name}"
    return f"{pps:.1f} pps"


def _show(result: dict[str, dict[str, Any]], as_json: bool) -> None:
    if as_json:
        emit_json("gen", result)
        return
    if sent := result.get("sender"):
        click.echo(
            f"sent {sent['sent']:,} packets in {sent['seconds']:.2f} s, {_speed(sent['pps'])};"
            f" ring full {sent['ring_full']:,} times"
        )
    if got := result.get("receiver"):
        took = f" in {got['seconds']:.2f} s" if got["received"] else ""
        others = f" at {_speed(got['other_pps'])}" if got["other_pps"] is not None else ""
        click.echo(
            f"received {got['received']:,}{took}, {_speed(got['pps'])};"
            f" lost {got['lost']:,}, late {got['late']:,}, duplicate {got['duplicate']:,},"
            f" other {got['other']:,}{others}"
        )
        if got["received"]:
            click.echo(f"latency us: {_latency(got['latency_us'])}")


def _latency(us: dict[str, float | None]) -> str:
    """Percentiles that so few packets do not have are left out."""
    if us["p0"] is None:
        return "n/a (of a guest's clock)"
    if us["p50"] is None:
        return f"{us['p0']:.1f} (one packet)"
    named = {"p0": "min", "p100": "max"}
    return "  ".join(
        f"{named.get(name, name)} {value:.1f}" for name, value in us.items() if value is not None
    )
