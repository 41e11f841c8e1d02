# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest boot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import emit_json, json_option, progress, stoppable, typed, wait_options
from vpt.cli._guest_shown import guest_data, guests_here
from vpt.errors import ExistsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from vpt.provision.config import VmConfig
    from vpt.provision.guests import Guests

__all__ = ["boot"]


def _options_of_boot(function: Any) -> Any:
    """Named as the keys of a topology are."""
    options = (
        click.option("--image", help="tiny, debian, a path, or one of ls --images.  [default: tiny]"),
        click.option("--kernel", help="Boot this kernel, not what is on the disk (cloud images)."),
        click.option("--initrd", help="With --kernel."),
        click.option("--append", help="To the kernel's command line."),
        click.option("--via", type=click.Choice(["qemu", "libvirt"]), help="Who runs it.  [default: qemu]"),
        click.option("--connect", metavar="URI", help="Which libvirt.  [default: libvirt's own]"),
        click.option("--cpus", type=int, help="[default: 1]"),
        click.option("--memory", "memory_mib", type=int, metavar="MIB", help="[default: 256]"),
        click.option("--disk", "disks", multiple=True, metavar="SIZE|PATH", help="A further disk."),
        click.option("--root-size", "root_gib", type=int, metavar="GIB", help="Grow the root disk."),
        click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), help="[default: auto]"),
        click.option("--ssh-key", metavar="PATH", help="Private key to log in with.  [default: one is made]"),
        click.option("--user-data", metavar="PATH", help="For cloud-init (cloud images)."),
        click.option("--internet", is_flag=True, default=None, help="Let it out by this host's network."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("name")
@click.option("--port", "existing", multiple=True, metavar="PORT", help="Plug this port in; may be repeated.")
@click.option("--switch", help="Make a port on this switch, and plug it in.")
@click.option(
    "--kind",
    type=click.Choice(["vhost-user", "passthrough"]),
    help="Of that port: the guest's own virtio-net, or vpt_net.  [default: vhost-user]",
)
@click.option("--mac", help="Of that port.  [default: a random one]")
@click.option("--pairs", type=int, help="Of that port: queue pairs.  [default: 1]")
@click.option("--address", multiple=True, metavar="IP/LEN", help="Of the guest's first port.")
@click.option("--gateway", metavar="IP", help="The guest's default route, by its first port.")
@_options_of_boot
@click.option(
    "--may-exist", is_flag=True, help="Succeed if there is one with the same settings; start it if need be."
)
@wait_options
@json_option
def boot(
    name: str,
    existing: tuple[str, ...],
    switch: str | None,
    address: tuple[str, ...],
    gateway: str | None,
    may_exist: bool,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a guest and wait until it is up. Without any option, start one again that was stopped.

    In the guest, the interfaces on vpt ports are vpt0, vpt1, ... in the order given; mgmt is the one by which
    this host logs in. If anything fails, or the guest is not up in time, nothing is left of it.

    \b
    Examples:
      vpt guest boot vm1 --switch lab --address 10.0.1.1/24
      vpt guest boot vm2 --switch lab --kind passthrough --memory 128
      vpt guest boot web --image debian --memory 512 --disk 10G --via libvirt
      vpt guest boot ci --image ./noble.qcow2 --user-data ci.yaml --internet
    """
    guests = guests_here()
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    port_settings = {key: given.pop(key) for key in ("kind", "mac", "pairs")}
    given = {key: value for key, value in given.items() if value not in (None, [])}
    if switch is None and any(value is not None for value in port_settings.values()):
        raise click.UsageError("--kind, --mac and --pairs are for the port that --switch makes")
    asked = bool(given or existing or switch or address or gateway)
    if not asked and not guests.store.exists(name):
        names = ", ".join(guests.store.names()) or "none"
        raise NotFoundError(
            f"there is no guest {name!r} to start again (there are: {names})",
            hint=f"make one: {typed('guest', 'boot', name, '--image', 'tiny')}",
        )
    with stoppable():
        if guests.store.exists(name) and (may_exist or not asked):
            ran = guests.view(name).state == "running"
            _boot_again(guests, name, switch, existing, given, asked=asked)
            undo: Callable[[], object] | None = None if ran else partial(guests.stop, name, 0)
        else:
            config, new = _config(guests, name, existing, switch, port_settings, address, gateway, given)
            _make(guests, config, new)
            undo = partial(guests.remove, name)
        if not no_wait:
            _wait(guests, name, timeout, undo)
    view = guests.view(name)
    if as_json:
        emit_json("guest", guest_data(view))
        return
    state = "is up" if not no_wait else "is started"
    click.echo(f"{name} {state}: {typed('guest', 'ssh', name)}")


def _make(guests: Guests, config: VmConfig, new: list[Any]) -> None:
    say = progress()
    record = guests.boot(config, new, say)
    say(f"{config.name}: {config.in_words()}, {record.accel}")


def _wait(guests: Guests, name: str, timeout: float | None, undo: Callable[[], object] | None) -> None:
    """Until it is up; else it is as it was before."""
    progress()(f"waiting until {name} is up")
    try:
        guests.wait(name, timeout)
    except BaseException:
        if undo is not None:
            undo()
        raise


def _config(
    guests: Guests,
    name: str,
    existing: tuple[str, ...],
    switch: str | None,
    port_settings: dict[str, Any],
    address: tuple[str, ...],
    gateway: str | None,
    given: dict[str, Any],
) -> tuple[VmConfig, list[Any]]:
    """The machine, and the port that is to be made for it."""
    from vpt.provision.config import VmConfig

    ports: list[dict[str, Any]] = [{"port": port} for port in existing]
    with _config_errors():
        VmConfig.model_validate({"name": name, **given})
        new = []
        if switch is not None:
            settings = {key: value for key, value in port_settings.items() if value is not None}
            new = [guests.port_for(name, switch, settings.pop("kind", "vhost-user"), **settings)]
            ports += [{"port": port.name} for port in new]
        if (address or gateway) and not ports:
            raise click.UsageError("--address and --gateway are for a guest with a port: --switch, or --port")
        if ports:
            ports[0] |= {"address": list(address)} | ({"gateway": gateway} if gateway else {})
        config = VmConfig.model_validate({"name": name, **given, "ports": ports})
        return config.located(Path.cwd()), new


def _boot_again(
    guests: Guests,
    name: str,
    switch: str | None,
    existing: tuple[str, ...],
    given: dict[str, Any],
    *,
    asked: bool,
) -> None:
    from vpt.provision.config import VmConfig

    record = guests.store.load(name)
    config = record.config
    if asked:
        with _config_errors():
            wanted = VmConfig.model_validate({"name": name, **given}).located(Path.cwd())
        differs = [key for key in given if getattr(wanted, key) != getattr(config, key)]
        ports = [*existing, *(record.made_ports if switch else [])]
        if differs or ports != config.port_names:
            what = ", ".join(differs) or "ports"
            raise ExistsError(
                f"there is a guest {name!r} with other settings ({what})", hint=typed("guest", "rm", name)
            )
    guests.start(name)


@contextmanager
def _config_errors() -> Iterator[None]:
    """What pydantic has against the options, as wrong usage."""
    from pydantic import ValidationError

    from vpt.daemon.config_models import sentence

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = sentence(first)
        raise UsageError(f"{where}: {what}" if where else what, hint="vpt guest boot --help") from None
