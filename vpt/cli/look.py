# SPDX-License-Identifier: BSD-2-Clause
"""vpt ls, vpt show."""

from __future__ import annotations

from typing import Any

import click

from vpt.cli._common import connect, emit_json, json_option, print_table, state_style, typed
from vpt.cli._render import plug_lines, policy_text, print_ports
from vpt.cli._rules import rules_text
from vpt.errors import NotFoundError

__all__ = ["ls", "show"]


@click.command()
@json_option
def ls(as_json: bool) -> None:
    """List all switches and ports.

    \b
    STATE of a port:
      up       its peer is there and moves packets
      down     nobody is there yet, or the link was set down
      broken   taken down because its peer broke the rules; a reset of the peer revives it
      failed   could not be set up when vptd came back; delete it and add it again

    \b
    Example:
      vpt ls --json
    """
    with connect() as vptd:
        found = vptd.call("list")
    if as_json:
        emit_json("ls", found)
        return
    if not found["switches"]:
        click.echo(f"no switch yet; add one with: {typed('switch', 'add', 'sw0')}")
        return
    empty = [switch["name"] for switch in found["switches"] if not switch["ports"]]
    if found["ports"]:
        print_ports(found["ports"])
    if empty:
        click.echo(f"switches without ports: {', '.join(empty)}")


@click.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show all there is to know about a switch or a port.

    For a port: its settings, its peer, how to plug a guest in, and every counter that is not zero.

    \b
    Examples:
      vpt show vm1
      vpt show sw0 --json
    """
    with connect() as vptd:
        everything = vptd.call("list")
        switches = {switch["name"]: switch for switch in everything["switches"]}
        ports = {port["name"] for port in everything["ports"]}
        if name in switches:
            found, what = switches[name], "switch"
        elif name in ports:
            found, what = vptd.call("port.show", name=name), "port"
        else:
            import difflib

            close = difflib.get_close_matches(name, [*switches, *ports], n=1)
            hint = f"did you mean {close[0]}?" if close else f"see what there is: {typed('ls')}"
            raise NotFoundError(f"no switch or port {name!r}", hint=hint)
    if as_json:
        emit_json("show", {"what": what, what: found})
    elif what == "switch":
        _show_switch(found)
    else:
        _show_port(found)


def _show_switch(switch: dict[str, Any]) -> None:
    click.echo(f"switch {switch['name']}")
    click.echo(f"  addresses  {switch['macs']} of {switch['mac_entries']}, kept {switch['mac_age_s']} s")
    click.echo(f"  mtu        {switch['mtu']}")
    click.echo(f"  isolation  {'yes' if switch['isolation'] else 'no'}")
    click.echo(f"  ports      {', '.join(switch['ports']) or 'none'}")


def _show_port(port: dict[str, Any]) -> None:
    click.echo(f"port {port['name']} on switch {port['switch']}")
    peer = port["peer"]
    lines = {
        "kind": port["kind"],
        "state": state_style(port["state"]) + (f": {port['reason']}" if port["reason"] else ""),
        **({"problem": problem} if (problem := port["transport"].get("problem")) else {}),
        "link": port["link"],
        "peer": f"process {peer['pid']} of user {peer['uid']}" if peer else "none",
        "driver": port["driver"] or "-",
        "features": port["features"] or "-",
        "pairs": port["pairs"],
        "mac": port["mac"] or "-",
        "mtu": port["mtu"],
        "policy": policy_text(port["policy"]),
        **dict(rules_text(port)),
        "workers": ",".join(map(str, port["workers"])) or "-",
        "lossless": "yes" if port["lossless"] else "no",
        "socket": port["socket"] or "-",
        "owner": port["owner"] or "-",
    }
    for key, value in lines.items():
        click.echo(f"  {key:<13}  {value}")
    for line in plug_lines(port):
        click.echo(f"  {line}")
    counted = [(name, str(value)) for name, value in port["counters"].items() if value]
    if counted:
        print_table(["  COUNTER", ">VALUE"], [(f"  {name}", value) for name, value in counted])
