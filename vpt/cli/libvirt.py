# SPDX-License-Identifier: BSD-2-Clause
"""vpt libvirt: render, watch, hook."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from vpt.cli._common import emit_json, json_option, paths, stoppable
from vpt.errors import ConflictError, GuestError, MissingError, UsageError

if TYPE_CHECKING:
    from vpt.libvirt_plugin.metadata import Plug

__all__ = ["libvirt"]


def _text(data: bytes) -> str:
    """As it is: reading it as text would change its line ends."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError("the domain's XML is not in UTF-8", hint="virsh dumpxml prints it so") from None


@click.group()
def libvirt() -> None:
    """Change a domain's XML by hand, and let libvirt bring ports up by itself.

    `vpt attach` does all of it for a domain that libvirt has already.
    """


@libvirt.command()
@click.argument("file", type=click.File("rb"))
@click.option("--switch", help="Switch to plug it into.")
@click.option(
    "--kind",
    type=click.Choice(["vhost-user", "passthrough"]),
    default="vhost-user",
    show_default=True,
    help="What the guest has: virtio-net, or vpt_net.",
)
@click.option("--port", metavar="NAME", help="Name of the port.  [default: the domain's]")
@click.option("--mac", help="Address of the guest.  [default: a random one]")
@click.option("--pairs", type=int, help="Queue pairs.  [default: 1]")
@click.option("--slots", type=int, help="passthrough: slots of each ring.  [default: 1024]")
@click.option("--packed", is_flag=True, help="vhost-user: offer the guest packed virtqueues.")
@click.option("--remove", is_flag=True, help="Take the port NAME out instead.")
def render(
    file: BinaryIO,
    switch: str | None,
    kind: Any,
    port: str | None,
    packed: bool,
    remove: bool,
    **options: Any,
) -> None:
    """Print the domain in FILE with a vpt port. Nothing is done: no port is made, libvirt is not asked.

    With the hook installed, the port comes up when the domain starts. All else in FILE stays as it is, byte
    for byte, and --remove gives back what there was.

    \b
    Examples:
      vpt libvirt render web1.xml --switch sw0 > web1-vpt.xml
      virsh dumpxml --inactive web1 | vpt libvirt render - --switch sw0 --kind passthrough
    """
    from vpt.libvirt_plugin import rules, xml
    from vpt.libvirt_plugin._document import domain_element
    from vpt.libvirt_plugin.attach import free_name, random_mac
    from vpt.libvirt_plugin.metadata import Plug

    before = _text(file.read())
    _, domain = domain_element(before)
    name_element = domain.find("name")
    name = port or free_name(name_element.text if name_element else "", set())
    if remove:
        click.echo(xml.remove_port(before, name), nl=False)
        return
    if switch is None:
        raise click.UsageError("Missing option '--switch'.")
    settings = {"mac": random_mac()} | {key: value for key, value in options.items() if value is not None}
    where = paths()
    plug = Plug(name, switch, kind, str(where.port_socket(name)), str(where.runtime), settings, packed=packed)
    rules.check_plug(plug)
    warnings = _check_qemu(before, plug)
    after = xml.add_port(before, plug)
    rules.check_domain(after)
    for warning in [*warnings, *rules.warnings(after), *rules.plug_warnings(plug)]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(after, nl=False)


def _check_qemu(domain: str, plug: Plug) -> list[str]:
    """Whether its QEMU would crash. Of one that this host does not have, nobody knows: a warning."""
    from vpt.libvirt_plugin import rules
    from vpt.libvirt_plugin._document import domain_element
    from vpt.qemu import find_qemu

    emulator = domain_element(domain)[1].find("devices/emulator")
    try:
        version = find_qemu(emulator.text.strip() if emulator is not None else None).number
    except (GuestError, MissingError):
        try:
            rules.check_config(domain, plug, 0)
        except ConflictError as error:
            return [f"if its QEMU is older than 10: {error.message}; {error.hint}"]
        return []
    rules.check_config(domain, plug, version)
    return []


@libvirt.command()
@click.option("--connect", "uri", metavar="URI", help="Which libvirt.  [default: libvirt's own]")
@click.option("--once", is_flag=True, help="Put right what is wrong now, and end.")
def watch(uri: str | None, once: bool) -> None:
    """Follow libvirt's domains: delete the ports that one leaves behind, and connect those that lost QEMU.

    A port that was made for a domain goes when the domain has ended or is undefined, unless its configuration
    has the port. After a restart of vptd, QEMU is connected again where libvirt keeps it from doing that by
    itself (9.0 does, for devices attached while the domain runs).

    Runs until it is stopped; libvirtd and vptd may come and go. As a service: vpt-libvirt-watch.service.

    \b
    Examples:
      vpt libvirt watch --connect qemu:///system
      vpt daemon stop && vpt daemon start && vpt libvirt watch --once
    """
    from vpt.daemon.manager import notify
    from vpt.libvirt_plugin.watch import Watch

    with stoppable(), suppress(KeyboardInterrupt):
        Watch(paths(), uri, click.echo).run(once=once, ready=lambda: notify("READY=1"))


@libvirt.group()
def hook() -> None:
    """Let libvirt bring a domain's ports up before it starts, and take them down after it has stopped."""


_DIR = click.option(
    "--hooks-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="libvirt's folder of hooks.  [default: /etc/libvirt/hooks]",
)


@hook.command()
@_DIR
def install(hooks_dir: Path | None) -> None:
    """Put the hook where libvirt looks for it: the system's, and that of each user's session.

    A domain whose vptd is not there then does not start, and the error says what to do.

    \b
    Example:
      vpt libvirt hook install
    """
    from vpt.libvirt_plugin import hook as plugin

    where = hooks_dir or plugin.HOOKS
    restart = plugin.install(where)
    click.echo(f"installed {plugin.status(where).path}")
    if restart:
        click.echo("libvirtd looks for hooks when it starts: systemctl restart libvirtd (domains go on)")


@hook.command()
@_DIR
def remove(hooks_dir: Path | None) -> None:
    """Take the hook away.

    \b
    Example:
      vpt libvirt hook remove
    """
    from vpt.libvirt_plugin import hook as plugin

    where = hooks_dir or plugin.HOOKS
    removed = plugin.remove(where)
    click.echo(f"removed {plugin.status(where).path}" if removed else f"there was no hook in {where}")


@hook.command()
@_DIR
@json_option
def status(hooks_dir: Path | None, as_json: bool) -> None:
    """Say whether the hook is there: installed, outdated, foreign or absent.

    \b
    Example:
      vpt libvirt hook status --json
    """
    from vpt.libvirt_plugin import hook as plugin

    found = plugin.status(hooks_dir or plugin.HOOKS)
    if as_json:
        emit_json("libvirt-hook", {"path": str(found.path), "state": found.state})
    else:
        click.echo(f"{found.state}: {found.path}")
