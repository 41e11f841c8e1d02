# SPDX-License-Identifier: BSD-2-Clause
"""vpt switch: add, set, del, list, macs."""

from __future__ import annotations

from typing import Any

import click

from vpt.cli._common import connect, emit_json, json_option, print_table

__all__ = ["switch"]


@click.group()
def switch() -> None:
    """Make, change and delete switches.

    A switch forwards between its ports by MAC address, and learns who is where from what they send. VLANs,
    isolation and limits are set at its ports: vpt port add --help.

    \b
    Examples:
      vpt switch add sw0
      vpt switch list
      vpt switch macs sw0
    """


@switch.command()
@click.argument("name")
@click.option(
    "--mac-entries", type=int, default=4096, show_default=True, help="Size of the MAC table, a power of two."
)
@click.option(
    "--mac-age",
    type=int,
    default=300,
    show_default=True,
    help="Seconds after which a silent address is forgotten.",
)
@click.option(
    "--mtu",
    type=int,
    default=1500,
    show_default=True,
    help="Largest IP packet, where a port does not say.",
)
@click.option("--isolation", is_flag=True, help="Isolate its ports, but for those that say otherwise.")
@click.option("--may-exist", is_flag=True, help="Succeed if there is one with the same settings.")
@json_option
def add(name: str, mac_age: int, as_json: bool, **settings: Any) -> None:
    """Make the switch NAME.

    \b
    Examples:
      vpt switch add sw0
      vpt switch add lab --mac-entries 65536 --may-exist
      vpt switch add guests --isolation --mtu 9000
    """
    with connect() as vptd:
        done = vptd.call("switch.add", name=name, mac_age_s=mac_age, **settings)
    if as_json:
        emit_json("changed", {"name": name, **done})
    else:
        click.echo(f"added switch {name}" if done["changed"] else f"switch {name} is there already")


@switch.command("set")
@click.argument("name")
@click.option("--mac-age", type=int, metavar="SECONDS", help="Forget an address that is silent for so long.")
@click.option(
    "--isolation/--no-isolation",
    default=None,
    help="Isolate its ports from each other, but for those that say otherwise.",
)
@json_option
def set_(name: str, mac_age: int | None, isolation: bool | None, as_json: bool) -> None:
    """Change the switch NAME while packets flow.

    \b
    Examples:
      vpt switch set sw0 --mac-age 60
      vpt switch set sw0 --isolation
    """
    params = {"mac_age_s": mac_age, "isolation": isolation}
    params = {key: value for key, value in params.items() if value is not None}
    if not params:
        raise click.UsageError("nothing to change: give --mac-age or --isolation")
    with connect() as vptd:
        changed = vptd.call("switch.set", name=name, **params)
    if as_json:
        emit_json("switch", changed)
    else:
        isolated = "isolated from each other" if changed["isolation"] else "not isolated"
        click.echo(f"switch {name}: ageing {changed['mac_age_s']} s, ports {isolated}")


@switch.command("del")
@click.argument("name")
@click.option("--if-exists", is_flag=True, help="Succeed if there is none.")
@json_option
def delete(name: str, if_exists: bool, as_json: bool) -> None:
    """Delete the switch NAME, which must have no ports left.

    \b
    Example:
      vpt switch del sw0 --if-exists
    """
    with connect() as vptd:
        done = vptd.call("switch.del", name=name, if_exists=if_exists)
    if as_json:
        emit_json("changed", {"name": name, **done})
    else:
        click.echo(f"deleted switch {name}" if done["changed"] else f"there was no switch {name}")


@switch.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the switches.

    \b
    Example:
      vpt switch list --json
    """
    with connect() as vptd:
        found = vptd.call("switch.list")
    if as_json:
        emit_json("switches", found)
        return
    print_table(
        ["SWITCH", ">PORTS", ">ADDRESSES", ">TABLE", ">AGEING", ">MTU", "ISOLATION"],
        [
            (
                s["name"],
                str(len(s["ports"])),
                str(s["macs"]),
                str(s["mac_entries"]),
                f"{s['mac_age_s']} s",
                str(s["mtu"]),
                "yes" if s["isolation"] else "no",
            )
            for s in found["switches"]
        ],
    )


@switch.command()
@click.argument("name")
@json_option
def macs(name: str, as_json: bool) -> None:
    """List the addresses that the switch NAME has learned, and behind which port each is.

    \b
    Example:
      vpt switch macs sw0
    """
    with connect() as vptd:
        found = vptd.call("switch.macs", name=name)
    if as_json:
        emit_json("macs", found)
        return
    rows = sorted(
        (entry["mac"], str(entry["vlan"] or "-"), entry["port"], f"{entry['age_s']} s")
        for entry in found["macs"]
    )
    print_table(["ADDRESS", ">VLAN", "PORT", ">AGE"], rows)
