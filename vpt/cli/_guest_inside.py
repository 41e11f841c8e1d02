# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest ssh, run, copy, console: what is done in a guest, and what it says."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from vpt.cli._guest_shown import guests_here

__all__ = ["console", "copy", "run", "ssh"]

_FOLLOW_S = 0.2


@click.command()
@click.argument("name")
def ssh(name: str) -> None:
    """Open a shell in the guest, on this terminal.

    Ends with the shell's exit status.

    \b
    Example:
      vpt guest ssh vm1
    """
    from vpt.provision import ssh as remote

    click.get_current_context().exit(remote.shell(guests_here().reachable(name)))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--stdin", "-i", "with_input", is_flag=True, help="Pass the standard input on to the command.")
def run(name: str, command: tuple[str, ...], with_input: bool) -> None:
    """Run COMMAND in the guest; ends with its exit status.

    Its arguments arrive as they are; for a shell's syntax, run a shell. Standard output and standard error
    stay apart. What keeps vpt itself from running it is told with "error:" and one of vpt's own exit codes.

    \b
    Examples:
      vpt guest run vm1 -- ping -c 3 10.0.1.2
      vpt guest run vm1 -- sh -c 'dmesg | grep vpt'
      tar -c conf | vpt guest run -i vm1 -- tar -x -C /etc
    """
    from vpt.provision import ssh as remote

    record = guests_here().reachable(name)
    status = remote.run(
        record,
        shlex.join(command),
        stdin=sys.stdin.buffer if with_input else None,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    )
    click.get_current_context().exit(status)


@click.command()
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy a file: SOURCE NAME:TARGET into a guest, NAME:SOURCE TARGET out of it.

    The file appears under its name when it is complete. If the target is a folder, it keeps its name.

    \b
    Examples:
      vpt guest copy setup.sh vm1:/root/
      vpt guest copy vm1:/var/log/messages .
    """
    from vpt.provision import ssh as remote

    into, out = _split(target), _split(source)
    if (into is None) == (out is None):
        raise click.UsageError("one of the two must be NAME:PATH; a file here with a : in it is ./FILE")
    guests = guests_here()
    if into is not None:
        name, path = into
        done = f"{name}:{remote.upload(guests.reachable(name), Path(source), path)}"
    else:
        assert out is not None
        name, path = out
        done = str(remote.download(guests.reachable(name), path, Path(target)))
    if sys.stderr.isatty():
        click.echo(done, err=True)


def _split(text: str) -> tuple[str, str] | None:
    name, colon, path = text.partition(":")
    return (name, path or ".") if colon and name and "/" not in name else None


@click.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
def console(name: str, follow: bool) -> None:
    """Print what the guest has written to its console since it was started.

    \b
    Examples:
      vpt guest console vm1
      vpt guest console vm1 --follow
    """
    from vpt.qemu import console_text

    guests = guests_here()
    guests.store.load(name)
    path = guests.store.folder(name).console
    at = 0
    while True:
        if path.exists():
            with path.open("rb") as file:
                # Started anew, it begins anew.
                at = 0 if path.stat().st_size < at else at
                file.seek(at)
                data = file.read()
                at += len(data)
            click.echo(console_text(data), nl=False)
        if not follow:
            return
        time.sleep(_FOLLOW_S)
