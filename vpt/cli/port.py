# SPDX-License-Identifier: BSD-2-Clause
"""vpt port: add, del, set, list."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import connect, emit_json, json_option
from vpt.cli._render import plug_lines, print_ports
from vpt.cli._rules import rule_options, rule_params, rules_text
from vpt.errors import NotFoundError

if TYPE_CHECKING:
    from vpt.daemon.client import Client

__all__ = ["port"]

_POLICIES = click.Choice(["poll", "sleep", "notify", "adaptive"])


@click.group()
def port() -> None:
    """Plug things into a switch, and unplug them.

    \b
    Kinds:
      passthrough   a guest with vpt_net, on the host's own rings in a PCI BAR (ivshmem)
      vhost-user    a guest with its stock virtio-net driver
      app           a process on this host, such as vpt's own packet generator
      tap           a network interface of this host
      null          takes everything and gives nothing, for measuring

    \b
    Examples:
      vpt port add sw0 vm1 --kind vhost-user
      vpt port list
      vpt port del vm1
    """


@port.command()
@click.argument("switch")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["passthrough", "vhost-user", "app", "tap", "null"]),
    required=True,
    help="What is at its other end; see vpt port --help.",
)
@click.option("--pairs", type=int, help="Queue pairs.  [default: 1]")
@click.option("--mac", help="Address of the guest: nobody else may send from it.")
@click.option("--mtu", type=int, help="Largest IP packet.  [default: the switch's]")
@click.option(
    "--policy", type=_POLICIES, help="When the host's side spins, sleeps or notifies.  [default: adaptive]"
)
@click.option("--spin-us", type=int, help="adaptive: microseconds to spin before sleeping.  [default: 50]")
@click.option("--sleep-us", type=int, help="sleep: microseconds to sleep when idle.  [default: 50]")
@click.option(
    "--worker", type=int, help="Worker that serves it.  [default: each queue goes to the one with the fewest]"
)
@click.option(
    "--lossless", is_flag=True, help="Let the sender wait when the destination is full, instead of dropping."
)
@click.option("--max-macs", type=int, help="Addresses that may be learned behind it.  [default: 1024]")
@click.option("--socket", metavar="PATH", help="Where its peer connects.  [default: in vptd's folder]")
@click.option("--socket-mode", metavar="OCTAL", help="Permissions of the socket.  [default: 0600]")
@click.option("--slots", type=int, help="passthrough, app: slots of each ring.  [default: 1024]")
@click.option("--buf-size", type=int, help="passthrough, app: bytes per buffer.  [default: 2112]")
@click.option("--ifname", help="tap: name of the interface.  [default: the port's]")
@click.option("--touch", is_flag=True, help="null: read each byte.")
@rule_options
@click.option("--may-exist", is_flag=True, help="Succeed if there is one with the same settings.")
@json_option
def add(switch: str, name: str, as_json: bool, **options: Any) -> None:
    """Add the port NAME to SWITCH.

    Its socket exists when the command is done, so that a virtual machine can be started right away; `vpt show
    NAME` says how.

    \b
    Examples:
      vpt port add sw0 vm1 --kind vhost-user --mac 52:54:00:00:00:01
      vpt port add sw0 vm2 --kind passthrough --pairs 2 --policy poll
      vpt port add sw0 up0 --kind tap --ifname tap0
      vpt port add sw0 web --kind vhost-user --vlan 10 --rate-tx 1G
      vpt port add sw0 router --kind vhost-user --trunk 10,20-29 --native 1
    """
    rules = rule_params(options)
    params = {key: value for key, value in options.items() if value is not None} | rules
    if times := {key: params.pop(key) for key in ("spin_us", "sleep_us") if key in params}:
        params["policy"] = {"kind": params.get("policy", "adaptive"), **times}
    elif "policy" in params:
        params["policy"] = {"kind": params["policy"]}
    if "socket" in params:
        params["socket"] = os.path.abspath(params["socket"])
    with connect() as vptd:
        added = vptd.call("port.add", switch=switch, name=name, **params)
    if as_json:
        emit_json("port", added)
        return
    click.echo(f"port {name} ({added['kind']}) is on switch {switch}")
    for line in plug_lines(added):
        click.echo(line)


@port.command("del")
@click.argument("name")
@click.option("--if-exists", is_flag=True, help="Succeed if there is none.")
@json_option
def delete(name: str, if_exists: bool, as_json: bool) -> None:
    """Delete the port NAME and its socket; a guest that is plugged in loses its link, and a warning says so.

    To take it out of the guest as well, use vpt detach.

    \b
    Example:
      vpt port del vm1 --if-exists
    """
    with connect() as vptd:
        user = _user_of(vptd, name)
        done = vptd.call("port.del", name=name, if_exists=if_exists)
    if user:
        click.echo(f"warning: {name} was in use by {user}, which has lost its link", err=True)
    if as_json:
        emit_json("changed", {"name": name, **done})
    else:
        click.echo(f"deleted port {name}" if done["changed"] else f"there was no port {name}")


def _user_of(vptd: Client, name: str) -> str | None:
    """Who is plugged in: the VM that the port was made for, or at least a process. None: nobody."""
    try:
        shown = vptd.call("port.show", name=name)
    except NotFoundError:
        return None
    if shown["state"] != "up":
        return None
    peer = shown["peer"]
    process = f"process {peer['pid']}" if peer and peer["pid"] else "its peer"
    return f"{shown['owner']} ({process})" if shown["owner"] else process


@port.command("set")
@click.argument("name")
@click.option("--link", type=click.Choice(["up", "down"]), help="Down: nothing is delivered, nothing taken.")
@click.option("--mtu", type=int, help="vhost-user, tap, null: largest IP packet.")
@click.option("--policy", type=_POLICIES, help="When the host's side spins, sleeps or notifies.")
@click.option("--spin-us", type=int, help="adaptive: microseconds to spin before sleeping.")
@click.option("--sleep-us", type=int, help="sleep: microseconds to sleep when idle.")
@rule_options
@click.option("--no-vlan", is_flag=True, help="All VLANs, with their tags.")
@json_option
def set_(name: str, no_vlan: bool, as_json: bool, **options: Any) -> None:
    """Change the port NAME while packets flow.

    What is not named stays as it is. A limit of none is taken away; those of one direction are given
    together.

    \b
    Examples:
      vpt port set vm1 --link down
      vpt port set vm1 --mtu 9000
      vpt port set vm1 --policy adaptive --spin-us 20
      vpt port set vm1 --vlan 20 --isolated
      vpt port set vm1 --rate-rx 100M --packets-rx 20k --broadcast-limit 100
    """
    rules = rule_params(options)
    params = {key: value for key, value in options.items() if value is not None} | rules
    if no_vlan and "vlan" in rules:
        raise click.UsageError("--no-vlan and VLANs exclude each other")
    if no_vlan:
        params["vlan"] = None
    if not params:
        raise click.UsageError("nothing to change; vpt port set --help shows what there is")
    with connect() as vptd:
        changed = vptd.call("port.set", name=name, **params)
    if as_json:
        emit_json("port", changed)
    else:
        more = "".join(f", {what} {value}" for what, value in rules_text(changed))
        policy = changed["policy"]["kind"]
        click.echo(f"port {name}: link {changed['link']}, mtu {changed['mtu']}, policy {policy}{more}")


@port.command("list")
@click.option("--switch", help="Only the ports of this switch.")
@json_option
def list_(switch: str | None, as_json: bool) -> None:
    """List the ports.

    \b
    Examples:
      vpt port list
      vpt port list --switch sw0 --json
    """
    with connect() as vptd:
        found = vptd.call("port.list", **({"switch": switch} if switch else {}))
    if as_json:
        emit_json("ports", found)
    else:
        print_ports(found["ports"])
