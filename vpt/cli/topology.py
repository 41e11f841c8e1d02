# SPDX-License-Identifier: BSD-2-Clause
"""vpt apply, diff, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import (
    connect,
    emit_json,
    guests_of,
    json_option,
    paths,
    progress,
    stoppable,
    wait_options,
)
from vpt.errors import EXIT_DIFFERENT, UsageError

if TYPE_CHECKING:
    from vpt.daemon.client import Client
    from vpt.provision.guests import Guests
    from vpt.topology import Actual, Plan, Wanted

__all__ = ["apply", "diff", "export"]

# A topology is refused beyond 1 MiB; no more of an endless file needs to be read to see that.
_READ = (1 << 20) + 1
_PLUGGABLE = ("vhost-user", "passthrough")

_prune_option = click.option(
    "--prune", is_flag=True, help="Delete switches, ports and machines that the file does not have."
)
_file_argument = click.argument("file", metavar="FILE")


def _print_schema(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from vpt.topology import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    ctx.exit()


@click.command()
@_file_argument
@click.option("--dry-run", is_flag=True, help="Print the steps, and do none.")
@_prune_option
@click.option(
    "--replace", is_flag=True, help="Delete and add again what can't be changed while packets flow."
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of topologies, for editors, and exit.",
)
@wait_options
@json_option
def apply(
    file: str,
    dry_run: bool,
    prune: bool,
    replace: bool,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Make switches, ports and virtual machines as the topology in FILE says.

    What is as it should be is not touched, so the second time there is nothing to do. All or nothing: where a
    step fails, those before it are undone. FILE - is the standard input.

    Policy, link, VLANs, isolation and limits of a port change while packets flow, ageing and isolation of a
    switch as well. Other changes need --replace: the port is deleted and added again, and a guest that is
    plugged in loses its link; a machine is made anew, with new disks, also where it would see another
    device in place of a port. What the file does not have stays,
    unless there is --prune. Machines boot side by side; the command ends when they are up.

    \b
    Examples:
      vpt apply lab.yaml --dry-run
      vpt apply lab.yaml
      vpt export | sed s/adaptive/poll/ | vpt apply -
    """
    from vpt.topology import Doer, perform, require_options

    wanted, have, todo, guests = _plan(file, prune=prune)
    if not dry_run:
        given = [name for name, chosen in (("replace", replace), ("prune", prune)) if chosen]
        require_options(todo, given)  # type: ignore[arg-type]
        say = progress() if _is_terminal() or as_json else click.echo
        doer = Doer(connect, guests, say, wait=not no_wait, timeout_s=timeout, places=wanted.places)
        with stoppable():
            perform(todo, have, doer)
    if as_json:
        emit_json("apply", {"dry_run": dry_run, **_plan_data(todo)})
        return
    _print_plan(todo, done=not dry_run)


@click.command()
@_file_argument
@_prune_option
@json_option
def diff(file: str, prune: bool, as_json: bool) -> None:
    """Print what vpt apply FILE would do.

    \b
    Exit codes: 0 nothing to do, 4 there is something to do; 1, 2 and 3 as for all commands.

    \b
    Examples:
      vpt diff lab.yaml
      vpt diff lab.yaml --prune --json
    """
    _, _, todo, _ = _plan(file, prune=prune)
    if as_json:
        emit_json("diff", _plan_data(todo))
    else:
        _print_plan(todo)
    if todo.steps:
        click.get_current_context().exit(EXIT_DIFFERENT)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which vpt apply reads as well.")
def export(as_json: bool) -> None:
    """Print the switches, ports and machines that there are as a topology.

    \b
    Examples:
      vpt export > lab.yaml
      vpt export --json
    """
    from vpt.topology import actual, as_data, as_yaml

    with connect() as vptd:
        state = actual(vptd, _machines(vptd))
    _print_unknown(state)
    click.echo(json.dumps(as_data(state), indent=2) if as_json else as_yaml(state).rstrip())


def _machines(vptd: Client, *, wanted: bool = False) -> Guests | None:
    """None where there are no machines and none are wanted: what they need takes a while to load."""
    from vpt.provision.record import Store

    any_there = wanted or Store(paths().state).names() or _may_be_of_domains(vptd.call("config"))
    return guests_of(paths()) if any_there else None


def _may_be_of_domains(config: dict[str, Any]) -> bool:
    """Has vptd ports that were made for domains, or, beside a libvirt, any that a domain may have?"""
    from vpt.daemon.owners import domain_of
    from vpt.libvirt_plugin._connection import which_here

    owners = config["owners"]
    common = (port for port in config["ports"] if port["kind"] in _PLUGGABLE and port["name"] not in owners)
    return any(map(domain_of, owners.values())) or (any(common) and which_here() is not None)


def _print_unknown(state: Actual) -> None:
    for line in state.unknown:
        click.echo(f"note: {line}", err=True)


def _plan(file: str, *, prune: bool) -> tuple[Wanted, Actual, Plan, Guests | None]:
    from vpt.topology import actual, check_machines, load, plan

    if file == "-":
        wanted = load(_read(file), "standard input", paths().ports, Path.cwd())
    else:
        wanted = load(_read(file), file, paths().ports, Path(file).absolute().parent)
    with connect() as vptd:
        guests = _machines(vptd, wanted=bool(wanted.vms))
        have = actual(vptd, guests, wanted.vms)
    _print_unknown(have)
    if guests is not None:
        check_machines(wanted, guests)
    return wanted, have, plan(wanted, have, prune=prune), guests


def _read(file: str) -> bytes:
    try:
        if file == "-":
            return sys.stdin.buffer.read(_READ)
        with open(file, "rb") as opened:
            return opened.read(_READ)
    except OSError as error:
        from vpt.cli._system_errors import in_words

        told = in_words(error)
        hint = told.hint if told else "FILE is a file with a topology, or - for the standard input"
        raise UsageError(f"can't read {file}: {error.strerror}", hint=hint) from None


def _is_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


def _plan_data(todo: Plan) -> dict[str, Any]:
    return {"steps": [asdict(step) for step in todo.steps], "left_alone": list(todo.left_alone)}


def _print_plan(todo: Plan, *, done: bool = False) -> None:
    # What is done has been shown when it was begun.
    for step in () if done else todo.steps:
        needs = click.style(f"  [needs --{step.needs}]", fg="yellow") if step.needs else ""
        click.echo(f"{step}{needs}")
    count = len(todo.steps)
    if not count:
        click.echo("nothing to do")
    elif done:
        click.echo(f"done: {count} step{'s' if count > 1 else ''}")
    if todo.left_alone:
        click.echo(f"not in the topology and left alone: {', '.join(todo.left_alone)} (--prune deletes them)")
