# SPDX-License-Identifier: BSD-2-Clause
"""vpt daemon: start, stop, status, methods."""

from __future__ import annotations

import json
from typing import Any

import click

from vpt.cli._common import FiniteFloat, connect, emit_json, json_option, paths, print_table, typed
from vpt.errors import EXIT_FAILED, NotFoundError

__all__ = ["daemon"]


@click.group()
def daemon() -> None:
    """Start, stop and look at vptd, the daemon behind everything.

    \b
    Examples:
      vpt daemon start --workers 2 --cpus 2,3
      vpt daemon status
      vpt daemon stop
    """


@daemon.command()
@click.option(
    "--workers", type=click.IntRange(1, 32), default=1, show_default=True, help="Threads that move packets."
)
@click.option("--cpus", metavar="LIST", help="Pin the workers to these CPUs, e.g. 2,3.")
@click.option("--state-dir", metavar="DIR", help="Where switches and ports are remembered.")
@click.option("--group", metavar="NAME", help="Group that may use vptd and connect to ports.")
@click.option("--no-keep", is_flag=True, help="When vptd is told to end, take guests' memory away too.")
@click.option("--no-keeper", is_flag=True, help="No keeper process: guests' memory ends with vptd.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to the log.",
)
@click.option(
    "--timeout",
    type=FiniteFloat(1, 600),
    default=20.0,
    show_default=True,
    help="Seconds to wait for it.",
)
@json_option
def start(
    workers: int,
    cpus: str | None,
    state_dir: str | None,
    group: str | None,
    no_keep: bool,
    no_keeper: bool,
    log_level: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Start vptd in the background and wait until it answers.

    Does nothing if it runs already. Ports that it had when it last ended, or was killed, come back.

    \b
    Examples:
      vpt daemon start
      vpt daemon start --workers 2 --cpus 2,3
      VPT_RUNTIME_DIR=/tmp/mine vpt daemon start       (a second one, apart from the first)
    """
    from vpt.daemon.launch import launch

    where = paths(state_dir)
    options = ["--workers", str(workers), "--log-level", log_level]
    options += ["--cpus", cpus] if cpus else []
    options += ["--group", group] if group else []
    options += ["--no-keep"] if no_keep else []
    options += ["--no-keeper"] if no_keeper else []
    launched = launch(where, options, timeout)
    if as_json:
        emit_json("daemon", {"running": True, "started": launched.new, **launched.status})
        return
    what = "vptd is running" if launched.new else "vptd was running already"
    click.echo(f"{what}: process {launched.status['pid']}, socket {where.control}, log {where.log}")


@daemon.command()
@click.option(
    "--keep/--no-keep",
    default=None,
    help="Let the keeper hold guests' memory until vptd is back, or take it away.  "
    "[default: as vptd was started]",
)
@click.option(
    "--timeout",
    type=FiniteFloat(1, 600),
    default=20.0,
    show_default=True,
    help="Seconds to wait for it.",
)
@json_option
def stop(keep: bool | None, timeout: float, as_json: bool) -> None:
    """End vptd and wait until it is gone.

    Switches and ports are remembered, and come back when it is started again. Guests on vhost-user reconnect
    then; guests on passthrough go on as well, unless --no-keep takes their memory away. Does nothing if vptd
    does not run.

    \b
    Examples:
      vpt daemon stop && vpt daemon start      (an upgrade, under running guests)
      vpt daemon stop --no-keep                (for good)
    """
    from vpt.daemon.launch import shut_down

    stopped = shut_down(paths(), keep, timeout)
    if as_json:
        emit_json("daemon", {"running": False, "stopped": stopped})
    else:
        click.echo("vptd has ended" if stopped else "vptd was not running")


@daemon.command()
@json_option
def status(as_json: bool) -> int:
    """Say whether vptd runs, since when, and how much it has to do.

    Exit code 1 if it does not run.

    \b
    Example:
      vpt daemon status --json
    """
    from vpt.daemon.launch import running

    where = paths()
    found = running(where)
    if as_json:
        emit_json("daemon", {"running": found is not None, **(found or {"runtime_dir": str(where.runtime)})})
    elif found is None:
        how = typed("daemon", "start")
        click.echo(f"vptd is not running in {where.runtime}; start it with: {how}", err=True)
    else:
        _print_status(found)
    return 0 if found else EXIT_FAILED


def _print_status(found: dict[str, Any]) -> None:
    keeper = found["keeper"]
    lines = {
        "version": found["version"],
        "process": f"{found['pid']}, up {_duration(found['uptime_s'])}",
        "runtime dir": found["runtime_dir"],
        "state dir": found["state_dir"],
        "workers": found["workers"],
        "switches": found["switches"],
        "ports": f"{found['ports']}, {found['ports_up']} up",
        "keeper": "none"
        if keeper is None
        else f"process {keeper['pid']}"
        if keeper["pid"]
        else "not needed yet",
    }
    for name, value in lines.items():
        click.echo(f"{name:<12} {value}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@daemon.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List what can be asked of vptd over its control socket; with NAME, what that method takes and gives.

    The socket speaks JSON-RPC 2.0, one object per line.

    \b
    Examples:
      vpt daemon methods
      vpt daemon methods port.add
    """
    with connect() as vptd:
        table = vptd.call("daemon.methods")["methods"]
    if name is not None:
        table = [method for method in table if method["name"] == name]
        if not table:
            raise NotFoundError(f"no method {name!r}", hint=f"see them with: {typed('daemon', 'methods')}")
    if as_json:
        emit_json("methods", {"methods": table})
    elif name is None:
        print_table(["METHOD", "WHAT IT DOES"], [(method["name"], method["doc"]) for method in table])
    else:
        click.echo(f"{name}: {table[0]['doc']}")
        for part in ("params", "result"):
            click.echo(f"\n{part}:\n{json.dumps(table[0][part], indent=2)}")
