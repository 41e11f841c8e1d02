# SPDX-License-Identifier: BSD-2-Clause
"""vpt attach, vpt detach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vpt.cli._common import connect, emit_json, json_option, paths

__all__ = ["attach", "detach"]

_CONNECT = click.option("--connect", "uri", metavar="URI", help="Which libvirt.  [default: libvirt's own]")


def _told_apart(vm: str, uri: str | None, **only_for_libvirt: bool) -> tuple[Path | None, str]:
    """The QMP socket, if it is one, and the VM's name. UsageError: options that are not for a QMP socket.

    What has a slash is no domain's name; what else looks like a path is one where a libvirt is named.
    """
    from vpt.qemu import names_a_socket, split_name

    kind, name = split_name(vm, ("qmp", "libvirt"))
    if kind is None:
        kind = "qmp" if "/" in vm or (uri is None and names_a_socket(vm)) else "libvirt"
    if kind == "libvirt":
        return None, name
    for option, given in only_for_libvirt.items():
        if given:
            raise click.UsageError(
                f"--{option} is for libvirt domains: a QEMU by itself has no configuration"
            )
    if uri is not None:
        raise click.UsageError(f"--connect is for libvirt domains, and {name} is a QMP socket")
    return Path(name), name


@click.command()
@click.argument("vm")
@click.option("--switch", required=True, help="Switch to plug it into.")
@click.option(
    "--kind",
    type=click.Choice(["vhost-user", "passthrough"]),
    default="vhost-user",
    show_default=True,
    help="The guest's driver: its own virtio-net, or vpt_net.",
)
@click.option("--port", metavar="NAME", help="Name of the port.  [default: the VM's, with a number if taken]")
@click.option("--live", is_flag=True, help="Plug it into the running VM.  [default: if it runs]")
@click.option(
    "--config", is_flag=True, help="Plug it in from the next start on.  [default: if it does not run]"
)
@click.option(
    "--print-diff",
    is_flag=True,
    help="Show the change to the domain's XML, of a QEMU the commands that it would get, and do nothing.",
)
@click.option("--mac", help="Address of the guest.  [default: a random one]")
@click.option("--pairs", type=int, help="Queue pairs.  [default: 1]")
@click.option("--mtu", type=int, help="Largest IP packet.  [default: the switch's]")
@click.option(
    "--policy",
    type=click.Choice(["poll", "sleep", "notify", "adaptive"]),
    help="When the host's side spins, sleeps or notifies.  [default: adaptive]",
)
@click.option(
    "--slots", type=int, help="passthrough: slots of each ring.  [default: 1024; on a running q35, 256]"
)
@click.option("--packed", is_flag=True, help="vhost-user: offer the guest packed virtqueues.")
@click.option("--socket-mode", metavar="OCTAL", help="Permissions of the port's socket.  [default: 0600]")
@_CONNECT
@json_option
def attach(
    vm: str,
    switch: str,
    kind: Any,
    port: str | None,
    live: bool,
    config: bool,
    print_diff: bool,
    packed: bool,
    uri: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Plug VM into a switch: make a port, and the device for it.

    VM is the name of a libvirt domain, or the path of a QMP socket for a QEMU without libvirt; libvirt: or
    qmp: in front decides. If anything fails, VM and switch are as before. A --port that the domain's
    configuration has is put into the running domain as it is there, and the other way round; one that is
    everywhere already is left alone. One that was made for no VM (by vpt port add, or a topology) is plugged
    in as it is.

    \b
    Examples:
      vpt attach web1 --switch sw0
      vpt attach web1 --switch sw0 --kind passthrough --live --config
      vpt attach web1 --switch sw0 --config --print-diff
      vpt attach /run/vm7.qmp --switch sw0
    """
    from vpt.libvirt_plugin import attach as plugin
    from vpt.libvirt_plugin._connection import open_libvirt

    socket, vm = _told_apart(vm, uri, config=config)
    settings = {key: value for key, value in options.items() if value is not None}
    request = plugin.Request(
        vm=vm,
        switch=switch,
        kind=kind,
        port=port,
        settings=settings,
        live=live,
        config=config,
        packed=packed,
    )
    if socket is not None:
        from vpt.libvirt_plugin import qmp

        with connect() as vptd:
            if print_diff:
                _print_diff(vm, qmp.print_diff(socket, vptd, request), as_json=as_json)
                return
            done = qmp.attach(socket, vptd, request)
    else:
        with connect() as vptd, open_libvirt(uri) as libvirt:
            if print_diff:
                _print_diff(vm, plugin.print_diff(libvirt, vptd, request), as_json=as_json)
                return
            done = plugin.attach(libvirt, vptd, request)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    plug = done.plug
    if as_json:
        emit_json(
            "attached",
            {"vm": done.vm, "port": plug.name, "switch": plug.switch, "kind": plug.kind, "mac": plug.mac}
            | {"where": list(done.where)},
        )
        return
    how = "plugs" if done.changed else "already plugs"
    click.echo(f"{plug.name} ({plug.kind}, {plug.mac}) {how} {vm} into {switch}: {' and '.join(done.where)}")


def _print_diff(vm: str, diff: str, *, as_json: bool) -> None:
    if as_json:
        emit_json("attach-diff", {"vm": vm, "diff": diff})
    else:
        click.echo(diff, nl=False)


@click.command()
@click.argument("vm")
@click.argument("port", required=False)
@click.option("--live", is_flag=True, help="Only from the running domain.")
@click.option("--config", is_flag=True, help="Only from what it starts with next time.")
@_CONNECT
@json_option
def detach(vm: str, port: str | None, live: bool, config: bool, uri: str | None, as_json: bool) -> None:
    """Unplug VM: take out the device of PORT, wait until the guest has let go of it, and delete the port.

    PORT may be left out if the VM has one only. With --live or --config alone, the port itself stays for as
    long as the other one has it. One that was made for no VM (by a topology, or vpt port add) always stays.

    \b
    Examples:
      vpt detach web1
      vpt detach web1 web1-2
      vpt detach /run/vm7.qmp
    """
    from vpt.daemon.client import Client
    from vpt.daemon.runtime import locate
    from vpt.libvirt_plugin import attach as plugin
    from vpt.libvirt_plugin._connection import open_libvirt

    socket, vm = _told_apart(vm, uri, live=live, config=config)
    if socket is not None:
        from vpt.libvirt_plugin import qmp

        with connect() as vptd:
            done = qmp.detach(socket, vptd, port)
    else:
        with open_libvirt(uri) as libvirt:
            done = plugin.detach(
                libvirt,
                lambda runtime: Client(locate(runtime).control),
                vm,
                port,
                live=live,
                config=config,
                runtime=paths().runtime,
            )
    if as_json:
        emit_json(
            "detached", {"vm": vm, "port": done.port, "where": list(done.where), "deleted": not done.kept}
        )
        return
    what = f"still there: {done.kept}" if done.kept else "deleted"
    where = " and ".join(done.where) or "the VM has ended"
    click.echo(f"{done.port} is unplugged from {vm}: {where}; the port is {what}")
