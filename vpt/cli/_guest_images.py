# SPDX-License-Identifier: BSD-2-Clause
"""vpt guest build; the images in the cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import emit_json, json_option, print_table, progress

if TYPE_CHECKING:
    from vpt.provision.images import BootImage

__all__ = ["build", "list_images"]


@click.command()
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


def list_images(*, as_json: bool) -> None:
    """vpt guest ls --images."""
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
