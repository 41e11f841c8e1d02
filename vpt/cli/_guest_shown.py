# SPDX-License-Identifier: BSD-2-Clause
"""The machines of the vptd that the user means, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vpt.cli._common import guests_of, paths

if TYPE_CHECKING:
    from vpt.provision.guests import Guests, GuestView

__all__ = ["guest_data", "guest_row", "guests_here"]


def guests_here() -> Guests:
    """Whether that vptd runs or not."""
    return guests_of(paths())


def guest_row(view: GuestView) -> list[str]:
    """A line of vpt guest ls."""
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


def guest_data(view: GuestView) -> dict[str, Any]:
    """The same for programs, and more."""
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
