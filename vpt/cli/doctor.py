# SPDX-License-Identifier: BSD-2-Clause
"""vpt doctor."""

from __future__ import annotations

import click

from vpt.cli._common import emit_json, json_option, paths
from vpt.errors import EXIT_MISSING, EXIT_OK

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}


@click.command()
@click.option(
    "--boot/--no-boot", default=True, help="Boot a guest to see whether KVM really works (seconds)."
)
@json_option
def doctor(boot: bool, as_json: bool) -> int:
    """Say what this host can do, and what to do about the rest.

    Nothing is guessed: packets go through a switch, QEMU is asked, a guest image is built, and a guest boots
    where there is KVM. Below what is missing stands the command that helps. Exit code 3 if something is
    missing that vpt or its virtual machines can't do without.

    \b
    Examples:
      vpt doctor
      vpt doctor --no-boot --json
    """
    from vpt.doctor import examine

    found = []
    for check in examine(paths(), boot=boot):
        found.append(check)
        if not as_json:
            verdict = click.style(f"{check.verdict:<8}", fg=_COLOURS[check.verdict])
            click.echo(f"{verdict} {check.name:<15} {check.what}")
            if check.fix:
                click.echo(f"{'':<24} -> {check.fix}")
    bad = [check.name for check in found if check.verdict == "missing"]
    if as_json:
        emit_json("doctor", {"ready": not bad, "checks": [check.as_dict() for check in found]})
    else:
        click.echo(f"\nmissing: {', '.join(bad)}" if bad else "\nnothing is missing; try: vpt demo")
    return EXIT_MISSING if bad else EXIT_OK
