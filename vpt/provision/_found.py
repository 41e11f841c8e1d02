# SPDX-License-Identifier: BSD-2-Clause
"""Domains without a record of ours: `vpt attach` plugged them in, and their ports name them as owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vpt.errors import MissingError, VptError
from vpt.libvirt_plugin._connection import binding, open_libvirt, parts_of, translate, uri_of, which_of
from vpt.libvirt_plugin.attach import free_name
from vpt.provision._attached import DomainPorts, ports_of
from vpt.provision.config import VmConfig, VmPort

__all__ = ["found_domains"]


def found_domains(
    ports: Mapping[str, str | None], runtime_dir: str, known: Sequence[VmConfig], named: Sequence[VmConfig]
) -> tuple[list[VmConfig], list[str]]:
    """The domains, with the ports of this vptd that they have; and of what could not be asked, why.

    ports: all of vptd, with their owners. known: machines that have a record.
    named: as a topology calls them, and in which order it lists their ports.
    """
    found: list[VmConfig] = []
    unknown: list[str] = []
    for libvirt, owned in _by_libvirt(ports).items():
        taken = {vm.name for vm in (*known, *found)}
        try:
            found += _of_one(libvirt, owned, ports, runtime_dir, known, named, taken)
        except VptError as error:
            names = sorted(name for some in owned.values() for name in some)
            unknown.append(f"not shown is which domains have {', '.join(names)}: {error.message}")
    return found, unknown


def _by_libvirt(ports: Mapping[str, str | None]) -> dict[str, dict[str, list[str]]]:
    """Ports by libvirt and UUID."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, owner in ports.items():
        if owner is not None and (parts := parts_of(owner)) is not None:
            libvirt, uuid = parts
            found.setdefault(libvirt, {}).setdefault(uuid, []).append(name)
    return found


def _of_one(
    libvirt: str,
    owned: Mapping[str, list[str]],
    ports: Mapping[str, str | None],
    runtime_dir: str,
    known: Sequence[VmConfig],
    named: Sequence[VmConfig],
    taken: set[str],
) -> Iterator[VmConfig]:
    # By a socket of its own, only the user knows how to reach it.
    told = (vm.connect for vm in (*named, *known) if vm.connect and which_of(vm.connect) == libvirt)
    uri = next(told, None) or uri_of(libvirt)
    if uri is None:
        raise MissingError(f"libvirt's {libvirt} is another user's")
    with open_libvirt(uri) as connection:
        for uuid, names in owned.items():
            domain, has = _look_at(connection, uuid, runtime_dir)
            if has is None or any(_is(vm, domain, libvirt) for vm in known):
                continue
            mine = [
                name for name in has.anywhere if name in names or (name in has.everywhere and name in ports)
            ]
            wish = next((vm for vm in named if vm.name not in taken and _is(vm, domain, libvirt)), None)
            if wish is not None:
                order = {name: place for place, name in enumerate(wish.port_names)}
                mine.sort(key=lambda name: order.get(name, len(order)))
            name = free_name(domain, taken) if wish is None else wish.name
            taken.add(name)
            if mine:
                yield VmConfig(
                    name=name,
                    domain=domain,
                    connect=uri if wish is None else wish.connect,
                    ports=[VmPort(port=port) for port in mine],
                )


def _is(vm: VmConfig, domain: str, libvirt: str) -> bool:
    return vm.domain == domain and (vm.connect is None or which_of(vm.connect) == libvirt)


def _look_at(connection: Any, uuid: str, runtime_dir: str) -> tuple[str, DomainPorts | None]:
    """Its name and its ports. None: it is gone, and its ports are left over."""
    lib = binding()
    try:
        domain = connection.lookupByUUIDString(uuid)
        return domain.name(), ports_of(connection, domain, runtime_dir)
    except lib.libvirtError as error:
        if error.get_error_code() == lib.VIR_ERR_NO_DOMAIN:
            return "", None
        raise translate(error, uuid, "look at it") from error
