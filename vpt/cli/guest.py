# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest: build, boot, ssh, run, copy, console, ls, stop, rm."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import emit_json, guests_of, json_option, paths, print_table, progress, stoppable
from vpt.errors import ExistsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from vpt.provision.config import VmConfig
    from vpt.provision.guests import Guests, GuestView
    from vpt.provision.images import BootImage

__all__ = ["guest"]

_FOLLOW_S = 0.2
_STOP_S = 30.0


def _guests() -> Guests:
    return guests_of(paths())


@contextmanager
def _config_errors() -> Iterator[None]:
    """What pydantic has against the options, as wrong usage."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {what}" if where else what, hint="vpt guest boot --help") from None


@click.group()
def guest() -> None:
    """Make virtual machines, and work in them.

    Their images are built here, or are cloud images that you have. A guest lives on when the command has
    ended: in a QEMU of its own, or as a libvirt domain. This host logs in by ssh, over a network of QEMU's
    own that nobody else reaches; host key and login key are made before the guest first runs.

    \b
    Examples:
      vpt guest boot vm1 --switch lab --address 10.0.1.1/24
      vpt guest run vm1 -- ip addr
      vpt guest ssh vm1
      vpt guest rm vm1
    """


# ---- images ----


@guest.command()
@click.argument("kind", type=click.Choice(["tiny", "debian", "cloud"]))
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--no-cache", is_flag=True, help="Build it even if there is one of the same inputs.")
@click.option("--suite", help="debian: its release.  [default: bookworm]")
@click.option("--include", "packages", multiple=True, metavar="PACKAGE", help="debian: install this too.")
@click.option("--size", "gib", type=click.IntRange(1, 4096), help="debian: GiB of the disk.  [default: 4]")
@click.option("--mirror", metavar="URL", help="debian: where to get packages from.  [default: mmdebstrap's]")
@click.option(
    "--user-data",
    type=click.Path(path_type=Path),
    help="cloud: what its guests get, unless they bring their own.",
)
@click.option("--kernel", type=click.Path(path_type=Path), help="cloud: boot this, not what is on the disk.")
@click.option("--initrd", type=click.Path(path_type=Path), help="cloud: with --kernel.")
@click.option("--append", help="cloud: to the kernel's command line, with --kernel.")
@json_option
def build(kind: str, path: Path | None, no_cache: bool, as_json: bool, **options: Any) -> None:
    """Build an image, or find it in the cache, and print its name.

    \b
    tiny      from memory: busybox, an ssh server, vpt_net; made in seconds
    debian    a disk with Debian, sshd and vpt_net, by mmdebstrap
    cloud     the disk image in PATH (qcow2, raw) with cloud-init in it, copied into the cache

    An image is kept under a hash of all that went into it, so building it again is done at once.

    \b
    Examples:
      vpt guest build tiny
      vpt guest build debian --include tcpdump --include iperf3
      vpt guest build cloud ./debian-12-generic-amd64.qcow2 --user-data site.yaml
      vpt guest ls --images
    """
    from vpt.provision import images
    from vpt.provision.debian import Debian, build_debian

    given = {key: value for key, value in options.items() if value not in (None, ())}
    _require_options_for(kind, path, given)
    if kind == "tiny":
        image = images.build_tiny(progress(), fresh=no_cache)
    elif kind == "debian":
        image = build_debian(Debian(**given), progress(), fresh=no_cache)
    else:
        assert path is not None
        image = images.build_cloud(images.Cloud(path, **given), progress(), fresh=no_cache)
    if as_json:
        emit_json("image", _image_data(image))
    else:
        click.echo(image.name)


_OPTIONS_OF = {
    "tiny": (),
    "debian": ("suite", "packages", "gib", "mirror"),
    "cloud": ("user_data", "kernel", "initrd", "append"),
}


def _require_options_for(kind: str, path: Path | None, given: dict[str, Any]) -> None:
    strange = [key for key in given if key not in _OPTIONS_OF[kind]]
    if strange:
        raise click.UsageError(f"not for {kind}: {', '.join(strange)}")
    if kind == "cloud" and path is None:
        raise click.UsageError("cloud needs the PATH of a disk image")
    if kind != "cloud" and path is not None:
        raise click.UsageError(f"{kind} is built from nothing; PATH is for cloud")
    if ("initrd" in given or "append" in given) and "kernel" not in given:
        raise click.UsageError("--initrd and --append are for --kernel")


def _image_data(image: BootImage) -> dict[str, Any]:
    files = {key: getattr(image, key) for key in ("disk", "kernel", "initrd")}
    return {
        "name": image.name,
        "kind": image.kind,
        "source": image.source,
        "bytes": image.size,
        "created": image.created,
        **{key: str(path) if path is not None else None for key, path in files.items()},
    }


# ---- booting ----


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


@guest.command()
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
@click.option("--no-wait", is_flag=True, help="Return when it is started, not when it is up.")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="To be up within.  [default: 90 tiny, 300 debian, 600 cloud]",
)
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
    guests = _guests()
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
            hint=f"make one: vpt guest boot {name} --image tiny",
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
        emit_json("guest", _guest_data(view))
        return
    state = "is up" if not no_wait else "is started"
    click.echo(f"{name} {state}: vpt guest ssh {name}")


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
                f"there is a guest {name!r} with other settings ({what})", hint=f"vpt guest rm {name}"
            )
    guests.start(name)


# ---- in the guest ----


@guest.command()
@click.argument("name")
def ssh(name: str) -> None:
    """Open a shell in the guest, on this terminal.

    Ends with the shell's exit status.

    \b
    Example:
      vpt guest ssh vm1
    """
    from vpt.provision import ssh as remote

    click.get_current_context().exit(remote.shell(_guests().reachable(name)))


@guest.command(context_settings={"ignore_unknown_options": True})
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

    record = _guests().reachable(name)
    status = remote.run(
        record,
        shlex.join(command),
        stdin=sys.stdin.buffer if with_input else None,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    )
    click.get_current_context().exit(status)


@guest.command()
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
    guests = _guests()
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


@guest.command()
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

    guests = _guests()
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


# ---- looking, ending ----


@guest.command()
@click.option("--images", is_flag=True, help="The images in the cache.")
@json_option
def ls(images: bool, as_json: bool) -> None:
    """List all guests, or the images that there are for them.

    \b
    Examples:
      vpt guest ls
      vpt guest ls --images --json
    """
    if images:
        _list_images(as_json=as_json)
        return
    found = _guests().views()
    if as_json:
        emit_json("guests", {"guests": [_guest_data(view) for view in found]})
        return
    print_table(["GUEST", "STATE", "BY", "IMAGE", ">CPUS", ">MIB", "ACCEL", "PORTS", "SSH"], map(_row, found))


def _row(view: GuestView) -> list[str]:
    record, config = view.record, view.record.config
    ports = ",".join(config.port_names) or "-"
    if config.domain is not None:
        return [config.name, view.state, "libvirt", f"domain {config.domain}", "-", "-", "-", ports, "-"]
    size = [str(config.cpus), str(config.memory_mib)]
    return [
        config.name,
        view.state,
        config.via,
        record.image,
        *size,
        record.accel,
        ports,
        str(record.ssh_port),
    ]


def _guest_data(view: GuestView) -> dict[str, Any]:
    record, config = view.record, view.record.config
    return {
        "name": config.name,
        "state": view.state,
        "pid": view.pid,
        "via": "libvirt" if config.domain is not None else config.via,
        "domain": config.domain,
        "image": record.image or None,
        "cpus": None if config.domain else config.cpus,
        "memory_mib": None if config.domain else config.memory_mib,
        "accel": None if config.domain else record.accel,
        "ports": config.port_names,
        "macs": record.macs,
        "ssh": None
        if config.domain
        else {
            "host": "127.0.0.1",
            "port": record.ssh_port,
            "user": "root",
            "key": record.ssh_key,
            "host_key": record.host_key,
        },
        "created": record.created,
    }


def _list_images(*, as_json: bool) -> None:
    from vpt.provision.images import listed

    found = listed()
    if as_json:
        emit_json("images", {"images": [_image_data(image) for image in found]})
        return
    rows = [
        [
            image.name,
            f"{image.size / (1 << 20):.1f} MiB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(image.created)),
            image.source,
        ]
        for image in found
    ]
    print_table(["IMAGE", ">SIZE", "BUILT", "FROM"], rows)


@guest.command()
@click.argument("name")
@click.option(
    "--timeout", type=float, default=_STOP_S, show_default=True, help="Seconds to shut down by itself in."
)
@click.option("--force", is_flag=True, help="Pull the plug.")
def stop(name: str, timeout: float, force: bool) -> None:
    """Shut the guest down; its disks and ports stay, and vpt guest boot NAME starts it again.

    One that has not shut down in time is ended as pulling the plug would. The tiny guest always is.

    \b
    Example:
      vpt guest stop web --timeout 60
    """
    guests = _guests()
    was_running = guests.stop(name, 0.0 if force else timeout)
    click.echo(f"{name} is stopped" if was_running else f"{name} was stopped already")


@guest.command()
@click.argument("name")
@click.option("--image", "is_image", is_flag=True, help="NAME is an image in the cache.")
@click.option("--if-exists", is_flag=True, help="Succeed if there is none.")
def rm(name: str, is_image: bool, if_exists: bool) -> None:
    """Remove a guest with its disks, keys and the ports made for it; or an image.

    It is ended at once if it runs. A domain that vpt did not make only loses its vpt ports.

    \b
    Examples:
      vpt guest rm vm1
      vpt guest rm debian-9a7136d1a4ea --image
    """
    try:
        if is_image:
            from vpt.provision.images import remove

            name = remove(name).name
        else:
            with stoppable():
                _guests().remove(name)
    except NotFoundError:
        if not if_exists:
            raise
        click.echo(f"there is no {name}")
        return
    click.echo(f"{name} is gone")
