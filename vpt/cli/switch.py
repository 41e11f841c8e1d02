# SPDX-License-Identifier: BSD-2-Clause
"""vpt switch: add, del, list, macs."""

from __future__ import annotations

import click

from vpt.cli._common import connect, emit_json, json_option, print_table

__all__ = ["switch"]


@click.group()
def switch() -> None:
    """Make and delete switches.

    A switch forwards between its ports by MAC address, and learns who is where from what they send.

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
@click.option("--may-exist", is_flag=True, help="Succeed if there is one with the same settings.")
@json_option
def add(name: str, mac_entries: int, mac_age: int, may_exist: bool, as_json: bool) -> None:
    """Make the switch NAME.

    \b
    Examples:
      vpt switch add sw0
      vpt switch add lab --mac-entries 65536 --may-exist
    """
    with connect() as vptd:
        done = vptd.call(
            "switch.add", name=name, mac_entries=mac_entries, mac_age_s=mac_age, may_exist=may_exist
        )
    if as_json:
        emit_json("changed", {"name": name, **done})
    else:
        click.echo(f"added switch {name}" if done["changed"] else f"switch {name} is there already")


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
        ["SWITCH", ">PORTS", ">ADDRESSES", ">TABLE", ">AGEING"],
        [
            (s["name"], str(len(s["ports"])), str(s["macs"]), str(s["mac_entries"]), f"{s['mac_age_s']} s")
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
    rows = sorted((entry["mac"], entry["port"], f"{entry['age_s']} s") for entry in found["macs"])
    print_table(["ADDRESS", "PORT", ">AGE"], rows)
