# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's connection to a vhost-user port, made again after vptd was away.

A QEMU that was told to `reconnect` does so by itself. libvirt 9.0 tells it not to for a device that is
attached while the domain runs: it takes the time from the wrong member of a union, where it is 0. (What it
gives QEMU at the domain's start is right, and so are later versions.) What then is left is QMP's add_client,
by which QEMU takes a connection that somebody else has made.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

from vpt.daemon.client import Client
from vpt.daemon.sockets import connect_unix
from vpt.errors import GuestError, MissingError, NotFoundError, TimeoutExpired
from vpt.hints import vpt
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin.metadata import Plug
from vpt.libvirt_plugin.xml import alias_of

__all__ = ["SAYS_NO_RECONNECT", "lost", "reconnect"]

SAYS_NO_RECONNECT = range(9_000_000, 9_001_000)
"""Versions of libvirt, as it counts them, whose QEMU does not connect again by itself."""

_CONNECT_S = 5.0


def lost(vptd: Client, plugs: Iterable[Plug]) -> list[Plug]:
    """vhost-user ports of this vptd that no QEMU is connected to."""
    return [plug for plug in plugs if plug.kind == "vhost-user" and not _connected(vptd, plug.name)]


def _connected(vptd: Client, name: str) -> bool:
    """One that vptd does not have, or could not restore, nobody can connect to: that is not ours to mend."""
    try:
        return bool(vptd.call("port.show", name=name)["transport"].get("connected", True))
    except NotFoundError:
        return True


def reconnect(target: Target, vptd: Client, plug: Plug) -> bool:
    """Give QEMU a connection to the port. False: it does not lack one.

    MissingError: no permission for the port's socket. GuestError: QEMU would not take it.
    """
    chardev = f"char{alias_of(plug.name)}"
    chardevs = {item["label"]: item["filename"] for item in target.monitor("query-chardev")}
    if not chardevs.get(chardev, "").startswith("disconnected:"):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connect_unix(connection, plug.socket, _CONNECT_S)
        except PermissionError:
            raise MissingError(
                f"no permission to connect to {plug.socket}", hint="run as vptd's user, or as root"
            ) from None
        except OSError as error:
            raise GuestError(
                f"can't connect to {plug.socket}: {error}",
                hint=vpt("daemon", "status", runtime=plug.runtime_dir),
            ) from None
        # It is QEMU's from here on, which uses it as it comes: blocking or not is for QEMU to set.
        target.monitor("getfd", files=[connection.fileno()], fdname=chardev)
        target.monitor("add_client", protocol=chardev, fdname=chardev)
    _await_words(vptd, plug)
    return True


def _await_words(vptd: Client, plug: Plug) -> None:
    """QEMU has the connection; wait until it speaks."""
    end = time.monotonic() + _CONNECT_S
    while not vptd.call("port.show", name=plug.name)["transport"]["counters"].get("messages"):
        if time.monotonic() > end:
            raise TimeoutExpired(
                f"QEMU took a connection to {plug.name} and said nothing within {_CONNECT_S:.0f} s",
                hint=vpt("show", plug.name, runtime=plug.runtime_dir),
            )
        time.sleep(0.05)
