# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest: build, boot, ssh, run, copy, console, ls, stop, rm."""

from __future__ import annotations

import click

from vpt.cli._common import FiniteFloat, emit_json, json_option, print_table, stoppable
from vpt.cli._guest_boot import boot
from vpt.cli._guest_images import build, list_images
from vpt.cli._guest_inside import console, copy, run, ssh
from vpt.cli._guest_shown import guest_data, guest_row, guests_here
from vpt.errors import NotFoundError

__all__ = ["guest"]

_STOP_S = 30.0


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


for _command in (build, boot, ssh, run, copy, console):
    guest.add_command(_command)


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
        list_images(as_json=as_json)
        return
    found = guests_here().views()
    if as_json:
        emit_json("guests", {"guests": [guest_data(view) for view in found]})
        return
    print_table(
        ["GUEST", "STATE", "BY", "IMAGE", ">CPUS", ">MIB", "ACCEL", "PORTS", "SSH"], map(guest_row, found)
    )


@guest.command()
@click.argument("name")
@click.option(
    "--timeout",
    type=FiniteFloat(0, 86400),
    default=_STOP_S,
    show_default=True,
    help="Seconds to shut down by itself in.",
)
@click.option("--force", is_flag=True, help="Pull the plug.")
def stop(name: str, timeout: float, force: bool) -> None:
    """Shut the guest down; its disks and ports stay, and vpt guest boot NAME starts it again.

    One that has not shut down in time is ended as pulling the plug would. The tiny guest always is.

    \b
    Example:
      vpt guest stop web --timeout 60
    """
    guests = guests_here()
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
                guests_here().remove(name)
    except NotFoundError:
        if not if_exists:
            raise
        click.echo(f"there is no {name}")
        return
    click.echo(f"{name} is gone")
